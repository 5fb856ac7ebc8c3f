"""Everything about Hugging Face vision-language models that depends on the family or the transformers version.

All of it needs ``mm_encoder_outputs``, which transformers has since 5.18. The contract tests in
``tests/models/test_hf_contract.py`` run eight families against the installed version.

Shapes: M images, U units (tiles or patches; several make one image), P image tokens, D hidden; in masks B rows, L new tokens,
S = cached + new tokens.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.models.adapters import RememberAdapter
from safe_rlhf_v.models.sources import check_source, load_or_refuse, open_source
from safe_rlhf_v.models.types import ImageFeatures, ImageInputs

BIDIRECTIONAL_IMAGES = frozenset({"gemma3"})
"""Model types whose image tokens attend to each other in both directions."""

Masks = Tensor | dict[str, Tensor]

_TEXT_FIELDS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_UNIT_FIELDS = ("pixel_values", "pixel_attention_mask")
_PROJECTOR = re.compile(r"projector|connector|merger|image_newline")


# --- models ---------------------------------------------------------------------------------------------------------


def check_supported(model: Any) -> None:
    """Refuse a family that would run but give wrong results.

    Raises:
        ValueError: If features cannot be passed in, prompts are read bidirectionally or logits are rescaled.
    """
    kind = model.config.model_type
    text = model.config.get_text_config()
    accepted = inspect.signature(model.model.forward).parameters
    if "mm_encoder_outputs" not in accepted or not hasattr(model.model, "get_image_features"):
        raise ValueError(f"model_type {kind!r} takes no precomputed image features (mm_encoder_outputs): not supported")
    prefix = "token_type_ids" in accepted or getattr(text, "use_bidirectional_attention", None)
    if prefix and kind not in BIDIRECTIONAL_IMAGES:
        raise ValueError(f"model_type {kind!r} reads its prompt bidirectionally: not supported")
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(text, name, None) not in (None, 1, 1.0):
            raise ValueError(f"model_type {kind!r} rescales its logits ({name}): not supported")


def part_of(name: str) -> str:
    """``language``, ``projector`` or ``tower``: the part of the model a parameter of that name belongs to."""
    if re.search(r"(^|\.)(language_model|text_model|lm_head)\.", name):
        return "language"
    return "projector" if _PROJECTOR.search(name) else "tower"


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; non-re-entrant, so that adapters get their gradients.

    The recomputation uses the adapter that was active in the forward pass.
    """
    renamed = getattr(model, "activation_checkpointing_enable", None)  # since transformers 5.2x
    options = {"use_reentrant": False, "context_fn": RememberAdapter(model)}
    (renamed or model.gradient_checkpointing_enable)(options)


def rope_fields(core: Any, ids: Sequence[int], image_id: int, grids: Tensor | None) -> dict[str, list[int]]:
    """Multi-axis rotary positions of one prompt as three per-token fields; empty for families with plain positions.

    Args:
        core: The model without its head.
        ids: Token ids of the prompt.
        image_id: Placeholder id.
        grids: (images of the prompt, 3) time, height and width in patches.
    """
    if not hasattr(core, "get_rope_index"):
        return {}
    row = torch.tensor([list(ids)])
    types = (row == image_id).int()
    positions, _ = core.get_rope_index(row, mm_token_type_ids=types, image_grid_thw=grids)  # (3, 1, T)
    return {f"position_{axis}": positions[a, 0].tolist() for a, axis in enumerate("thw")}


# --- images ---------------------------------------------------------------------------------------------------------


