"""A pipeline of commands: order, what is repeated, and how it fails."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safe_rlhf_v.demo import steps as module
from safe_rlhf_v.demo.processes import CommandError, cpu_seconds
from safe_rlhf_v.demo.processes import _environment as started_process
from safe_rlhf_v.demo.steps import Step, run_steps


def started(text: str) -> list[str]:
    """Names of the steps that began, in order."""
    words = [line.split() for line in text.splitlines() if line.startswith("step")]
    return [word[4] for word in words if word[5:] == ["about", "it"]]


def pipeline(last: str = "--version") -> list[Step]:
    """Two steps that read from the first, and one that reads from both."""
    return [
        Step("first", "about it", ["--version"]),
        Step("second", "about it", ["--help"], ("first",)),
        Step("third", "about it", ["fit", "--help"], ("first", "elsewhere")),
        Step("last", "about it", [last], ("second", "third")),
    ]


@pytest.mark.parametrize("cores", [1, 3])
def test_what_is_done_is_not_repeated(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "cores", lambda: cores)
    before = cpu_seconds()
    run_steps(pipeline(), tmp_path)
    text = capsys.readouterr().out
    assert started(text) == ["first", "second", "third", "last"] and "step  4 of 4" in text
    assert (tmp_path / "output" / "second.log").read_text().startswith("$ python -m safe_rlhf_v --help\n")
    assert "safe_rlhf_v" in (tmp_path / "output" / "last.log").read_text()
    assert cpu_seconds() > before

    run_steps(pipeline(), tmp_path)
    assert capsys.readouterr().out == "4 of 4 steps are done already\n"
    (tmp_path / "steps" / "second.json").unlink()  # as if interrupted
    run_steps(pipeline(), tmp_path)
    assert started(capsys.readouterr().out) == ["second", "last"]
    run_steps(pipeline("--help"), tmp_path)  # another option of the last one
    assert started(capsys.readouterr().out) == ["last"]


def test_a_step_is_repeated_if_a_file_of_its_was_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration, one that this one names, or a file that people edit; a note without files tells of the command alone."""
    config = tmp_path / "stage.yaml"
    inner = tmp_path / "backbone.yaml"
    rated = tmp_path / "rated.csv"
    config.write_text("model: {backbone: backbone.yaml}  # as in other.yaml\n")
    inner.write_text("width: 8\n")
    (tmp_path / "other.yaml").write_text("a: 1\n")
    command = ["--version", f"--config={config}"]
    steps = [Step("first", "about it", command), Step("last", "about it", ["--help"], ("first",), reads=(rated,))]

    def repeated() -> list[str]:
        run_steps(steps, tmp_path / "runs")
        return started(capsys.readouterr().out)

    assert repeated() == ["first", "last"] and repeated() == []
    (tmp_path / "other.yaml").write_text("a: 2\n")  # only a comment names it
    assert repeated() == []
    for file, text, names in (
        (config, "model: {backbone: backbone.yaml, lr: 9}\n", ["first", "last"]),
        (inner, "width: 9\n", ["first", "last"]),
        (config, "[", ["first", "last"]),
        (rated, "id,safety\n", ["last"]),
        (rated, "id,safety\na,1\n", ["last"]),
    ):
        file.write_text(text)
        assert repeated() == names and repeated() == []
    for name in ("first", "last"):
        note = tmp_path / "runs" / "steps" / f"{name}.json"
        note.write_text(json.dumps({"command": json.loads(note.read_text())["command"], "cpu_seconds": 1.0}))
    rated.unlink()
    assert repeated() == []


def test_what_reads_from_a_repeated_step_is_repeated_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 1)
    run_steps(pipeline(), tmp_path)
    other = Step("first", "about it", ["--help"])
    with pytest.raises(CommandError):  # ends behind the first of them
        run_steps([other, Step("broken", "about it", ["nonsense"]), *pipeline()[1:]], tmp_path)
    capsys.readouterr()
    run_steps([other, *pipeline()[1:]], tmp_path)
    assert started(capsys.readouterr().out) == ["second", "third", "last"]


def test_a_result_says_that_a_step_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "manifest.json"
    result.touch()
    run_steps([Step("world", "about it", ["nonsense"], result=result)], tmp_path)
    assert started(capsys.readouterr().out) == []


def test_a_step_that_fails_ends_the_pipeline_and_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        CommandError, match=r"nonsense failed \(exit status 2\); all of its output: .*last.log"
    ) as error:
        run_steps(pipeline("nonsense"), tmp_path)
    assert any("unknown command 'nonsense'" in line for line in error.value.problems)
    capsys.readouterr()
    run_steps(pipeline(), tmp_path)
    assert started(capsys.readouterr().out) == ["last"]


def test_what_is_started_leaves_ctrl_c_to_who_started_it() -> None:
    """Its processes would print a traceback each; the pipeline stops them."""
    before = signal.getsignal(signal.SIGINT)
    with started_process():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert signal.getsignal(signal.SIGINT) == before
    with ThreadPoolExecutor(1) as pool:  # where Python takes no handler
        assert pool.submit(lambda: started_process().__enter__()).result() is None
