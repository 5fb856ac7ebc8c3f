"""A pipeline: commands that depend on one another, several at a time; what is done already is not repeated."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from safe_rlhf_v.demo.processes import Job, finished
from safe_rlhf_v.records.user_files import locked_folder

MOST_AT_A_TIME = 4
_YAML = (".yaml", ".yml")


class Step(NamedTuple):
    """One command of a pipeline.

    Attributes:
        name: Of the step; its log file is named so.
        about: What it is for.
        command: Command line without the program.
        after: Names of the steps whose results it reads; those that are not part of the pipeline are done already.
        result: A file that the command writes last and that says that the step is done, whatever command wrote it.
        reads: Files beside its configurations that people edit; they may be missing.
    """

    name: str
    about: str
    command: Sequence[str]
    after: tuple[str, ...] = ()
    result: Path | None = None
    reads: tuple[Path, ...] = ()


def run_steps(steps: Sequence[Step], root: Path) -> None:
    """Run a pipeline in its order, as many steps at a time as there are cores.

    A step is done if the same command ended well before, its configurations and what it reads being what they are now, and so
    are the steps that it reads from. So an interrupted pipeline goes on where it stopped, and one with other options or edited
    files repeats what they concern. Of a step whose note says nothing about files only the command is compared.

    Args:
        steps: Every step behind those that it reads from.
        root: Folder of the runs; output goes to ``output/NAME.log``, what is done is noted in ``steps/NAME.json``.

    Raises:
        CommandError: If a command fails.
        FileError: If another process is running a pipeline there.
    """
    with locked_folder(root):
        _run_all(steps, root)


def _run_all(steps: Sequence[Step], root: Path) -> None:
    waiting = _to_do(steps, root)
    board = Board(len(steps), done=len(steps) - len(waiting))
    numbers = {step.name: number for number, step in enumerate(steps, start=1)}
    running: dict[Job, tuple[Step, float, dict[str, str]]] = {}
    jobs: list[Job] = []
    for step in waiting:  # also those further back, whose results are of what is replaced now, should it be interrupted
        _note(root, step).unlink(missing_ok=True)

    def start() -> None:
        """Start what can run now."""
        busy = {step.name for step, *_ in running.values()} | {step.name for step in waiting}
        for step in [step for step in waiting if not busy & set(step.after)][: cores() - len(jobs)]:
            waiting.remove(step)
            files = _contents(step)  # before the command reads them: what is edited meanwhile counts as edited
            job = Job(step.command, root / "output" / f"{step.name}.log")
            running[job] = (step, time.monotonic(), files)
            jobs.append(job)
            board.started(numbers[step.name], step)

    start()
    for job in finished(jobs, board.interval, lambda: board.tick(step.name for step, *_ in running.values())):
        step, began, files = running.pop(job)
        _note(root, step).parent.mkdir(exist_ok=True)
        note = {"command": list(step.command), "files": files, "cpu_seconds": round(job.seconds, 1)}
        _note(root, step).write_text(json.dumps(note, indent=1) + "\n")
        board.ended(numbers[step.name], step, time.monotonic() - began, job.seconds)
        start()


def cores() -> int:
    """How many steps run at a time."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, MOST_AT_A_TIME)


class Board:
    """What is shown while a pipeline runs.

    Attributes:
        interval: Seconds between two calls of :meth:`tick`; ``None`` where nobody watches.
    """

    def __init__(self, total: int, done: int) -> None:
        """Start the clock.

        Args:
            total: Number of steps.
            done: How many of them need not run.
        """
        self._total = total
        self._began = time.monotonic()
        self.interval = 1.0 if sys.stdout.isatty() else None
        if done:
            print(f"{done} of {total} steps are done already", flush=True)

    def started(self, number: int, step: Step) -> None:
        """Say that a step begins."""
        self._say(number, step, step.about)

    def ended(self, number: int, step: Step, seconds: float, cpu: float) -> None:
        """Say that a step is done, and the time used."""
        self._say(number, step, f"done in {seconds:.0f} s ({cpu:.0f} CPU-seconds); {self._clock()} since the start")

    def tick(self, running: Iterable[str]) -> None:
        """Show the clock, in one line that the next one replaces."""
        print(f"\r\033[K{self._clock()}  running: {', '.join(running)}", end="", flush=True)

    def _say(self, number: int, step: Step, text: str) -> None:
        replace = "" if self.interval is None else "\r\033[K"
        print(f"{replace}step {number:>2} of {self._total}  {step.name:<20}{text}", flush=True)

    def _clock(self) -> str:
        seconds = round(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02d}"


def _to_do(steps: Sequence[Step], root: Path) -> list[Step]:
    """Steps that are not done, and those that read from them."""
    waiting: list[Step] = []
    for step in steps:
        if not _is_done(step, root) or {other.name for other in waiting} & set(step.after):
            waiting.append(step)
    return waiting


def _is_done(step: Step, root: Path) -> bool:
    """Whether the step's own command has ended well, and its files are still those that it read."""
    if step.result is not None:
        return step.result.exists()
    try:
        noted = json.loads(_note(root, step).read_text())
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(noted, dict) or noted.get("command") != list(step.command):
        return False
    return "files" not in noted or noted["files"] == _contents(step)  # earlier versions noted no files


def _contents(step: Step) -> dict[str, str]:
    """Hash of what a step reads and of its configurations, with those that they name in turn; "" of a file that is not there."""
    options = (word.partition("=") for word in step.command)
    pending = [*step.reads, *(Path(value) for _, _, value in options if value.endswith(_YAML))]
    hashes: dict[str, str] = {}
    while pending:
        file = pending.pop()
        if str(file) in hashes:
            continue
        content = file.read_bytes() if file.is_file() else None
        hashes[str(file)] = "" if content is None else hashlib.sha256(content).hexdigest()[:16]
        if content is not None and file.suffix in _YAML:
            included = (file.parent / name for name in _scalars(content) if name.endswith(_YAML))
            pending += [path for path in included if path.is_file()]
    return hashes


def _scalars(content: bytes) -> list[str]:
    """Keys and values of a YAML file, without its comments; none of a broken one, which the command itself refuses."""
    try:
        return [token.value for token in yaml.scan(content) if isinstance(token, yaml.ScalarToken)]
    except yaml.YAMLError:
        return []


def _note(root: Path, step: Step) -> Path:
    """Where it is noted that a step is done."""
    return root / "steps" / f"{step.name}.json"
