"""A run that was copied somewhere else works there, in every command and from any working directory."""

from pathlib import Path

import pytest
import torch
from tests.conftest import stage_command
from tests.stored_runs import copy_run, elsewhere

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.commands import fit as cli
from safe_rlhf_v.demo.runs import Run
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.models.sources import load_tokenizer
from safe_rlhf_v.training.checkpoints import find_checkpoint, read_checkpoint
from safe_rlhf_v.training.runs import load_backbone, load_run

STAGES = ("vision", "supervised", "reward", "cost")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def moved(policy_stages: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all stages, copied; what they were trained with is gone."""
    root = tmp_path_factory.mktemp("moved")
    cli.main(stage_command("guard", world, policy_stages, f"--trainer.logger.init_args.save_dir={root / 'guard_run'}"))
    for stage in STAGES:
        copy_run(policy_stages / stage, root / stage, elsewhere)
    copy_run(root / "guard_run" / "guard", root / "guard", elsewhere)
    return root


@pytest.fixture(autouse=True)
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another working directory for each test."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_training_commands_take_a_moved_run(
    command: str, moved: Path, policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_run(moved / "reward", tmp_path / "reward")
    limit = "--trainer.limit_val_batches=1" if command == "validate" else "--trainer.limit_train_batches=2"
    more = ["--trainer.max_steps=3"] if command == "fit" else []
    args = [command, f"--ckpt_path={run}", f"--data.init_args.path={world}", limit, *QUIET, *more]
    assert entry.main(args) == 0
    assert str(find_checkpoint(tmp_path / "reward" / "version_0")) in capsys.readouterr().out
    if command == "predict":
        assert (run / "predictions.jsonl").read_text().count("\n") > 10
    assert not list(Path().iterdir())  # nothing is left in the working directory


def test_evaluate_generate_moderate_filter_and_calibrate_take_moved_runs(
    moved: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"--data={world}"
    out = tmp_path / "evaluated"
    command = [*Run(world, moved).evaluate("supervised"), "--max_new_tokens=4", f"--output={out}"]
    assert entry.main(command) == 0
    said = capsys.readouterr().out
    for role in ("policy", "reward model", "cost model"):
        assert f"{role}: {moved}" in said
    assert said.count("(step 2)") == 4  # the start is a policy, too
    assert {row["kl"] for row in response_rows(out, "supervised")} == {0}
    policy = f"--policy={moved / 'supervised'}"
    guard = f"--guard={moved / 'guard'}"
    assert (
        entry.main(
            ["calibrate", guard, data, f"--train_data={world}", "--split=validation", "--fpr=0.5", "--review_fpr=0.6"]
        )
        == 0
    ), capsys.readouterr().err
    responses = f"--output={tmp_path / 'responses.jsonl'}"
    assert entry.main(["generate", policy, guard, data, responses, "--max_new_tokens=4", "--rounds=0"]) == 0
    assert entry.main(["moderate", guard, f"--input={world}", "--split=test", f"--output={tmp_path / 'v.jsonl'}"]) == 0
    assert entry.main(["filter", guard, f"--input={world}", "--splits=test", f"--output={tmp_path / 'kept'}"]) in (0, 2)
    said = capsys.readouterr().out
    assert said.count(f"guard: {moved / 'guard'}") == 4


@pytest.mark.slow
def test_later_stages_start_from_moved_runs(moved: Path, world: Path, tmp_path: Path) -> None:
    out = f"--trainer.logger.init_args.save_dir={tmp_path / 'out'}"
    cli.main(
        stage_command("safe_dpo", world, moved, out, f"--model.init_args.reference={moved / 'supervised'}", steps=1)
    )
    tiny = ("--model.init_args.start.prompts=4", "--model.init_args.start.min_sign_accuracy=0")
    short = ("--model.init_args.sampling.max_new_tokens=4", "--trainer.limit_val_batches=0")
    cli.main(
        stage_command(
            "ppo_lag", world, moved, out, *tiny, *short, "--data.init_args.demonstration_batch_size=2", steps=1
        )
    )
    policy = copy_run(tmp_path / "out" / "ppo_lag", tmp_path / "policy", elsewhere)
    load_backbone(policy)  # needs neither of the models it was trained with


def test_a_moved_model_is_the_same_to_the_bit(moved: Path, policy_stages: Path) -> None:
    for stage in STAGES:
        before, after = load_run(policy_stages / stage).state_dict(), load_run(moved / stage).state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_tokenizer_comes_out_of_the_checkpoint_alone(moved: Path, world: Path) -> None:
    file = find_checkpoint(moved / "reward")
    ours, given = load_tokenizer(str(file)), load_tokenizer(str(world / "tokenizer"))
    assert ours.get_vocab() == given.get_vocab()
    text = "is this <image> safe"
    assert ours(text)["input_ids"] == given(text)["input_ids"]
    assert set(read_checkpoint(file)["sources"]["files"]["tokenizer"]) >= {"tokenizer.json", "tokenizer_config.json"}
