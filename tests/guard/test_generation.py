"""The loop: what passes is released, what fails is drawn again, what never passes is refused; rounds by hand."""

import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.guard import BestOfK, GuardedGenerator, HigherTemperature, SafetyReminder, Strategy, generation
from safe_rlhf_v.guard.verdict import unchecked
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.records.batches import Prompts


class Scripted:
    """A guard that passes texts ending in "good", and blocks prompts that say "bad"; harm is the text's number."""

    def moderate_texts(self, prompts, responses):
        blank, verdicts = unchecked("x", "m", 0.5), []
        for question, text in zip(prompts.questions, responses, strict=True):
            passes = "bad" not in question if text is None else text.endswith("good")
            harm = float(text.split()[0]) if text else 0.0
            verdicts.append(blank._replace(decision="allow" if passes else "block", harm=harm))
        return verdicts


@pytest.fixture
def script(monkeypatch):
    """Makes ``sample`` hand out texts of a list per question, and notes its calls."""
    calls = []

    def install(texts):
        def sample(policy, prompts, options, generator, samples=1):
            calls.append((prompts.questions, options.temperature, samples))
            drawn = tuple(texts[question.split()[0]].pop(0) for question in prompts.questions for _ in range(samples))
            mask = torch.ones(len(drawn), 3, dtype=torch.bool)
            return Generation(mask.long(), mask, mask.float(), mask[:, 0], drawn)

        monkeypatch.setattr(generation, "sample", sample)
        return calls

    return install


def prompts(*questions):
    return Prompts(((),) * len(questions), ((),) * len(questions), questions)


def test_only_what_failed_is_drawn_again(script):
    calls = script({"a": ["0 good"], "b": ["1 no", "0 good"], "c": ["1 no"] * 3})
    generated = GuardedGenerator(None, Scripted(), rounds=2, refusal="sorry")(prompts("a", "b", "c"))
    assert generated.texts == ("0 good", "0 good", "sorry")
    assert generated.released == (0, 1, -1)
    assert [questions for questions, _, _ in calls] == [("a", "b", "c"), ("b", "c"), ("c",)]
    assert generated.tokens == (9, 6, 3)
    assert [[attempt.row for attempt in drafts] for drafts in generated.attempts] == [[0, 1, 2], [1, 2], [2]]


def test_it_stops_early_and_without_rounds_only_filters(script):
    calls = script({"a": ["0 good"], "b": ["0 good", "1 no"]})
    assert len(GuardedGenerator(None, Scripted(), rounds=5)(prompts("a", "b")).tokens) == 1
    assert GuardedGenerator(None, Scripted(), rounds=0, refusal="sorry")(prompts("b")).texts == ("sorry",)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="rounds is -1"):
        GuardedGenerator(None, Scripted(), rounds=-1)


def test_blocked_prompts_are_refused_without_a_draw(script):
    calls = script({"a": ["0 good"]})
    generated = GuardedGenerator(None, Scripted(), check_prompts=True, refusal="sorry")(prompts("bad", "a"))
    assert generated.texts == ("sorry", "0 good") and generated.released == (-1, 0)
    assert calls[0][0] == ("a",)
    nothing = GuardedGenerator(None, Scripted(), check_prompts=True, refusal="sorry")(prompts("bad"))
    assert nothing.texts == ("sorry",) and nothing.attempts == ()


def test_strategies(script):
    calls = script({"a": ["1 no", "3 no", "1 good", "2 good", "4 no"]})
    best = GuardedGenerator(None, Scripted(), rounds=1, strategy=BestOfK(4))(prompts("a"))
    assert best.texts == ("1 good",) and best.tokens == (3, 12) and calls[1][2] == 4
    calls = script({"a": ["1 no"] * 3})
    calls.clear()
    options = SamplingOptions(temperature=0.5)
    GuardedGenerator(None, Scripted(), 2, HigherTemperature(0.25), options)(prompts("a"))
    assert [temperature for _, temperature, _ in calls] == [0.5, 0.75, 1.0]
    calls = script({"a": ["1 no"] * 2})
    calls.clear()
    GuardedGenerator(None, Scripted(), 1, SafetyReminder("Be careful."))(prompts("a"))
    assert [questions for questions, _, _ in calls] == [("a",), ("a Be careful.",)]


def test_prompts_are_taken_by_row(world):
    batch = next(iter(PreferenceDataModule(str(world), batch_size=4).train_dataloader()))
    taken = batch.prompts.take([2, 2, 0])
    assert taken.questions == tuple(batch.prompts.questions[i] for i in (2, 2, 0))
    assert torch.equal(taken.images[1][0], batch.prompts.images[2][0])
    assert isinstance(Strategy().prompts(3, taken), Prompts)
