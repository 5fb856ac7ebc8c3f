"""The whole pipeline and the comparison, every stage, on a tiny world with two steps each."""

from pathlib import Path

import pytest
from tests.demo.conftest import SIZES

from safe_rlhf_v.demo import compare, quickstart

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, configs: Path) -> list[str]:
    """Options of both commands."""
    root = tmp_path_factory.mktemp("quickstart")
    return [f"--data={root / 'world'}", f"--root={root / 'runs'}", f"--configs={configs}"]


def test_the_quickstart_runs_every_stage_and_prints_the_table(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert quickstart.main([*folders, f"--sizes={SIZES}"]) == 0
    text = capsys.readouterr().out
    first, *_, last = (line for line in text.splitlines() if line)
    assert "synthetic" in first and "CPU-seconds and ten minutes" in text and "python -m safe_rlhf_v compare" in last
    assert all(f"step {number:>2} of 14" in text for number in range(1, 15))
    assert "tensorboard --logdir" in text
    for row in (
        "reward ranking, against the truth",
        "seven levels, accuracy",
        "filtered and regenerated",
        "PPO-Lagrangian",
    ):
        assert row in text
    results = Path(folders[1].partition("=")[2]) / "results.txt"
    assert results.read_text() in text

    assert quickstart.main([*folders, f"--sizes={SIZES}"]) == 0
    again = capsys.readouterr().out
    assert "14 of 14 steps are done already" in again and results.read_text() in again


def test_compare_goes_on_from_the_quickstart(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.main([*folders, f"--sizes={SIZES}"]) == 0
    capsys.readouterr()
    assert compare.main([*folders, "--methods", "grpo_lag", "sacpo"]) == 0
    text = capsys.readouterr().out
    assert "9 of 15 steps are done already" in text
    for row in ("supervised start", "PPO-Lagrangian", "constrained GRPO", "DPO, helpful", "SACPO (helpful, then safe)"):
        assert row in text
    assert "SafeDPO" not in text


def test_the_order_of_the_methods_is_that_of_the_table() -> None:
    assert [method.name for method in compare.choose(["sacpo"])] == ["supervised", "ppo_lag", "dpo_helpful", "sacpo"]
    assert compare.choose([]) == compare.METHODS


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (quickstart.main, ["--configs=nowhere"], "--configs nowhere: holds no supervised.yaml"),
        (quickstart.main, ["--sizes=nonsense=3"], "unknown split 'nonsense'"),  # a step fails
        (compare.main, ["--methods", "ppo"], "--methods ppo: there is no such method"),
    ],
)
def test_failures_are_told_and_have_a_status(
    command: object, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(command)
    assert command([f"--data={tmp_path / 'world'}", f"--root={tmp_path / 'runs'}", *options]) == 2
    assert message in capsys.readouterr().err
