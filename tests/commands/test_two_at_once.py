"""Two processes that would write the same files: the second is refused in one line, and what the first writes stays."""

from pathlib import Path

import pytest
from tests.commands.command_lines import base, preference, refused

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.demo.steps import Step, run_steps
from safe_rlhf_v.records.user_files import FileError, create, locked_folder, whole_file

BUSY = "another process is writing it"


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (["logger.init_args.version=0"], "supervised/version_0"),  # as two that start at the same moment
        (["callbacks=lightning.pytorch.callbacks.ModelCheckpoint", "callbacks.dirpath={out}/mine"], "mine"),
        (["logger=false", "default_root_dir={out}/plain"], "plain"),
    ],
    ids=["version", "dirpath", "no logger"],
)
def test_two_trainings_never_share_a_folder(
    options: list[str], folder: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*base(world, tmp_path), *(f"--trainer.{option.format(out=tmp_path)}" for option in options)]
    with locked_folder(tmp_path / folder):
        assert refused(args, capsys) == f"{tmp_path / folder}: {BUSY}; wait for it or name another output"
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("config.yaml"))
    assert entry.main(args) == 0
    assert list(tmp_path.rglob("*.ckpt"))


def test_a_training_that_saves_nothing_locks_nothing(world: Path, tmp_path: Path) -> None:
    nothing = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    with locked_folder(tmp_path):
        args = [*base(world, tmp_path), *nothing, f"--trainer.default_root_dir={tmp_path}"]
        assert entry.main(args) == 0


def test_two_predictions_never_share_a_file(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = preference("reward", world, tmp_path, "predict")
    file = tmp_path / "reward" / "predictions.jsonl"
    part = file.with_name(f"{file.name}.part-0")
    file.parent.mkdir()
    with create(part, file) as first:
        first.write(b"half a prediction")
        first.flush()
        assert BUSY in refused(args, capsys)
        assert part.read_bytes() == b"half a prediction"
        assert not file.exists()
    assert entry.main(args) == 0  # what an ended process left is replaced
    assert len(file.read_text().splitlines()) > 1
    assert not part.exists()


def test_two_evaluations_never_share_a_folder(
    world: Path, policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["evaluate", f"--policies.mine={policy_stages / 'supervised'}", f"--data={world}", f"--output={tmp_path}"]
    args += ["--max_new_tokens=4", "--pictures=real", "--modes=sampled"]
    with locked_folder(tmp_path):
        assert entry.main(args) == 2
        assert BUSY in capsys.readouterr().err.splitlines()[-1]
    assert entry.main(args) == 0
    assert not list(tmp_path.glob("*.part"))


def test_two_pipelines_never_share_a_folder(tmp_path: Path) -> None:
    with locked_folder(tmp_path), pytest.raises(FileError, match=BUSY):
        run_steps([Step("first", "about it", ["--version"])], tmp_path)
    assert not list(tmp_path.iterdir())


def half_written(path: Path) -> None:
    """A writer that fails."""
    with whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_a_whole_file_is_there_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt):
        half_written(path)
    assert not list(tmp_path.iterdir())
    with whole_file(path) as file:
        file.write(b"first")
        assert not path.exists()
        with pytest.raises(FileError, match=BUSY):
            half_written(path)
    assert path.read_bytes() == b"first"
    with pytest.raises(KeyboardInterrupt):
        half_written(path)
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("kind", ["leftover", "link", "dangling link"])
def test_what_stands_in_the_place_of_an_unfinished_file_is_replaced_and_never_written_through(
    kind: str, tmp_path: Path
) -> None:
    part = tmp_path / "file.part"
    victim = tmp_path / "victim"
    if kind == "leftover":
        part.write_text("of a killed process")
    else:
        part.symlink_to(victim)
    if kind == "link":
        victim.write_text("mine")
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not part.exists() and not part.is_symlink()
    assert victim.exists() == (kind == "link")
    if kind == "link":
        assert victim.read_text() == "mine"
