"""Bytes of pictures: pixels, what the tower holds while it runs, and the features that stay.

Shapes: p patches of a picture, h width of the tower, I width of its MLP.
"""

import math
from typing import Any, NamedTuple


class VisionSize(NamedTuple):
    """Numbers of a picture.

    Attributes:
        tokens: As the language model receives it.
        patches: As the tower reads it.
        pixel_values: Numbers of its preprocessed pixels.
        tower: Numbers that the tower holds at most without a graph.
        graph: Numbers that it keeps for a backward pass.
    """

    tokens: int
    patches: int
    pixel_values: int
    tower: int
    graph: int


def vision_size(config: Any, max_pixels: int | None = None, tokens: int | None = None) -> VisionSize:
    """Numbers of the largest picture.

    Without a graph a block holds its input, the residual, queries, keys, values and the attention's output (6 h per patch),
    or two states and the MLP's widened ones (2 h + 3 I); families that pick a hidden layer keep the states of all blocks. For
    a backward pass each block keeps 8 h + 2 I numbers per patch: the inputs of both norms and of all linear layers, queries,
    keys, values and the activation's input (Korthikanti et al., arXiv 2205.05198, section 4.1, without dropout and, as
    attention is fused, without its scores).

    Args:
        config: Of the model.
        max_pixels: Largest area of a resized picture, for families with a pixel budget.
        tokens: Of a picture; ``None`` if the config says it.

    Raises:
        ValueError: If neither does.
    """
    vision = config.vision_config
    patch = _one(vision.patch_size)
    merge = int(getattr(vision, "spatial_merge_size", 1) or 1)
    image = _one(getattr(vision, "image_size", None) or 0)
    stated: Any = getattr(config, "mm_tokens_per_image", None) or getattr(config, "image_seq_length", None)
    if tokens is None and max_pixels:
        tokens = max_pixels // (patch * merge) ** 2
    elif tokens is None and config.model_type in ("llava", "gemma3") and (stated or image):
        tokens = int(stated) if stated and config.model_type != "llava" else (image // patch) ** 2
    if tokens is None:
        raise ValueError(
            f"model_type {config.model_type!r}: its config does not say how many tokens a picture has; give --image_tokens"
        )
    patches = (image // patch) ** 2 if image and not max_pixels else tokens * merge**2
    if config.model_type == "internvl" and stated:  # its processor, not its config, says into how many tiles
        patches *= max(1, math.ceil(tokens / int(stated)))
    depth = int(getattr(vision, "num_hidden_layers", 0) or getattr(vision, "depth", 0))
    h = int(getattr(vision, "embed_dim", None) or vision.hidden_size)
    wide = int(getattr(vision, "intermediate_size", None) or h * getattr(vision, "mlp_ratio", 4))
    collected = depth * h if hasattr(config, "vision_feature_layer") else 0
    times = int(getattr(vision, "temporal_patch_size", 1) or 1)
    return VisionSize(
        tokens,
        patches,
        patches * patch**2 * 3 * times,
        patches * (max(6 * h, 2 * h + 3 * wide) + collected),
        patches * depth * (8 * h + 2 * wide),
    )


def _one(value: Any) -> int:
    """A size that may be given for both axes."""
    return int(value[0] if isinstance(value, (list, tuple)) else value)
