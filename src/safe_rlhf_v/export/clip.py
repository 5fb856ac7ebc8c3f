"""The LLaVA-like backbone with an open_clip tower, with or without a head, as a folder with a loader of its own."""

from pathlib import Path
from typing import Any

import torch

from safe_rlhf_v.models.clip_decoder import ClipDecoder
from safe_rlhf_v.models.clip_pair import without_weights
from safe_rlhf_v.models.heads import EvidenceHead, ScalarHead
from safe_rlhf_v.models.lora import merge_adapters


def check_tower(backbone: ClipDecoder) -> None:
    """Raises: ValueError: If only files elsewhere say what the tower looks like."""
    name = backbone.tower.settings.name or ""
    if ":" in name:
        raise ValueError(
            f"the tower {name[:100]} is described by files that open_clip would read elsewhere, so the folder could not stand "
            "alone; name the tower by open_clip's own name, or by vision_cfg"
        )


def write_clip(backbone: ClipDecoder, head: Any | None, folder: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    """Write decoder, tokenizer, tower and head; gives the settings that the loader reads.

    Args:
        backbone: Changed: its adapters are merged.
        head: Of a reward, cost or guard model.
        folder: Empty.
        dtype: Of the decoder's weights; ``None`` leaves them as they are.
    """
    from safetensors.torch import save_file

    tower = without_weights(backbone.tower.settings, backbone.tower.visual)
    settings: dict[str, Any] = {
        "tower": {**tower, "image_size": backbone.tower.image_size},
        "slots": None
        if backbone.resampler is None
        else {"slots": len(backbone.resampler.queries), "width": backbone.image_shape[1]},
        "image_shape": backbone.image_shape,
        "prompt": prompt_form(backbone),
    }
    if dtype == torch.float32:
        backbone.decoder.to(dtype)
    merge_adapters(backbone.decoder)
    if dtype is not None:
        backbone.decoder.to(dtype)
    backbone.save_pretrained(folder)
    if head is not None:
        save_file({k: v.detach().contiguous() for k, v in head.state_dict().items()}, folder / "score.safetensors")
        evidence = isinstance(head, EvidenceHead)
        settings["head"] = {"kind": "evidence", "floor": head.floor} if evidence else {"kind": "linear"}
    return settings


def known_head(head: Any) -> bool:
    """Whether the loader computes what a head computes; a subclass may compute anything."""
    return type(head) in (ScalarHead, EvidenceHead)


def prompt_form(backbone: ClipDecoder) -> dict[str, Any]:
    """How a prompt and a response are written, for the loader."""
    return {
        **backbone.prompt_form,
        "never_in_text": sorted(backbone.never_in_text),
        "banned_ids": list(backbone.banned_ids),
        "pad_id": backbone.pad_id,
        "max_length": backbone.most_tokens,
    }
