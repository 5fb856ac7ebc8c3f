"""A stage of the construction: it reads what earlier stages left in the working folder, and leaves something itself.

What is asked of pictures, models, judges and people is stored line by line, once; everything that follows from it (which
picture is a duplicate, which pair is too alike, which question leaks, which judge is faulty) is computed from these lines by
pure functions whenever it is needed, and never stored twice.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.construct.rubric import Rubric
from safe_rlhf_v.records.user_files import open_regular, printable
from safe_rlhf_v.scoring.judge import Usage


class Workspace(NamedTuple):
    """Where a data set is built, and what all stages share.

    Attributes:
        folder: The working folder.
        rubric: Categories, scales and policy.
        seed: Of everything that is drawn.
    """

    folder: Path
    rubric: Rubric
    seed: int = 0

    def rows(self, name: str) -> list[Row]:
        """Lines of a finished stage.

        Raises:
            ValueError: If it is not finished.
        """
        return Lines(self.folder, name).rows()

    def settings(self, name: str) -> Row:
        """Settings that a finished stage had. Raises: ValueError: If it is not finished."""
        return Lines(self.folder, name).settings()

    def has(self, name: str) -> bool:
        """Whether a stage is finished."""
        return Lines(self.folder, name).finished


class Planned(NamedTuple):
    """What a stage would ask.

    Attributes:
        stage: Name of the stage.
        who: Who is asked.
        what: For what.
        calls: How often, at most.
    """

    stage: str
    who: str
    what: str
    calls: int


class Stage(ABC):
    """One step from images to shards.

    A stage of your own is a subclass that reads the rows of earlier stages and writes its own. Its constructor takes plain data
    and components; a configuration lists stages by class path, in order.
    """

    name: ClassVar[str]
    """Of its files."""

    @abstractmethod
    def run(self, work: Workspace) -> dict[str, Any]:
        """Do the work that is not done yet; gives numbers to print.

        Args:
            work: The working folder.
        """

    def plan(self, counts: dict[str, int]) -> list[Planned]:
        """What would be asked, and how often at most.

        Args:
            counts: Numbers of ``images``, ``questions``, ``responses`` and ``pairs`` so far; the stage puts in its own.
        """
        return []


class RefusedToGoOn(RuntimeError):
    """Questions got no reply; the message says where and how to go on."""


class AskingStage(Stage):
    """A stage that asks one question after another and keeps every reply.

    Killed at any moment, it goes on where it stopped. Every row may have ``fault`` (why a reply is missing) and ``usage``
    (prompt tokens, completion tokens, cost).
    """

    on_failure: Literal["stop", "keep"] = "stop"
    """What to do where no reply came: stop, so that a later run asks again; or keep a row without a reply."""

    batch_size: int = 16

    @abstractmethod
    def tasks(self, work: Workspace) -> list[Row]:
        """What is to be done, plain data each, always in the same order."""

    @abstractmethod
    def do(self, work: Workspace, tasks: Sequence[Row]) -> Sequence[Row]:
        """One row for each task; it depends on nothing but the task, the settings and the batch."""

    @abstractmethod
    def summary(self, work: Workspace) -> dict[str, Any]:
        """Numbers to print of the finished stage."""

    def run(self, work: Workspace) -> dict[str, Any]:
        """See :class:`Stage`."""
        from tqdm import tqdm

        tasks = self.tasks(work)
        total = [0.0, 0.0, 0.0]

        with tqdm(total=len(tasks), unit="task", desc=self.name, disable=None) as bar:

            def progress(rows: Sequence[Row]) -> None:
                for row in rows:
                    for i, part in enumerate(row.get("usage", ())):
                        total[i] += part
                if any(total):
                    bar.set_postfix_str(f"{total[0] + total[1]:,.0f} tokens, cost {total[2]:.2f}", refresh=False)
                bar.update(len(rows))

            settings = {"class": type(self).__name__, "seed": work.seed, **settings_of(self)}
            Lines(work.folder, self.name).write(
                tasks, settings, self.batch_size, lambda batch: self._do(work, batch), progress
            )
        used = {"tokens": int(total[0] + total[1]), "cost": round(total[2], 6)} if any(total) else {}
        return {**self.summary(work), **used}

    def _do(self, work: Workspace, batch: Sequence[Row]) -> Sequence[Row]:
        rows = self.do(work, batch)
        failed = [row for row in rows if row.get("fault") == "failed"]
        if failed and self.on_failure == "stop":
            raise RefusedToGoOn(
                f"{self.name}: {len(failed)} of {len(rows)} questions got no reply ({failed[0].get('reply', '')!s:.200}); what "
                "came before is kept: run the same command again to go on, or set on_failure: keep"
            )
        return rows


HOW = frozenset(
    ("batch_size", "concurrency", "device", "give_up_after", "key_variable", "on_failure", "price_in", "price_out")
) | {"retries", "timeout"}
"""Options that may change while a stage goes on; the batch size is checked apart."""


def settings_of(component: Any) -> Row:
    """The settings of a stage or component as plain data: its public attributes, and what it reads (:meth:`Reads.content`).

    What changes how questions are sent, and not what is asked, is left out (:data:`HOW`).
    """
    settings = {
        name: _plain(value) for name, value in vars(component).items() if not name.startswith("_") and name not in HOW
    }
    return {**settings, "content": component.content()} if isinstance(component, Reads) else settings


@runtime_checkable
class Reads(Protocol):
    """A component that reads a file or run which somebody may change between a stop and the next start."""

    def content(self) -> str:
        """Short hash of what it reads: lines of another content are never mixed with those that are there."""


def file_content(path: str | Path) -> str:
    """Short hash of a file's bytes.

    Raises:
        FileError: If it is no readable file.
    """
    content = hashlib.sha256()
    with open_regular(Path(path)) as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return printable(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(one) for one in value)
    if hasattr(value, "__dict__"):
        return {"class": type(value).__name__, **settings_of(value)}
    return repr(value)


def add_usage(usages: Sequence[Usage]) -> dict[str, list[float]]:
    """The sum as a part of a row; nothing where nothing was counted."""
    total = [sum(usage[i] for usage in usages) for i in range(3)]
    return {"usage": [round(part, 9) for part in total]} if any(total) else {}
