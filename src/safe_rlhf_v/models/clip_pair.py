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
        embed_dim: E, the size of both towers' output; only without ``name``.
        vision_cfg: The ``vision_cfg`` of open_clip; only without ``name``.
        text_cfg: The ``text_cfg`` of open_clip (``context_length``, ``width``, ``heads``, ``layers``); only without ``name``.
        mean: Mean of the red, green and blue pixels the tower was trained on, 0..1; ``None`` for what ``name`` says.
        std: Standard deviation of those pixels, 0..1; ``None`` likewise.
    """

    name: str | None = None
    pretrained: str | None = None
    embed_dim: int = 64
    vision_cfg: dict[str, Any] = field(default_factory=dict)
    text_cfg: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def build_pair(clip: ClipSettings, tokenizer: Any) -> tuple[Any, Any]:
    """Build the two towers.

    Raises:
        ValueError: If the text tower does not fit the tokenizer, or does not pool at the end token.
    """
    refuse_weights_without_name("clip", clip)
    import open_clip  # takes seconds: only when towers are built
    from open_clip.model import CustomTextCLIP

    end = tokenizer.eos_token_id
    if clip.name:
        model = open_clip.create_model(clip.name, pretrained=clip.pretrained, force_custom_text=True)
    else:
        text = {"vocab_size": len(tokenizer), "pool_type": "eos", "eos_id": end, "pad_id": tokenizer.pad_token_id or 0}
        model = CustomTextCLIP(clip.embed_dim, dict(clip.vision_cfg), {**clip.text_cfg, **text})
        for name, parameter in model.visual.named_parameters():
            if name.endswith("bn3.weight"):  # residual branches start at zero in open_clip; a shallow tower needs them
                torch.nn.init.ones_(parameter)
    text_tower = model.text
    pooling = getattr(text_tower, "pool_type", "unknown")
    if pooling not in ("argmax", "eos"):
        raise ValueError(f"{clip.name}: its text tower pools by {pooling!r}, only the end token is supported")
    if len(tokenizer) > text_tower.vocab_size or (pooling == "argmax" and end != text_tower.vocab_size - 1):
        raise ValueError(
            f"tokenizer: {len(tokenizer)} tokens, end token {end}; the text tower of {clip.name} has "
            f"{text_tower.vocab_size}: name the tokenizer of those weights"
        )
    return model.visual, text_tower


def refuse_weights_without_name(option: str, settings: Any) -> None:
    """Refuse weights that would not be loaded.

    Args:
        option: Name of the setting.
        settings: :class:`ClipSettings` or ``TowerSettings``.

    Raises:
        ValueError: If ``pretrained`` stands without ``name``.
    """
    if settings.pretrained and not settings.name:
        raise ValueError(
            f"{option}.pretrained {settings.pretrained}: loads weights of an open_clip model, so {option}.name must name it; "
            "towers of vision_cfg are built from scratch"
        )


def pixel_statistics(visual: Any, name: str, override: tuple[float, ...] | None = None) -> Tensor:
    """(1, 3, 1, 1) mean or standard deviation of the pixels the tower was trained on, 0..255; CLIP's where it does not say.

    Args:
        visual: The tower.
        name: ``mean`` or ``std``.
        override: Three values in 0..1 that are used instead.
    """
    return torch.tensor(_statistics(visual, name, override), dtype=torch.float32).view(1, 3, 1, 1) * 255


def _statistics(visual: Any, name: str, override: tuple[float, ...] | None) -> list[float]:
    default = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    trunk = getattr(getattr(visual, "trunk", None), "pretrained_cfg", None) or {}  # of towers from timm
    preprocess = getattr(visual, "preprocess_cfg", None) or trunk
    return [float(value) for value in (override if override is not None else preprocess.get(name, default[name]))]


def without_weights(settings: Any, visual: Any) -> dict[str, Any]:
    """Settings that build the same towers without downloading weights, for checkpoints that hold the weights.

    Args:
        settings: :class:`ClipSettings` or ``TowerSettings``.
        visual: The image tower that was built from them.
    """
    options = {**asdict(settings), "pretrained": None}
    if "weights" in options:
        options["weights"] = None
    if options["vision_cfg"].get("timm_model_pretrained"):
        options["vision_cfg"] = {**options["vision_cfg"], "timm_model_pretrained": False}
    return {**options, **{name: _statistics(visual, name, getattr(settings, name)) for name in ("mean", "std")}}
