"""Rows of a batch that a model's processor refuses: found one by one, so that the record can be named or left out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from safe_rlhf_v.records.batches import Prompts

Result = TypeVar("Result")


class RefusedRows(ValueError):
    """Some rows of a batch cannot be prepared for the model.

    Attributes:
        problems: What is wrong, by the row's number.
    """

    def __init__(self, problems: dict[int, str]) -> None:
        """
        Args:
            problems: What is wrong, by the row's number.
        """
        row, problem = next(iter(problems.items()))
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"row {row} of the batch: {problem}{more}")
        self.problems = problems


def row_by_row(
    prepare: Callable[[Prompts, Sequence[Sequence[str]] | None], Result],
    prompts: Prompts,
    responses: Sequence[Sequence[str]] | None = None,
) -> Result:
    """``prepare(prompts, responses)``; if that fails, each row is tried alone to find out which ones are at fault.

    Args:
        prepare: Tokenises and preprocesses a batch.
        prompts: B prompts.
        responses: Per prompt its responses, or ``None``.

    Raises:
        RefusedRows: If rows fail alone, whatever the exception: a processor may raise any.
        Exception: As ``prepare`` raised it, if each row alone is fine.
    """
    try:
        return prepare(prompts, responses)
    except MemoryError:
        raise
    except Exception:
        problems: dict[int, str] = {}
        for row in range(len(prompts.questions)):
            try:
                prepare(prompts.take([row]), None if responses is None else [responses[row]])
            except Exception as error:
                problems[row] = said(error)
        if not problems:
            raise
    raise RefusedRows(problems)


def said(error: Exception) -> str:
    """An exception in one line; its type where the message may need it."""
    text = " ".join(str(error).split())[:300]
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}"
