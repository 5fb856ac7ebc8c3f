"""The loop: what passes is released, what fails is drawn again, what never passes is refused; rounds and reports by hand."""

import argparse
import json

import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.guard import BestOfK, GuardedGenerator, HigherTemperature, SafetyReminder, Strategy, generation
from safe_rlhf_v.guard.running import _mean, _outcomes
from safe_rlhf_v.guard.verdict import unchecked
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.records.user_files import lock
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world import WorldJudge


class Scripted:
    """A guard that passes texts ending in "good", and blocks prompts that say "bad"; harm is the text's number."""

    def judge_texts(self, prompts, responses):
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


def test_the_report_counts_what_each_number_of_rounds_gives(script, world):
    split = ShardedSplit(world, "test")
    records = [split[i] for i in range(12)]
    harmful = next(r for r in records if min(r.truth.safety) < 0)
    k = harmful.truth.safety.index(min(harmful.truth.safety))
    bad, refusal = harmful.responses[k].text, "i can not help with that"
    script({"x": [f"1 {bad}", "0 good"]})

    class Numbered(Scripted):
        def judge_texts(self, prompts, responses):
            return super().judge_texts(prompts, [f"1 {text}" if text == bad else text for text in responses])

    script({"x": [bad, "0 good"]})
    options = argparse.Namespace(rounds=2, refusal=refusal)
    generated = GuardedGenerator(None, Numbered(), rounds=2, refusal=refusal)(prompts("x"))
    (outcomes,) = _outcomes(generated, [harmful], WorldJudge(), options)
    assert [row["harm"] for row in outcomes] == [True, False, False, False]
    assert [row["released"] for row in outcomes] == [True, False, True, True]
    assert [row["tokens"] for row in outcomes] == [3, 3, 6, 6]
    mean = _mean("round 0", [outcomes[0], outcomes[1]])
    assert (mean["harm"], mean["harm_released"], mean["refused"]) == (0.5, 1.0, 0.5)
    assert mean["helpfulness"] == pytest.approx((outcomes[0]["help"] + outcomes[1]["help"]) / 2)


def test_refusals_of_harmless_prompts_are_counted_apart():
    row = {"harm": False, "released": True, "help": 1.0, "harmless": True, "tokens": 4}
    rows = [row, {**row, "released": False, "help": 0.0}, {**row, "harmless": False, "released": False, "help": -1.0}]
    mean = _mean("round 1", rows)
    assert (mean["refused"], mean["harmless_refused"]) == (pytest.approx(2 / 3), 0.5)
    assert (mean["helpfulness"], mean["harmless_helpfulness"]) == (0.0, 0.5)


def test_the_command_answers_every_prompt(calibrated_run, world, tmp_path, capsys):
    from safe_rlhf_v.commands import fit as cli
    from safe_rlhf_v.commands.generate import main

    from .conftest import ROOT

    cli.main([
        "fit", f"--config={ROOT / 'configs' / 'quickstart' / 'supervised.yaml'}", f"--data.init_args.path={world}",
        "--data.init_args.batch_size=4", f"--model.init_args.backbone.init_args.tokenizer={world / 'tokenizer'}",
        "--model.init_args.init_from=null", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1", "--trainer.callbacks=null",
        f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    command = ["--policy", str(tmp_path / "supervised"), "--guard", str(calibrated_run), "--data", str(world),
               "--rounds", "1", "--max-new-tokens", "6", "--batch-size", "5"]  # fmt: skip
    with (tmp_path / "a.jsonl.part").open("ab") as other:
        lock(other, "a.jsonl")
        assert main([*command, "--output", str(tmp_path / "a.jsonl")]) == 2
    assert "a.jsonl: another process is writing it" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "a.jsonl")]) == 0
    assert main([*command, "--output", str(tmp_path / "b.jsonl")]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and all(set(line) == {"key", "response", "round"} for line in lines)
    drafts = [json.loads(line) for line in (tmp_path / "a.drafts.jsonl").read_text().splitlines()]
    assert sorted(draft["key"] for draft in drafts if draft["round"] == 0) == sorted(line["key"] for line in lines)
    passed = {draft["key"]: draft["draft"] for draft in drafts if draft["decision"] == "allow"}
    assert passed == {line["key"]: line["response"] for line in lines if line["round"] >= 0}
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in rows] == ["no guard", "round 0", "round 1"]
    assert all(row["prompts"] == 12 for row in rows)
    assert "by ground truth" in capsys.readouterr().out
    assert main([*command, "--check-prompts", "--output", str(tmp_path / "checked.jsonl")]) == 0
    assert json.loads((tmp_path / "checked.json").read_text())[0]["name"] == "prompts checked only"
    command[1] = "nowhere"
    assert main([*command, "--output", str(tmp_path / "c.jsonl")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_prompts_are_taken_by_row(world):
    batch = next(iter(PreferenceDataModule(str(world), batch_size=4).train_dataloader()))
    taken = generation.take(batch.prompts, [2, 2, 0])
    assert taken.questions == tuple(batch.prompts.questions[i] for i in (2, 2, 0))
    assert torch.equal(taken.images[1][0], batch.prompts.images[2][0])
    assert isinstance(Strategy().prompts(3, taken), Prompts)
