"""A Hugging Face network without its weights: how large its parts are, and a copy of it that computes nothing.

The copy lives on fake tensors (``FakeTensorMode``): every operation runs for its shapes and dtypes only, on the CPU's code paths,
autocast included. Attention takes the fused kernel there, whose memory grows linearly with the length, as on a GPU.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models.lora import LoraSettings, apply_lora
from safe_rlhf_v.models.quantization import Quantization
from safe_rlhf_v.models.sources import load_or_refuse
from safe_rlhf_v.planning.sizes import KNOWN

STORED_BYTES: dict[str, float] = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "torchao_int8": 1.0}
"""Bytes per weight. nf4: half a byte, an 8-bit scale per 64 weights, and a 32-bit scale per 256 scales (arXiv 2305.14314);
int8: one, and a 32-bit scale per output row, which is left out."""


class BackboneOptions(NamedTuple):
    """What of a backbone's settings its memory depends on.

    Attributes:
        config: The model's config (transformers).
        dtype: Of the weights.
        freeze_tower: The vision tower is not trained.
        freeze_projector: The projector is not trained.
        freeze_language: The language model is not trained.
        lora: Settings of its adapters.
        quantization: How the frozen linear layers of the language model are stored.
        gradient_checkpointing: Activations are recomputed.
    """

    config: Any
    dtype: torch.dtype = torch.float32
    freeze_tower: bool = True
    freeze_projector: bool = True
    freeze_language: bool = False
    lora: LoraSettings | None = None
    quantization: Quantization | None = None
    gradient_checkpointing: bool = False


class Sizes(NamedTuple):
    """Bytes of one network.

    Attributes:
        blocks: Weights of the language model's blocks, without adapters; FSDP2 shards them.
        rest: All other weights.
        adapter: One adapter; 0 without.
        trained_blocks: Trained parameters in the blocks, adapters included.
        trained_rest: Other trained parameters.
    """

    blocks: int
    rest: int
    adapter: int
    trained_blocks: int
    trained_rest: int


class StoredLinear(nn.Linear):
    """A linear layer whose weight is unpacked each time it is read, and never kept."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., in)."""
        result: Tensor = _Unpacked.apply(x, self.weight, self.bias)
        return result


class _Unpacked(torch.autograd.Function):
    """As bitsandbytes' own: only the packed weight is needed for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return nn.functional.linear(x, torch.empty_like(packed, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ torch.empty_like(ctx.packed, dtype=grads[0].dtype), None, None


def read_config(model: str | None, config: dict[str, Any] | str | None, **hub: Any) -> Any:
    """A model's config, without its weights.

    Args:
        model: Hub name or folder of the weights.
        config: Instead of it: a config, its file, a folder or a hub name.
        hub: ``revision`` and ``local_files_only``.

    Raises:
        ValueError: If there is none, in one line.
    """
    from transformers import AutoConfig

    if isinstance(config, str) and config.endswith(".json"):
        try:
            config = json.loads(Path(config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"config {config}: cannot be read ({error})") from None
    if isinstance(config, dict):
        if "model_type" not in config:
            raise ValueError("config: has no model_type, so it is no config of a Hugging Face model")
        return AutoConfig.for_model(**config)
    source = config or model
    if not isinstance(source, str):
        raise ValueError("give a model or a config to plan for")
    try:
        return load_or_refuse("model", source, AutoConfig.from_pretrained, source, **hub)
    except ValueError as error:
        if source in KNOWN and not Path(source).exists():
            return AutoConfig.for_model(**KNOWN[source])
        raise ValueError(f"{error}; or give its config.json by --model_config") from None


def meta_model(options: BackboneOptions, layers: int | None = None, adapters: bool = True) -> Any:
    """The network on the meta device, trained and frozen as its settings say.

    Args:
        options: Settings.
        layers: Number of blocks of the language model; ``None`` for all.
        adapters: Whether it gets one adapter, if its settings have adapters.
    """
    from copy import deepcopy

    from transformers import AutoModelForImageTextToText

    config = deepcopy(options.config)
    text = config.get_text_config()
    if layers is not None and layers < text.num_hidden_layers:
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        text.num_hidden_layers = layers
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=options.dtype)
        families.check_supported(model)
        frozen = {
            "tower": options.freeze_tower,
            "projector": options.freeze_projector,
            "language": options.freeze_language or options.lora is not None,
        }
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen[families.part_of(name)])
        decoder = model.model.get_decoder()
        if options.quantization:
            for part in decoder.modules():
                if type(part) is nn.Linear:
                    part.__class__ = StoredLinear
        if options.lora is not None and adapters:
            apply_lora(decoder, options.lora)
    return model


def sizes_of(options: BackboneOptions, head: bool = True) -> Sizes:
    """Bytes of a network's parts.

    Args:
        options: Settings.
        head: Whether the LM head may be trained; a stage that never runs it freezes it.
    """
    model = meta_model(options)
    decoder = model.model.get_decoder()
    blocks = {id(p) for stack in decoder.modules() if isinstance(stack, nn.ModuleList) for p in stack.parameters()}
    stored = {id(part.weight) for part in decoder.modules() if isinstance(part, StoredLinear)}
    lm_head = {id(p) for p in model.get_output_embeddings().parameters()} if not head else set()
    lm_head -= {id(p) for p in model.get_input_embeddings().parameters()}  # tied weights stay trainable
    totals = dict.fromkeys(Sizes._fields, 0.0)
    for name, parameter in model.named_parameters():
        each = STORED_BYTES[str(options.quantization)] if id(parameter) in stored else parameter.element_size()
        size = parameter.numel() * each
        place = "blocks" if id(parameter) in blocks else "rest"
        totals["adapter" if "lora_" in name else place] += size
        if parameter.requires_grad and id(parameter) not in lm_head:
            totals[f"trained_{place}"] += size
    return Sizes(*(math.ceil(totals[name]) for name in Sizes._fields))


def fake_copy(options: BackboneOptions, mode: FakeTensorMode, layers: int) -> Any:
    """A network with that many blocks on fake tensors, ready for a training pass.

    Args:
        options: Settings.
        mode: To which the tensors belong.
        layers: Number of blocks.
    """
    model = meta_model(options, layers)
    copies: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for part in model.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                if id(parameter) not in copies:
                    value = FakeTensor(mode, parameter.detach(), torch.device("cpu"))
                    copies[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                part._parameters[name] = copies[id(parameter)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = FakeTensor(mode, buffer, torch.device("cpu"))
    if options.gradient_checkpointing:
        families.enable_checkpointing(model)
    return model.train()
