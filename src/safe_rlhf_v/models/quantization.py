"""A language model whose frozen weights are stored in 4 or 8 bits, with adapters on top (QLoRA, arXiv 2305.14314).

Transformers quantises while it loads, by the library's own config; only linear layers of the language model's blocks are
stored so. What runs outside them keeps its dtype: vision tower, projector, embeddings, norms, LM head, and the heads of this
library. A quantised weight is frozen; adapters beside it are float32, as everywhere.

Not offered: int4 of torchao, on which peft trains no adapters.
"""

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor, nn

Quantization = Literal["nf4", "int8", "torchao_int8"]
"""``nf4`` and ``int8`` are stored by bitsandbytes, ``torchao_int8`` by torchao."""

_LIBRARIES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao_int8": "torchao"}


def check_quantization(kind: Quantization | None, model: str | None, lora: Any) -> None:
    """Refuse a backbone whose weights cannot be stored so.

    Args:
        kind: How its weights are to be stored; ``None`` for their own dtype.
        model: Where the weights come from.
        lora: Settings of the adapters.

    Raises:
        ValueError: If no weights are named, or they would be trained.
    """
    if kind is not None and (model is None or lora is None):
        raise ValueError(
            f"quantization {kind} stores weights that are loaded and not trained: name a model and give lora settings"
        )


def quantization_config(kind: Quantization, skipped: list[str], dtype: torch.dtype) -> Any:
    """What transformers takes as ``quantization_config``.

    ``nf4`` is NormalFloat with doubly quantised scales (arXiv 2305.14314, sections 3.1 and 3.2). ``int8`` is LLM.int8 (arXiv
    2208.07339) without its outlier columns: which columns are outliers depends on the other rows of a batch.

    Args:
        kind: How weights are stored.
        skipped: Names of the modules that keep their dtype.
        dtype: In which the layers compute.

    Raises:
        ValueError: If the library is not installed.
    """
    library = _LIBRARIES[kind]
    if importlib.util.find_spec(library) is None:
        raise ValueError(
            f"quantization {kind} needs {library}: pip install '.[quantization]' in a clone of safe_rlhf_v"
        )
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def kept_modules(config: Any) -> list[str]:
    """Names of the linear layers of a model that are not quantised: those outside of the decoder's blocks.

    Args:
        config: Of an ``AutoModelForImageTextToText``; no weight is allocated.
    """
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    blocks = {part for part in model.model.get_decoder().modules() if isinstance(part, nn.Linear)}
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part not in blocks]


def settle(model: nn.Module, decoder: nn.Module) -> None:
    """Finish a quantised model: peft recognises its layers, and no layer repacks its weights while it runs.

    Args:
        model: As transformers loaded it.
        decoder: Its language model, which gets the adapters.
    """
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        setattr(decoder, name, getattr(model, name, False))
    for part in model.modules():
        if hasattr(
            part, "support_avx512bf16_for_cpu"
        ):  # else evaluation on a CPU changes the format that training reads
            setattr(part, "support_avx512bf16_for_cpu", False)  # noqa: B010  # its class has no types


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's weight is stored in another form than its numbers."""
    weight = layer._parameters.get("weight")  # a layer with adapters also shows its base's
    return weight is not None and (
        type(weight).__name__ in ("Params4bit", "Int8Params") or type(weight).__module__.startswith("torchao.")
    )


def dequantized(layer: nn.Module) -> Tensor:
    """The numbers that a quantised layer computes with."""
    weight: Any = layer.weight
    if type(weight).__module__.startswith("torchao."):
        plain: Tensor = weight.dequantize()
        return plain
    from peft.utils.integrations import dequantize_bnb_weight

    state = getattr(layer, "state", None)  # of an int8 layer
    plain = dequantize_bnb_weight(weight, state=state)
    return plain.detach()


def quantized_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Quantised layers by their names."""
    return {name: part for name, part in module.named_modules() if is_quantized(part)}


def storage_of(module: nn.Module) -> Quantization | None:
    """How the quantised weights of a module are stored; ``None`` if it has none."""
    kinds: dict[str, Quantization] = {"Params4bit": "nf4", "Int8Params": "int8"}
    for layer in quantized_layers(module).values():
        return kinds.get(type(layer.weight).__name__, "torchao_int8")
    return None


def plain_state(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every quantised weight as its numbers, and without the tensors that only the storage needs.

    Args:
        module: Whose state it is.
        state: From ``module.state_dict()``.
    """
    layers = quantized_layers(module)
    numbers = {f"{name}.weight": dequantized(layer) for name, layer in layers.items()}
    own = {f"{name}.bias" for name in layers}
    inside = tuple(f"{name}." for name in layers)
    unquantised = {name: value for name, value in state.items() if not name.startswith(inside) or name in own}
    return unquantised | numbers


def drop_storage(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook of state dicts: scales and code books of quantised weights stay out, since the base gives them back."""
    for name, layer in quantized_layers(module).items():
        start = f"{prefix}{name}."
        parameters = {start + own for own, _ in layer.named_parameters()}
        for key in [key for key in state if key.startswith(start) and key not in parameters]:
            del state[key]


def as_plain_config(config: Any) -> Any:
    """A model's config without how its weights are stored."""
    from copy import deepcopy

    plain = deepcopy(config)
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return plain
