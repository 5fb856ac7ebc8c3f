"""A trained LLaVA-like backbone, taken from its folder as the base of adapters."""

from pathlib import Path
from typing import Any, Self

from safe_rlhf_v.models.clip_decoder import ClipDecoder, saved_settings
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sources import Kept


class SavedClipDecoder(ClipDecoder):
    """What :meth:`ClipDecoder.save_pretrained` wrote; checkpoints leave out what the folder gives back.

    YAML::

        backbone:
          class_path: safe_rlhf_v.models.SavedClipDecoder
          init_args:
            folder: runs/quickstart/base
            lora: {r: 16, alpha: 32}
    """

    def __init__(
        self,
        folder: str,
        lora: LoraSettings | None = None,
        freeze_tower: bool = True,
        freeze_projector: bool = True,
        freeze_decoder: bool = False,
        max_length: int | None = None,
        feature_cache: int = 0,
        dtype: str = "float32",
    ) -> None:
        """
        Args:
            folder: Written by ``save_pretrained``.
            lora: See :class:`ClipDecoder`.
            freeze_tower: See :class:`ClipDecoder`.
            freeze_projector: See :class:`ClipDecoder`.
            freeze_decoder: See :class:`ClipDecoder`.
            max_length: Most tokens of prompt + response; ``None`` takes what the folder says.
            feature_cache: See :class:`ClipDecoder`.
            dtype: See :class:`ClipDecoder`.

        Raises:
            ValueError: If the folder is not one of those.
        """
        settings = saved_settings(folder)
        super().__init__(
            **{**settings, "max_length": max_length or settings["max_length"]},
            freeze_tower=freeze_tower,
            freeze_projector=freeze_projector,
            freeze_decoder=freeze_decoder,
            lora=lora,
            feature_cache=feature_cache,
            dtype=dtype,
        )
        self.load_vision(folder)

    def kept(self) -> Kept:
        """Nothing: the folder is the base, tokenizer included."""
        return Kept({}, {})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """See :meth:`ClipDecoder.from_pretrained`."""
        return cls(str(folder), **options)
