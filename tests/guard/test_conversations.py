"""A response is judged in its conversation: every text of it is read, in every reading, and nothing of it is passed unread."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from tests.commands.test_filter import Scripted
from tests.guard.test_limits import Bytes, batch_of, byte_reader, sentences  # noqa: F401  a fixture

from safe_rlhf_v.callbacks.tiles import MAX_TURNS, prompt_lines
from safe_rlhf_v.commands.filter import Rules, filter_shards
from safe_rlhf_v.guard.entries import JsonlEntries, ShardEntries
from safe_rlhf_v.guard.inputs import Input
from safe_rlhf_v.guard.limits import UNCOUNTED, Coverage, Gate, harmless_inputs
from safe_rlhf_v.guard.moderation import Guard
from safe_rlhf_v.guard.text import MAX_CHARACTERS
from safe_rlhf_v.modules.guard import GuardOutputs
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.shards import ShardedSplit, ShardWriter

TALK = (Turn("user", "what is it ?"), Turn("assistant", "this is one red knife ."))


@pytest.fixture
def scripted(guard, monkeypatch):
    """A guard whose model finds a prompt or response with a word harmful, and notes what it was given."""
    seen = []

    def forward(self, prompts, responses):
        seen.append(prompts)
        texts = [" ".join((*prompts.texts(row), *responses[row])) for row in range(len(responses))]
        harmful = torch.tensor([float("poison" in text) for text in texts])
        levels = torch.full((len(texts), 7), 0.01)
        levels[:, 0], levels[:, 6] = 0.02 + 0.9 * harmful, 0.93 - 0.9 * harmful
        return GuardOutputs(
            levels.log(), torch.logit(0.02 + 0.9 * harmful), torch.zeros(len(texts), len(self.categories))
        )

    monkeypatch.setattr(type(guard.module), "forward", forward)
    guard.seen = seen
    return guard


def test_the_model_is_given_the_whole_conversation(scripted):
    verdict = scripted.moderate(None, "is it safe ?", "sure", "take care .", list(TALK))
    assert verdict.decision == "allow" and scripted.seen[0].contexts == (Context("take care .", TALK),)
    assert scripted.seen[0].turns(0)[-1] == Turn("user", "is it safe ?")


@pytest.mark.parametrize("response", ["sure", None])
@pytest.mark.parametrize("part", ["system", 0, 1])
@pytest.mark.parametrize(
    ("text", "flag"), [("poison it", None), ("poi\u034fson it", "invisible"), ("p.o.i.s.o.n it", "spacing")]
)
def test_tricks_are_undone_in_every_turn(scripted, part, text, flag, response):
    history = tuple(turn._replace(text=text) if part == i else turn for i, turn in enumerate(TALK))
    verdict = scripted.moderate(None, "may i ?", response, text if part == "system" else "", history)
    assert verdict.status == "ok" and verdict.decision == "block" and verdict.flags == (() if flag is None else (flag,))
    prompts = Prompts(((),), ((),), ("may i ?",), (Context(text if part == "system" else "", history),))
    assert scripted.moderate_texts(prompts, [response]) == [verdict]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (TALK[:1], "must end with a turn of the assistant"),
        (TALK[::-1], "roles alternate"),
        ((TALK[0]._replace(images=1), TALK[1]), "its turns hold 1 images, the record has 0"),
        (("what", "this"), "must be a Turn"),
        ((TALK[0]._replace(text="\ud800"), TALK[1]), "lone surrogate"),
        ((TALK[0]._replace(text="x" * MAX_CHARACTERS), TALK[1]), "text refused (too_long)"),
        ((Turn("user", ""), Turn("assistant", "")) * (MAX_CHARACTERS // 2), "text refused (too_long)"),
        ((TALK[0]._replace(text="a\0"), TALK[1]), "text refused (control_characters)"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_read_is_blocked(guard, history, reason):
    verdict = guard.moderate(None, "is it safe ?", "sure", history=history)
    assert (verdict.status, verdict.decision) == ("error", "block") and reason in verdict.reasons[0]


def test_the_trained_guard_reads_earlier_turns_and_pictures(guard, world):
    split = ShardedSplit(world, "test")
    pictures = [split[i].images[0].data for i in (0, 5)]
    talk = (TALK[0]._replace(images=1), TALK[1])
    inputs = [
        Input(pictures, "is it safe ?", "sure", "", talk),
        Input(pictures, "is it safe ?", "sure", "", (talk[0], Turn("assistant", "i see a thing ."))),
        Input(pictures, "is it safe ?", "sure", "take care .", talk),
        Input(pictures[::-1], "is it safe ?", "sure", "", talk),
        Input(pictures, "is it safe ?", "sure"),
    ]
    verdicts = guard.moderate_batch(inputs)
    assert all(verdict.status == "ok" for verdict in verdicts) and len({v.level_probabilities for v in verdicts}) == 5
    assert guard.moderate_batch(inputs[:1])[0].harm == pytest.approx(verdicts[0].harm, abs=2e-5)


def conversations(texts):
    """Questions behind one earlier exchange of the same language."""
    batch = batch_of(texts)
    n = len(batch.keys)
    contexts = tuple(Context("", (Turn("user", texts[i]), Turn("assistant", texts[n + i]))) for i in range(n))
    return batch._replace(prompts=batch.prompts._replace(contexts=contexts))


class Whole(Bytes):
    """Reads the texts of the whole conversation."""

    def prepare_prompts(self, prompts):
        joined = tuple(" ".join(prompts.texts(row)) for row in range(len(prompts.questions)))
        return super().prepare_prompts(prompts._replace(questions=joined))


def test_limits_count_every_text_and_what_is_not_read_whole_is_refused(byte_reader):  # noqa: F811
    reader = Whole(byte_reader.tokenizer)
    batch = conversations(sentences(400, 1))
    coverage = Coverage(reader)
    coverage.add(batch)
    limits = coverage.limits("synthetic", harmless_inputs(conversations(sentences(200, 1))))
    assert limits.most_texts == 3
    lengths = [sum(len(reader.text_ids(text)) for text in batch.prompts.texts(row)) for row in range(len(batch.keys))]
    assert limits.longest_question == max(lengths)
    row = batch.prompts.take([0])
    response = batch.responses[0][0]
    question, (user, assistant) = row.questions[0], row.contexts[0].history

    def refusal(reader, system="", history=(user, assistant)):
        return Gate(reader, limits).refusal(
            row._replace(contexts=(Context(system, history),)), response, as_it_stands=True
        )

    assert refusal(reader) == ""
    assert "truncated the prompt" in refusal(byte_reader)  # which reads the question only
    assert "4 turns (system text included); in training a prompt had at most 3" in refusal(reader, question)
    strange = user._replace(text="quix zwölf jwvkx qqz xyx")
    assert "the text before the question holds words" in refusal(reader, history=(strange, assistant))
    long = user._replace(text=" ".join([user.text] * 30))
    assert "the conversation has" in refusal(reader, history=(long, assistant))


def test_a_guard_that_was_trained_on_single_turns_judges_no_conversation(guard):
    limits = replace(guard.calibration.limits, most_texts=UNCOUNTED.most_texts)
    single = Guard(guard.module, replace(guard.calibration, limits=limits), guard.identity)
    assert single.moderate(None, "is it safe ?", "sure").status == "ok"
    verdict = single.moderate(None, "is it safe ?", "sure", history=TALK)
    assert verdict.decision == "block" and "3 turns (system text included); in training" in verdict.reasons[0]


# --- files ------------------------------------------------------------------------------------------------------------


def test_lines_hold_conversations(tmp_path, world):
    picture = ShardedSplit(world, "test")[0].images[0].data
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture)
    turns = [{"role": "user", "text": "what ?", "images": 1}, {"role": "assistant", "text": "this ."}]
    rows = [
        {"key": "talk", "system": "s", "history": turns, "image": ["a.jpg", "b.jpg"], "question": "safe ?", "response": "no"},
        {"key": "plain", "image": "a.jpg", "question": "safe ?", "response": "no"},
        {"key": "plain", "image": "a.jpg", "question": "safe ?", "response": "no", "history": [], "system": None},
        {"history": "what ?"}, {"history": [{"role": "user"}]}, {"history": [{**turns[0], "mood": 1}]}, {"system": 3},
        {"image": ["a.jpg", 3]}, {"image": {}}, {"image": ["../a.jpg"]},
    ]  # fmt: skip
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    entries = JsonlEntries(path)
    talk, plain, empty = (entries[i] for i in range(3))
    history = (Turn("user", "what ?", 1), Turn("assistant", "this ."))
    assert talk.input == Input([picture, picture], "safe ?", "no", "s", history)
    assert plain.input == Input(picture, "safe ?", "no") and empty.digest == plain.digest != talk.digest
    moved = talk._replace(input=talk.input._replace(history=(history[0]._replace(images=0), history[1])))
    assert len({talk.digest, moved.digest, talk._replace(input=talk.input._replace(system="")).digest}) == 3
    parts = (b"plain", b"", b"safe ?", b"no", picture)  # as ever, so that unfinished work goes on
    assert plain.digest == hashlib.sha256(b"".join(f"{len(part)}:".encode() + part for part in parts)).hexdigest()
    problems = [entries[i].problem for i in range(3, 10)]
    assert all(entries[i].input is None for i in range(3, 10))
    for problem, words in zip(problems, (
        "'history' must be list", "'history[0].text' is missing", "'history[0].mood' is not part", "'system' is not text",
        "'image' holds 3", "'image' holds {}", "lies outside",
    ), strict=True):  # fmt: skip
        assert words in problem


def test_shards_give_conversations_to_the_guard(tmp_path, world):
    source = ShardedSplit(world, "test")
    one = replace(source[0], system="take care .", history=TALK)
    with ShardWriter(tmp_path / "talks", name="t", licence="x", taxonomy=source.manifest.taxonomy) as writer:
        writer.write("test", replace(one, responses=tuple(replace(r, text=f"2 0.1 {r.text}") for r in one.responses)))
    entry = ShardEntries(tmp_path / "talks", "test")[1]
    assert entry.input.history == TALK and entry.input.system == "take care ."
    guard = Scripted()
    filter_shards(guard, tmp_path / "talks", tmp_path / "filtered", Rules())
    assert [(i.system, i.history) for i in guard.inputs] == [("take care .", TALK)] * 2
    assert ShardedSplit(tmp_path / "filtered", "test")[0].history == TALK


def test_pictures_of_rows_show_the_earlier_turns():
    prompts = Prompts(((),) * 2, ((),) * 2, ("so ?", "so ?"), (Context("kind", TALK), Context("", TALK * 4)))
    assert [line.text for line in prompt_lines(prompts, 0)] == [
        "system: kind", "user: what is it ?", "assistant: this is one red knife .", "so ?",
    ]  # fmt: skip
    texts = [line.text for line in prompt_lines(prompts, 1)]
    assert texts[0] == f"({8 - MAX_TURNS} turns)" and len(texts) == MAX_TURNS + 2
