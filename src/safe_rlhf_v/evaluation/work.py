"""What all steps of an evaluation share, and how each of them writes its lines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.construct.stage import RefusedToGoOn, file_content, settings_of
from safe_rlhf_v.evaluation.policies import Policy
from safe_rlhf_v.evaluation.prompts import PromptForm, PromptSet
from safe_rlhf_v.scoring.judge import Judge

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.models.sampling import SamplingOptions

Mode = Literal["sampled", "greedy", "matched"]
STOPS = ("failed", "unreadable")
"""Faults at which an evaluation stops, unless they are to be kept: what caused them can be mended."""


@dataclass
class Work:
    """One evaluation.

    Attributes:
        folder: Where it is written.
        prompts: The prompts.
        policies: By name.
        start: Name of the policy that the others are compared with; ``None`` for no comparisons.
        reference: Policy from which the divergence is measured: the start, or one that is not evaluated itself.
        judges: By name.
        sampling: How the mode ``sampled`` samples.
        modes: In which responses are drawn.
        pictures: What policies and judges are shown of each prompt.
        seed: Of everything that is drawn.
        batch_size: Prompts at a time.
        on_failure: What to do where a reply of a policy or judge fails: ``stop``, so that a later run asks again, or ``keep``.
    """

    folder: Path
    prompts: PromptSet
    policies: dict[str, Policy]
    start: str | None
    reference: Policy | None
    judges: dict[str, Judge]
    sampling: "SamplingOptions"
    modes: Sequence[Mode] = ("sampled", "greedy", "matched")
    pictures: Sequence[PromptForm] = ("real", "other", "blank", "none")
    seed: int = 0
    batch_size: int = 100
    on_failure: Literal["stop", "keep"] = "stop"

    @property
    def parts(self) -> list[Any]:
        """All policies and judges; the reference may be one of the policies."""
        return [*self.policies.values(), *([self.reference] if self.reference else []), *self.judges.values()]

    def rows(self, name: str) -> list[Row]:
        """Lines of a finished step."""
        return Lines(self.folder, name).rows()

    def write(
        self,
        name: str,
        tasks: Sequence[Row],
        settings: Row,
        do: Callable[[Sequence[Row]], list[Row]],
        note: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> None:
        """Do every task that has no line yet, with a progress bar; see :class:`~safe_rlhf_v.construct.lines.Lines`.

        Args:
            name: Of the file.
            tasks: What is to be done.
            settings: What else the lines depend on.
            do: From tasks to lines.
            note: Told the lines of every batch, those of earlier runs first.

        Raises:
            RefusedToGoOn: If a reply fails, unless failures are to be kept.
        """
        from tqdm import tqdm

        def checked(batch: Sequence[Row]) -> list[Row]:
            rows = do(batch)
            bad = next((row for row in rows if row.get("fault") in STOPS), None)
            if bad is not None and self.on_failure == "stop":
                raise RefusedToGoOn(_complaint(name, bad))
            return rows

        with tqdm(total=len(tasks), unit="line", desc=name, disable=None) as bar:

            def progress(rows: Sequence[Row]) -> None:
                note(rows)
                bar.update(len(rows))

            Lines(self.folder, name).write(tasks, {"seed": self.seed, **settings}, self.batch_size, checked, progress)


def _complaint(step: str, row: Row) -> str:
    """What failed, and how to go on."""
    who = f"judges.{row['judge']}" if "judge" in row else f"policies.{row['policy']}"
    why = " ".join(str(row.get("reply") or row["fault"]).split())[:200]
    return (
        f"{who}: {row['fault']} at record {row['key']} ({why}); what came before is kept: run the same command again to go "
        f"on, or let {step} count such failures with --on_failure keep"
    )


def described(components: Mapping[str, Any]) -> Row:
    """Class and settings of components by name, as lines depend on them."""
    return {
        name: {"class": f"{type(one).__module__}.{type(one).__qualname__}", **settings_of(one)}
        for name, one in components.items()
    }


def font_of(work: Work) -> Row:
    """The font of the text that is written into pictures, as lines depend on it."""
    font = work.prompts.font if "typographic" in work.pictures else None
    return {} if font is None else {"font": {"file": font, "content": file_content(font)}}


@contextmanager
def named(name: str) -> Iterator[None]:
    """Begin errors with the name of the policy or judge that they come from.

    Args:
        name: As it stands in the configuration.
    """
    try:
        yield
    except RefusedToGoOn:
        raise
    except (ValueError, OSError, RuntimeError) as error:  # a GPU without memory is a RuntimeError
        raise ValueError(f"{name}: {error}") from error
