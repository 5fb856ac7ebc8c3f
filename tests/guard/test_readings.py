"""The worst reading counts, equal readings are judged once, and a trick is named only where its reading is worse."""

import pytest
import torch

from safe_rlhf_v.guard.inputs import Input
from safe_rlhf_v.guard.verdict import WORSE_BY, unchecked, worst
from safe_rlhf_v.modules.guard import GuardOutputs


@pytest.fixture
def scripted(guard, monkeypatch):
    """A guard whose model finds a text with a word harmful, and notes what it was given."""
    seen = []

    def forward(self, prompts, responses):
        rows = [(q, r) for q, (r,) in zip(prompts.questions, responses, strict=True)]
        seen.append(rows)
        harmful = torch.tensor([("poison" in f"{q} {r}") - ("mild" in f"{q} {r}") * 0.5 for q, r in rows])
        levels = torch.full((len(rows), 7), 0.01)
        levels[:, 0], levels[:, 6] = 0.02 + 0.9 * harmful, 0.93 - 0.9 * harmful
        risk = torch.logit(0.02 + 0.9 * harmful)
        return GuardOutputs(levels.log(), risk, torch.zeros(len(rows), len(self.categories)))

    monkeypatch.setattr(type(guard.module), "forward", forward)
    monkeypatch.setattr(guard, "_unread", lambda row: "too long" if "endless" in row.response else "")
    guard.seen = seen
    return guard


def test_the_model_is_given_exactly_what_the_caller_gave_and_ordinary_text_costs_one_forward(scripted):
    texts = ["  Sure,\tit is\r\n\r\n\r\nfine \u00a0. ", "caf\u0065\u0301", "A B C D"]
    verdicts = scripted.moderate_batch([Input(None, "can i ?", text) for text in texts])
    assert [response for _, response in scripted.seen[0]] == texts
    assert all(v.decision == "allow" and v.flags == () for v in verdicts)
    scripted.seen.clear()
    scripted.moderate_batch([Input(None, "can i ?", "sure it is fine .")] * 3)
    assert len(scripted.seen) == 1 and len(scripted.seen[0]) == 3


@pytest.mark.parametrize(
    ("response", "flag"),
    [
        ("p\u043e\u0456son it", "homoglyph"),
        ("\u0440\u043e\u0456\u0455\u043e\u0578 it", "homoglyph"),
        ("poi\u034fson it", "invisible"),
        ("p\u0336o\u0336i\u0336s\u0336o\u0336n\u0336 it", "marks"),
        ("\uff50\uff4f\uff49\uff53\uff4f\uff4e it", "styled"),
        ("sure" + "".join(chr(0xE0000 + ord(c)) for c in "poison it"), "hidden"),
        ("sure" + "".join(chr(0xE00F0 + b) for b in b"poison it"), "hidden"),
        ("\u202enosiop\u202c", "bidi"),
        ("p.o.i.s.o.n it", "spacing"),
    ],
)
@pytest.mark.parametrize("part", ["question", "response", "both", "prompt alone"])
def test_the_worst_reading_counts_and_its_trick_is_named(scripted, response, flag, part):
    question = "may i ?" if part == "response" else response
    text = {"question": "sure", "prompt alone": None}.get(part, response)
    verdict = scripted.moderate(question=question, response=text)
    assert verdict.decision == "block" and verdict.status == "ok" and flag in verdict.flags
    assert "read with" in verdict.reasons[0] and (verdict.level == -3 or text is None)
    assert verdict.to_openai(("text",))["flags"] == list(verdict.flags) and verdict.to_openai(("text",))["flagged"]


@pytest.mark.parametrize(
    "text", ["si\u200bcher \u0430\u0456r", "p\u0336a\u0336n\u0336", "p a l a c e", "\uff53\uff55\uff52\uff45"]
)
def test_a_trick_whose_reading_is_no_worse_is_not_named(scripted, text):
    verdict = scripted.moderate(question="may i ?", response=text)
    assert len(scripted.seen) == 2 and verdict.decision == "allow" and verdict.flags == ()


@pytest.mark.parametrize("text", ["\u0440\u043e\u0456\u0455\u043e\u0578 \u043c\u0438\u0440", "p o i s o n \u65e5"])
def test_a_worse_reading_of_what_may_be_genuine_counts_all_the_same(scripted, text, monkeypatch):
    monkeypatch.setattr("safe_rlhf_v.guard.text.MIN_SPELLED", 99)
    verdict = scripted.moderate(response=text)
    assert verdict.decision == "block" and verdict.flags == () and "read with" in verdict.reasons[0]


def test_two_parts_with_two_tricks_are_undone_together(scripted, monkeypatch):
    """Only a reading that undoes both is harmful."""
    forward = type(scripted.module).forward

    def both(self, prompts, responses):
        outputs = forward(self, prompts, responses)
        for i, (question, (response,)) in enumerate(zip(prompts.questions, responses, strict=True)):
            if not (question == "the dog" and response == "poison"):
                outputs.level_log_probs[i] = (
                    outputs.level_log_probs[i].flip(0) if "poison" in response else outputs.level_log_probs[i]
                )
        return outputs

    monkeypatch.setattr(type(scripted.module), "forward", both)
    verdict = scripted.moderate(question="t\u200bhe d\u03bfg", response="p.o.i.s.o.n")
    assert verdict.decision == "block" and set(verdict.flags) >= {"invisible", "spacing"}


def test_a_reading_that_cannot_be_read_whole_leaves_the_input_unchecked(scripted):
    verdict, fine = scripted.moderate_batch([Input(None, "a", "end\u200bless"), Input(None, "a", "end")])
    assert verdict.status == "error" and verdict.decision == "block" and verdict.flags == ("invisible",)
    assert "too long (read with invisible undone)" in verdict.reasons[0] and fine.status == "ok"
    plain = scripted.moderate(question="a", response="endless p\u200boison")
    assert plain.status == "error" and plain.flags == () and "read with" not in plain.reasons[0]


@pytest.mark.parametrize(
    "item",
    [Input(None, "{}"), Input(None, ""), Input(None, " \n\u200b"), Input(None, "", "{}"), Input(None, "?!", "..."),
     Input(None, "fine ?", ""), Input(None, "fine ?", "\u00ad\ufe0f"), Input(None, "fine ?", " \u3000\u3164"), Input()],
)  # fmt: skip
def test_where_nothing_was_read_nothing_is_passed(guard, item):
    verdict = guard.moderate_batch([item])[0]
    assert verdict.status == "error" and verdict.decision == "block"


def test_which_reading_is_worse():
    ok = unchecked("", "m", 0.9)._replace(status="ok", decision="allow", harm=0.1, reasons=("plain",))
    other = ok._replace(reasons=("other",), flags=("spacing",))
    assert worst([ok, other]) == ok
    assert worst([ok, other._replace(harm=0.1 + WORSE_BY / 2)]).flags == ()
    assert worst([ok, other._replace(harm=0.1 + WORSE_BY / 2)]).reasons == ("other",)
    assert worst([ok, other._replace(harm=0.11, decision="review")]).flags == ("spacing",)
    assert worst([ok, other._replace(harm=0.1 + 2 * WORSE_BY)]).flags == ("spacing",)
    blocked = ok._replace(decision="block", harm=0.99)
    assert worst([blocked, other]) == blocked
    error = unchecked("x", "m", 0.9, ("marks",))
    assert worst([blocked, other, error]) == error and worst([error._replace(flags=()), error]).flags == ()
