"""Everything about Hugging Face vision-language models that depends on the family or the transformers version.

All of it needs ``mm_encoder_outputs``, which transformers has since 5.18. The contract tests in
``tests/models/test_hf_contract.py`` run eleven families against the installed version.

Shapes: M images, U units (tiles or patches; several make one image), P image tokens, D hidden.
"""

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.adapters import RememberAdapter
from safe_rlhf_v.models.hf_masks import BIDIRECTIONAL_IMAGES
from safe_rlhf_v.models.sources import check_source, load_or_refuse, open_source
from safe_rlhf_v.models.types import ImageFeatures, ImageInputs

_LOG = logging.getLogger(__name__)

COMPANY = "batch_num_images"
"""Field of an image's tensors: the number of images in its prompt, for families that encode an image alone otherwise."""

_TEXT_FIELDS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_UNIT_FIELDS = ("pixel_values", "pixel_attention_mask")
_PROJECTOR = re.compile(r"projector|connector|merger|image_newline")


# --- models ---------------------------------------------------------------------------------------------------------


def check_supported(model: Any) -> None:
    """Refuse a family that this backbone cannot run, or that would run but give wrong results.

    Raises:
        ValueError: If features cannot be passed in, prompts are read bidirectionally or logits are rescaled.
    """
    kind = model.config.model_type
    text = model.config.get_text_config()
    core = getattr(model, "model", None)
    accepted = inspect.signature(core.forward).parameters if core is not None else {}
    if "mm_encoder_outputs" not in accepted or not hasattr(core, "get_image_features"):
        raise ValueError(f"model_type {kind!r} takes no precomputed image features (mm_encoder_outputs): not supported")
    prefix = "token_type_ids" in accepted or getattr(text, "use_bidirectional_attention", None)
    if prefix and kind not in BIDIRECTIONAL_IMAGES:
        raise ValueError(f"model_type {kind!r} reads its prompt bidirectionally: not supported")
    if name := rescaled_logits(text):
        raise ValueError(f"model_type {kind!r} rescales its logits ({name}): not supported")
    if not callable(getattr(core, "get_decoder", None)) or model.get_output_embeddings() is None:
        raise ValueError(f"model_type {kind!r} has no decoder with an LM head: not supported")
    if type(getattr(model.config, "image_token_id", None)) is not int:
        raise ValueError(f"model_type {kind!r} names no placeholder of images (image_token_id): not supported")


def rescaled_logits(config: Any) -> str:
    """Which option of a language model's config scales or caps the logits that its LM head gives; "" if none does."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return next((name for name in names if getattr(config, name, None) not in (None, 1, 1.0)), "")


def layer_kinds(config: Any) -> set[str]:
    """Kinds of the language model's layers; empty if its config does not list them."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ())


def packs(config: Any) -> bool:
    """Whether a mask can hide the responses of a packed row from one another.

    Only attention reads by mask: a state that is carried from token to token (linear attention, convolutions, state space
    models) goes through one response into the next.
    """
    return layer_kinds(config) <= {"full_attention", "sliding_attention"}


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


