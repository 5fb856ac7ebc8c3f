"""The interface of a model that reads prompts and responses, as guards need it; backbones extend it.

Also here: rows that a model's processor refuses, found one by one, so that their records can be named or left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from safe_rlhf_v.models.layout import PromptTokens
from safe_rlhf_v.models.sources import StoredSources
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records.batches import Prompts

Result = TypeVar("Result")


class Reader(nn.Module, ABC):
    """Reads prompts and responses and returns hidden states; it need not generate.

    Attributes:
        tokenizer: The Hugging Face tokenizer.
        hidden_size: D.
        image_shape: (P, D_image) of ``ResponseStates.images``.
        max_length: Maximum number of tokens that are read; ``None`` for no limit.
        context_length: Number of positions of the network; ``None`` if it is not known.
        base: The pretrained model (hub name and revision, or folder) from which every frozen tensor can be rebuilt;
            ``None`` if there is none. Checkpoints omit those tensors.
    """

    tokenizer: Any
    hidden_size: int
    image_shape: tuple[int, int]
    max_length: int | None = None
    context_length: int | None = None
    base: str | None = None

    def stored_sources(self) -> StoredSources:
        """What a checkpoint stores so that this can be rebuilt from the checkpoint alone; by default nothing.

        A class whose constructor reads files returns them here, and reads them with
        :func:`~safe_rlhf_v.models.sources.load_tokenizer`, which accepts a checkpoint in place of a folder.
        """
        return StoredSources({}, {})

    @abstractmethod
    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, Any]:
        """Tokenise prompts.

        Raises:
            ValueError: If a prompt does not fit.
        """

    @abstractmethod
    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text: a special token written out in it is treated as text."""

    @abstractmethod
    def response_ids(self, text: str, prompt_length: int = 0) -> list[int]:
        """Token ids of a response and its end token, truncated to the maximum length."""

    @abstractmethod
    def prepare(self, prompts: Prompts, responses: Sequence[Sequence[str]], *, packed: bool = False) -> Any:
        """Inputs of :meth:`response_states`, on the CPU, as a nested tuple of tensors.

        Its field ``truncated`` (N,) marks responses that did not fit.

        Raises:
            RefusedRows: Naming the rows that cannot be prepared.
        """

    @abstractmethod
    def response_states(self, prepared: Any, *, log_probs: bool = False) -> ResponseStates:
        """Run one forward pass and gather the states of the N responses, prompt by prompt."""

    def freeze_unused_lm_head(self) -> None:
        """Freeze tensors that only the output of a language model needs; by default there are none."""


class RefusedRows(ValueError):
    """Some rows of a batch cannot be prepared for the model.

    Attributes:
        problems: What is wrong, by row number.
    """

    def __init__(self, problems: dict[int, str]) -> None:
        """Compose the message.

        Args:
            problems: What is wrong, by row number.
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
    """``prepare(prompts, responses)``; if it fails, each row is tried alone to find the refused ones.

    Args:
        prepare: Tokenises and preprocesses a batch.
        prompts: B prompts.
        responses: Responses of each prompt, or ``None``.

    Raises:
        RefusedRows: If rows fail alone, with whatever exception: a processor can raise any.
        Exception: As ``prepare`` raised it, if every row alone succeeds.
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
                problems[row] = _one_line(error)
        if not problems:
            raise
    raise RefusedRows(problems)


def _one_line(error: Exception) -> str:
    """An exception in one line, with its type unless it is a plain ValueError."""
    text = " ".join(str(error).split())[:300]
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}"