def image_tensors(processed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The processor's output for one image: tensors over its U units, others (1, ...), and ``units`` (1,)."""
    pixels = {name: value for name, value in processed.items() if name not in _TEXT_FIELDS}
    if pixels["pixel_values"].dim() == 5:  # (1, U, C, H, W)
        pixels |= {name: pixels[name].flatten(0, 1) for name in _UNIT_FIELDS if name in pixels}
    return {**pixels, "units": torch.tensor([len(pixels["pixel_values"])])}


def stack_images(images: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the tensors of M images along their first dimension."""
    tensors = list(images)
    return {name: torch.cat([image[name] for image in tensors]) for name in (tensors[0] if tensors else ())}


def select_images(images: ImageInputs, index: Sequence[int]) -> ImageInputs:
    """The images at ``index``, units kept together."""
    units = images.pixels["units"].tolist()
    pixels = {}
    for name, value in images.pixels.items():
        parts = torch.split(value, units if name in _UNIT_FIELDS else 1)
        pixels[name] = torch.cat([parts[i] for i in index])
    return ImageInputs(pixels, tuple(images.ids[i] for i in index))


def encode_images(core: Any, images: ImageInputs) -> ImageFeatures:
    """Run tower and projector: the tokens of each image as the language model receives them."""
    count = len(images.ids)
    if not count:
        return ImageFeatures((), ())
    inputs = {name: value for name, value in images.pixels.items() if name != "units"}
    if "pixel_attention_mask" in inputs:  # these families take (rows, images of a row, ...)
        inputs = {name: value[:, None] for name, value in inputs.items()}
    out = core.get_image_features(**inputs, return_dict=True)
    tokens = [t.reshape(-1, t.shape[-1]) for t in out.pooler_output]
    if len(tokens) != count:  # one entry per unit
        ends = images.pixels["units"].cumsum(0).tolist()
        tokens = [torch.cat(tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    layers = getattr(out, "deepstack_features", None) or []  # per layer one tensor per image
    return ImageFeatures(tuple(tokens), tuple(tuple(layer[i] for layer in layers) for i in range(count)))


class _Pooled(tuple[Tensor, ...]):
    """Per-image tensors; families that expect one joint tensor call ``to`` on it and get one."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.cat(self).to(*args, **kwargs)


def encoder_outputs(features: ImageFeatures) -> dict[str, Any]:
    """Features as the ``mm_encoder_outputs`` argument; a new object each time, because the model may change it."""
    deepstack = list(zip(*features.levels, strict=True))
    return {"image": SimpleNamespace(pooler_output=_Pooled(features.tokens), deepstack_features=deepstack)}


# --- processors -----------------------------------------------------------------------------------------------------


def load_processor(
    source: str, config: Any, min_pixels: int | None = None, max_pixels: int | None = None, **hub: Any
) -> Any:
    """The processor of a hub name or folder, images only, always with the Pillow image processor.

    With one backend, the same picture gives the same numbers with and without torchvision installed.

    Args:
        source: Hub name or folder.
        config: Model config.
        min_pixels: Smallest area of a resized image, for families with a pixel budget.
        max_pixels: Largest area of a resized image, for families with a pixel budget.
        hub: ``revision`` and ``local_files_only``.

    Raises:
        ValueError: If the family has no pixel budget.
    """
    check_source("processor", source)
    with open_source(source, "processor") as place:
        return _load_processor(source, place, config, {"shortest_edge": min_pixels, "longest_edge": max_pixels}, hub)


def _load_processor(source: str, place: str, config: Any, budget: dict[str, int | None], hub: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    images = load_or_refuse("processor", source, AutoImageProcessor.from_pretrained, place, backend="pil", **hub)
    edges = {edge: pixels for edge, pixels in budget.items() if pixels is not None}
    if edges and "max_pixels" not in images.valid_kwargs.__annotations__:
        raise ValueError(f"min_pixels/max_pixels: model_type {config.model_type!r} has no pixel budget; remove them")
    if edges:
        images.size = type(images.size)(**{**{k: images.size[k] for k in budget}, **edges})
    family: Any = PROCESSOR_MAPPING[type(config)]
    tokenizer = load_or_refuse("tokenizer", source, AutoTokenizer.from_pretrained, place, **hub)
    settings, _ = family.get_processor_dict(place, **hub)
    return image_only_processor(config, images, tokenizer, settings)


def image_only_processor(config: Any, image_processor: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """The family's processor without its video part, which would need torchvision.

    Args:
        config: Model config; its class decides the processor's class.
        image_processor: The family's image processor.
        tokenizer: The family's tokenizer.
        settings: Further constructor arguments (patch size, image sequence length, chat template); others are dropped.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    base: Any = PROCESSOR_MAPPING[type(config)]
    if config.model_type == "smolvlm":
        _replace_num2words()
    signature = inspect.signature(base.__init__)
    video = {"video_processor": None} if "video_processor" in signature.parameters else {}

    def __init__(self: Any, image_processor: Any, tokenizer: Any, **kwargs: Any) -> None:
        base.__init__(self, image_processor, tokenizer, **video, **kwargs)

    # Transformers reads the parts of a processor, and which of its options to save, from this signature.
    parameters = [p for name, p in signature.parameters.items() if name != "video_processor"]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect's, of any function
    image_only = type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})
    names = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self", "image_processor", "tokenizer"}
    return image_only(image_processor, tokenizer, **{k: v for k, v in settings.items() if k in names})


def _replace_num2words() -> None:
    """Spare SmolVLM's processor a package that it needs only to spell out the number of frames of a video."""
    from transformers.models.smolvlm import processing_smolvlm

    module: Any = processing_smolvlm
    if module.num2words is None:
        module.num2words = str


def save_processor(processor: Any, folder: Path) -> None:
    """Write processor and tokenizer; the extra image file lets ``AutoProcessor`` derive its video part elsewhere."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)


# --- attention masks ------------------------------------------------------------------------------------------------
#
# Needed for packed rows (several responses behind one prompt) and for image tokens that attend to each other in both
# directions. A mask is True where a query may attend to a key; a sliding window counts visible tokens, not columns.


def image_blocks(input_ids: Tensor, image_id: int) -> Tensor:
    """(B, L, L) bool: True where both tokens are placeholders of the same image (one unbroken run)."""
    image = input_ids == image_id  # (B, L)
    start = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    block = start.cumsum(1)  # (B, L)
    return (block[:, :, None] == block[:, None, :]) & image[:, :, None] & image[:, None, :]


def sees_images_both_ways(model: Any) -> bool:
    """Whether image tokens of the model's family attend to each other in both directions."""
    return model.config.model_type in BIDIRECTIONAL_IMAGES


def attention_masks(model: Any, input_ids: Tensor, mask: Tensor, cache: Any | None) -> Masks:
    """What the language model takes as ``attention_mask``.

    Args:
        model: The conditional-generation model.
        input_ids: (B, L) new tokens.
        mask: (B, S) bool of real tokens, or (B, 1, L, S) bool of what may be read.
        cache: The key-value cache, if any.

    Raises:
        ValueError: If the attention implementation takes no such mask.
    """
    both_ways = sees_images_both_ways(model)
    if mask.dim() == 2 and not both_ways:
        return mask
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = list(getattr(text, "layer_types", None) or [])
    if mask.dim() == 2:
        full = _causal(mask, input_ids, model.config.image_token_id)
        steps = mask.long().cumsum(1) - 1  # (B, S)
    else:
        full = mask
        if window is not None and mask.shape[2] != mask.shape[3]:
            raise ValueError("a packed mask with a key-value cache is not supported for sliding-window attention")
        steps = mask[:, 0].tril().sum(-1) - 1  # (B, S): tokens seen before each
    if window is None:
        return _typed(model, full)
    near = steps[:, -full.shape[2] :, None] - steps[:, None, :] < window  # (B, L, S)
    sliding = full & near[:, None]
    if "sliding_attention" not in kinds:
        return _typed(model, sliding if not kinds else full)
    masks = {"full_attention": full, "sliding_attention": sliding}
    return {kind: _typed(model, _cached(masks[kind], cache, kinds.index(kind))) for kind in set(kinds)}


def _causal(mask: Tensor, input_ids: Tensor, image_id: int) -> Tensor:
    """(B, 1, L, S) bool: True for earlier real tokens, tokens of the same image, and the token itself."""
    length = input_ids.shape[1]
    total = mask.shape[1]
    column = torch.arange(total, device=mask.device)
    query = column[total - length :, None]  # (L, 1)
    seen = (column <= query) & mask[:, None, :]  # (B, L, S)
    seen[..., total - length :] |= image_blocks(input_ids, image_id)
    return (seen | (column == query))[:, None]


def _cached(mask: Tensor, cache: Any | None, layer: int) -> Tensor:
    """The columns of the keys that this layer's cache still holds."""
    if cache is None:
        return mask
    length, offset = cache.get_mask_sizes(mask.shape[2], layer)
    return mask[..., offset : offset + length]


def _typed(model: Any, mask: Tensor) -> Tensor:
    """The mask as the attention implementation takes it: bool for SDPA, additive for eager attention."""
    kind = model.config.get_text_config()._attn_implementation
    if kind == "sdpa":
        return mask
    if kind == "eager":
        zero = torch.zeros((), dtype=model.dtype, device=mask.device)
        return torch.where(mask, zero, torch.finfo(model.dtype).min)
    raise ValueError(f"attention implementation {kind!r} takes no 4-D mask; use sdpa or eager, or packed: false")
