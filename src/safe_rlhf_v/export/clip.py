"""The LLaVA-like backbone with an open_clip tower, with or without a head, as a folder with a loader of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.models.clip_decoder import ClipDecoder
from safe_rlhf_v.models.clip_pair import without_weights
from safe_rlhf_v.models.heads import EvidenceHead, ScalarHead
from safe_rlhf_v.models.lora import merge_adapters
from safe_rlhf_v.records.batches import Prompts

_PROBES = ("what is this", "can i drink it", "is this safe for a child")


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
    """Token ids around a question, without a picture and with one.

    Raises:
        ValueError: If prompts are not written as a head, the question and a tail.
    """
    size = backbone.tower.image_size
    picture = torch.zeros(size, size, 3, dtype=torch.uint8)
    frames = [_around(backbone, images) for images in ((), (picture,))]
    if frames[0][1] != frames[1][1]:
        raise ValueError("prompts with and without a picture end differently: this template is not exported")
    tokenizer = backbone.tokenizer
    special = {*tokenizer.all_special_ids, *backbone.banned_ids} - {tokenizer.unk_token_id}
    limits = [length for length in (backbone.max_length, backbone.context_length) if length is not None]
    return {
        "head": [head for head, _ in frames],
        "tail": frames[0][1],
        "image_id": backbone.image_id,
        "never_in_text": sorted(special),
        "banned_ids": list(backbone.banned_ids),
        "end_id": backbone.eos_id,
        "pad_id": backbone.pad_id,
        "max_length": min(limits) if limits else None,
    }


def _around(backbone: ClipDecoder, images: tuple[Tensor, ...]) -> tuple[list[int], list[int]]:
    """Token ids before and after a question; they are the same for every question."""

    def prompt(question: str) -> list[int]:
        tokens, _ = backbone.prepare_prompts(Prompts((images,), (("probe",) * len(images),), (question,)))
        return tokens.ids[0]

    asked = {question: backbone.text_ids(question) for question in _PROBES}
    whole_prompts = {question: prompt(question) for question in _PROBES}
    first = _PROBES[0]
    for at in range(len(whole_prompts[first]) - len(asked[first]), -1, -1):
        head = whole_prompts[first][:at]
        tail = whole_prompts[first][at + len(asked[first]) :]
        if all([*head, *asked[question], *tail] == whole_prompts[question] for question in _PROBES):
            return head, tail
    raise ValueError("prompts are not written as a head, the question and a tail: this template is not exported")
