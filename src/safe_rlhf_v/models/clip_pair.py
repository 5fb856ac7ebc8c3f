"""An image tower and a text tower of open_clip, by name or from scratch."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class ClipSettings:
    """Which two towers to build.

    Attributes:
        name: An open_clip model name, ``"local-dir:PATH"``, or ``None`` to build the two configurations from scratch.
        pretrained: An open_clip weight tag or a local file; only with ``name``.
        embed_dim: E; only without ``name``.
        vision_cfg: open_clip's ``vision_cfg``; only without ``name``.
        text_cfg: open_clip's ``text_cfg`` (``context_length``, ``width``, ``heads``, ``layers``); only without ``name``.
        mean: Mean of the red, green and blue pixels the tower was trained on, 0..1; ``None`` for what ``name`` says.
        std: Their standard deviation, likewise.
    """

    name: str | None = None
    pretrained: str | None = None
    embed_dim: int = 64
    vision_cfg: dict[str, Any] = field(default_factory=dict)
    text_cfg: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def build_pair(clip: ClipSettings, tokenizer: Any) -> tuple[Any, Any]:
    """The two towers.

    Raises:
        ValueError: If the text tower does not fit the tokenizer, or does not pool at the end token.
    """
    import open_clip  # slow (seconds): only when towers are really built
    from open_clip.model import CustomTextCLIP

    end = tokenizer.eos_token_id
    if clip.name:
        model = open_clip.create_model(clip.name, pretrained=clip.pretrained, force_custom_text=True)
    else:
        known = {"vocab_size": len(tokenizer), "pool_type": "eos", "eos_id": end, "pad_id": tokenizer.pad_token_id or 0}
        model = CustomTextCLIP(clip.embed_dim, dict(clip.vision_cfg), {**clip.text_cfg, **known})
        for name, parameter in model.visual.named_parameters():
            if name.endswith("bn3.weight"):  # residual branches start at zero in open_clip; a shallow tower needs them
                torch.nn.init.ones_(parameter)
    text = model.text
    pooling = getattr(text, "pool_type", "another way")
    if pooling not in ("argmax", "eos"):
        raise ValueError(f"{clip.name}: its text tower pools by {pooling!r}, only the end token is supported")
    if len(tokenizer) > text.vocab_size or (pooling == "argmax" and end != text.vocab_size - 1):
        raise ValueError(
            f"tokenizer: {len(tokenizer)} tokens, end token {end}; the text tower of {clip.name} has {text.vocab_size}: "
            "name the tokenizer of those weights"
        )
    return model.visual, text


def pixel_statistics(visual: Any, name: str, given: tuple[float, ...] | None = None) -> Tensor:
    """(1, 3, 1, 1) mean or standard deviation of the pixels the tower was trained on, 0..255; CLIP's own by default.

    Args:
        visual: The tower.
        name: ``mean`` or ``std``.
        given: Three values in 0..1 that are used instead.
    """
    return torch.tensor(_statistics(visual, name, given), dtype=torch.float32).view(1, 3, 1, 1) * 255


def _statistics(visual: Any, name: str, given: tuple[float, ...] | None) -> list[float]:
    default = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    known = getattr(visual, "preprocess_cfg", None) or {}
    return [float(value) for value in (given if given is not None else known.get(name, default[name]))]


def without_weights(settings: Any, visual: Any) -> dict[str, Any]:
    """Settings of towers that are built alike without fetching weights: these are in a checkpoint.

    Args:
        settings: :class:`ClipSettings` or ``TowerSettings``.
        visual: The image tower they gave.
    """
    found = {**asdict(settings), "pretrained": None}
    if found["vision_cfg"].get("timm_model_pretrained"):
        found["vision_cfg"] = {**found["vision_cfg"], "timm_model_pretrained": False}
    return {**found, **{name: _statistics(visual, name, getattr(settings, name)) for name in ("mean", "std")}}
