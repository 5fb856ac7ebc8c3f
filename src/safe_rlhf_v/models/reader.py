"""What a guard asks of the model that reads its inputs: less than a backbone, since nothing is generated."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.layout import PromptTokens
from safe_rlhf_v.models.sources import Kept
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records.batches import Prompts


class Reader(nn.Module, ABC):
    """A lighter module than a language model; every :class:`~safe_rlhf_v.models.Backbone` counts as one.

    Attributes:
        tokenizer: The Hugging Face tokenizer.
        hidden_size: D.
        image_shape: (P, D_image) of ``ResponseStates.images``.
        max_length: Most tokens that are read; ``None`` for no limit.
        context_length: Most tokens that the network was built for; ``None`` if that is not known.
        base: See :class:`~safe_rlhf_v.models.Backbone`.
    """

    tokenizer: Any
    hidden_size: int
    image_shape: tuple[int, int]
    max_length: int | None = None
    context_length: int | None = None
    base: str | None = None

    def kept(self) -> Kept:
        """What a checkpoint holds so that this can be built again from the file alone; by default nothing.

        A class whose constructor reads files gives them here, and reads them with
        :func:`~safe_rlhf_v.models.sources.load_tokenizer`, which takes a checkpoint for a folder.
        """
        return Kept({}, {})

    @abstractmethod
    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, Any]:
        """Tokenised prompts. Raises: ValueError: If one cannot be read whole."""

    @abstractmethod
    def text_ids(self, text: str) -> list[int]:
        """Token ids of text that is only text: a special token spelled out in it never becomes one."""

    @abstractmethod
    def response_ids(self, text: str, prompt_length: int = 0) -> list[int]:
        """Token ids of a response and its end token, truncated where they are more than can be read."""

    @abstractmethod
    def prepare(self, prompts: Prompts, responses: Sequence[Sequence[str]], *, packed: bool = False) -> Any:
        """Inputs of :meth:`response_states`, on the CPU, as a nested tuple of tensors; ``truncated`` marks what did not fit.

        Raises:
            RefusedRows: Naming the rows that cannot be prepared.
        """

    @abstractmethod
    def response_states(self, prepared: Any, *, log_probs: bool = False) -> ResponseStates:
        """One forward, read at the N responses, prompt by prompt."""

    def freeze_unused_lm_head(self) -> None:
        """Make what only a language model's output needs untrainable; by default there is none."""


Reader.register(Backbone)  # type: ignore[type-abstract]