def feature_key(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Under which an image's features are cached: its name, and whether it is encoded as one of several."""
    return f"{name} in company" if COMPANY in tensors and int(tensors[COMPANY]) > 1 else name


def stack_images(images: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the tensors of M images along their first dimension."""
    tensors = list(images)
    names = tensors[0] if tensors else ()
    return {name: torch.cat(_same_size([image[name] for image in tensors])) for name in names}


def _same_size(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors padded by zeros, at the end of every dimension but the first, to the largest; processors pad a batch so."""
    shapes = [tensor.shape[1:] for tensor in tensors]
    if len(set(shapes)) == 1:
        return tensors
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    padded = []
    for tensor in tensors:
        room = [
            amount
            for size, most in zip(tensor.shape[:0:-1], reversed(largest), strict=True)
            for amount in (0, most - size)
        ]
        padded.append(torch.nn.functional.pad(tensor, room))
    return padded


def images_of_prompt(joint: Mapping[str, Tensor], alone: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The tensors of each image of a prompt with several.

    Args:
        joint: The processor's output for the whole prompt.
        alone: Its output for each image alone, which is the same but for families that divide only a single image into
            tiles; those say so by :data:`COMPANY`.
    """
    if COMPANY not in joint:
        return [image_tensors(image) for image in alone]
    count = int(joint[COMPANY])
    each = {name: value for name, value in joint.items() if name not in (*_TEXT_FIELDS, COMPANY)}
    return [
        image_tensors({**{name: value[i : i + 1] for name, value in each.items()}, COMPANY: torch.tensor([count])})
        for i in range(count)
    ]


def select_images(images: ImageInputs, index: Sequence[int]) -> ImageInputs:
    """The images at ``index``, units kept together."""
    if not index:  # prompts without pictures among others
        return ImageInputs({}, ())
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
    if COMPANY in images.pixels:
        return _encode_by_company(core, images)
    inputs = {name: value for name, value in images.pixels.items() if name != "units"}
    return _features(core, inputs, images.pixels["units"], count)


def _encode_by_company(core: Any, images: ImageInputs) -> ImageFeatures:
    """:func:`encode_images` for a family that encodes an image that is alone in its prompt in another way."""
    numbers = images.pixels[COMPANY].tolist()
    features: list[Tensor] = [torch.empty(0)] * len(numbers)
    for single in (True, False):
        index = [i for i, number in enumerate(numbers) if (number == 1) == single]
        if not index:
            continue
        chosen = select_images(images, index).pixels
        inputs = {name: value for name, value in chosen.items() if name not in ("units", COMPANY)}
        # The family looks only at whether the number is 1.
        inputs[COMPANY] = torch.ones(len(index), dtype=torch.long) if single else torch.tensor([max(2, len(index))])
        for i, tokens in zip(index, _features(core, inputs, chosen["units"], len(index)).tokens, strict=True):
            features[i] = tokens
    return ImageFeatures(tuple(features), ((),) * len(features))


def _features(core: Any, inputs: dict[str, Tensor], units: Tensor, count: int) -> ImageFeatures:
    if "pixel_attention_mask" in inputs:  # these families take (rows, images of a row, ...)
        inputs = {name: value[:, None] for name, value in inputs.items()}
    out = core.get_image_features(**inputs, return_dict=True)
    tokens = [t.reshape(-1, t.shape[-1]) for t in out.pooler_output]
    if len(tokens) != count:  # one entry per unit
        ends = units.cumsum(0).tolist()
        tokens = [torch.cat(tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    layers = getattr(out, "deepstack_features", None) or []  # per layer one tensor per image
    return ImageFeatures(tuple(tokens), tuple(tuple(layer[i] for layer in layers) for i in range(count)))


class _Pooled(tuple[Tensor, ...]):
    """Per-image tensors; a family that expects one joint tensor uses it as such (``to``, ``reshape``) and gets one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cat(self), name)


def encoder_outputs(features: ImageFeatures) -> dict[str, Any]:
    """Features as the ``mm_encoder_outputs`` argument; a new object each time, because the model may change it."""
    deepstack = list(zip(*features.levels, strict=True))
    return {"image": SimpleNamespace(pooler_output=_Pooled(features.tokens), deepstack_features=deepstack)}


# --- processors -----------------------------------------------------------------------------------------------------


def check_processor(config: Any) -> None:
    """Refuse a family whose processor transformers does not name.

    Raises:
        ValueError: If it names none.
    """
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"processor: transformers has none for model_type {config.model_type!r}: not supported")


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

    check_processor(config)
    images = load_or_refuse("processor", source, AutoImageProcessor.from_pretrained, place, backend="pil", **hub)
    if not type(images).__name__.endswith("Pil"):
        _LOG.warning("%s has no Pillow image processor; %s is used", config.model_type, type(images).__name__)
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


# --- caches ---------------------------------------------------------------------------------------------------------


def cache_arguments(network: nn.Module, cache: Any | None) -> dict[str, Any]:
    """The arguments that make a transformers network read and extend a cache, or keep none.

    Args:
        network: The network that will be called.
        cache: The cache; ``None`` for none.
    """
    return {"use_cache": False} if cache is None else {"use_cache": True, _cache_name(type(network).forward): cache}


@functools.cache
def _cache_name(forward: Callable[..., Any]) -> str:
    """What a network's ``forward`` calls the cache: ``past_key_values`` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
