"""Runs on two ranks train, save and predict as one does."""

import json
from pathlib import Path

import pytest
import torch
from tests.commands.command_lines import DDP, base, preference
from torch import distributed

from safe_rlhf_v import __main__
from safe_rlhf_v.commands import fit as cli


def test_two_ranks_train_save_and_go_on_as_one(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([*base(world, tmp_path), *DDP])
    content = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert content["global_step"] == 2
    assert len(content["random_states"]["torch"]) == 2
    alone = cli.main(
        [*base(world, tmp_path / "alone", steps=3), f"--ckpt_path={tmp_path}", "--data.init_args.batch_size=8"]
    )
    assert alone.trainer.global_step == 3


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_preference_models_train_alike_on_one_rank_and_two(kind: str, world: Path, tmp_path: Path) -> None:
    """Plain DDP hangs or fails where a trainable tensor gets no gradient; here weights must equal one rank's."""

    def weights(out: Path, *extra: str) -> dict[str, torch.Tensor]:
        cli.main([*preference(kind, world, out), *extra])
        return torch.load(next(out.rglob("last.ckpt")), weights_only=True)["state_dict"]  # type: ignore[no-any-return]

    plain = "--model.init_args.optimizer=torch.optim.SGD"  # Adam's first steps would hide a wrong scale
    one = weights(tmp_path / "one", plain, "--data.init_args.batch_size=8")
    two = weights(tmp_path / "two", plain, *DDP)
    start = weights(tmp_path / "start", plain, "--data.init_args.batch_size=8", "--trainer.max_steps=1")
    assert any(not torch.equal(one[name], start[name]) for name in one)
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_bfloat16_is_a_configuration_value(world: Path, tmp_path: Path) -> None:
    done = cli.main([*preference("cost", world, tmp_path), "--trainer.precision=bf16-mixed"])
    assert done.trainer.global_step == 2
    assert {value.dtype for value in done.model.parameters()} == {torch.float32}
    assert torch.isfinite(done.trainer.callback_metrics["train/loss"])


def test_predictions_have_one_line_per_record_whatever_the_ranks(world: Path, tmp_path: Path) -> None:
    cli.main(preference("cost", world, tmp_path / "run"))
    found = []
    for name, extra in (("one", []), ("two", [*DDP, "--data.init_args.eval_batch_size=2"])):
        command = preference("cost", world, tmp_path / name, "predict")
        cli.main([*command, f"--ckpt_path={tmp_path / 'run'}", *extra])
        text = (tmp_path / name / "cost" / "predictions.jsonl").read_text()
        found.append([json.loads(line) for line in text.splitlines()])
        assert not list((tmp_path / name).rglob("*.part*"))
    one, two = found
    assert [(row["split"], row["key"]) for row in one] == [(row["split"], row["key"]) for row in two]
    assert len({(row["split"], row["key"]) for row in one}) == len(one) == 12 + 6 + 8 + 8
    assert {len(row["scores"]) for row in one} == {1, 2}  # verdict splits have one response
    for a, b in zip(one, two, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_ranks_part_when_a_run_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Gloo's threads abort a process that ends while they run: a whole run would end with status -6."""

    def run() -> int:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
        return 0

    monkeypatch.setattr(__main__, "main", run)
    assert __main__.program() == 0 and not distributed.is_initialized()
