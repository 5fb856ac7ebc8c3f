"""The network of a Hugging Face backbone, from weights or from a config."""

from typing import Any

import torch

from safe_rlhf_v.models.quantization import Quantization, kept_modules, quantization_config
from safe_rlhf_v.models.sources import check_source, load_or_refuse, load_weights


def build_network(
    model: str | None,
    config: dict[str, Any] | str | None,
    dtype: torch.dtype,
    hub: dict[str, Any],
    quantization: Quantization | None,
) -> Any:
    """The network, from weights or from a config."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    if (model is None) == (config is None):
        raise ValueError("give exactly one of model (weights) and config (random weights)")
    if model is not None:
        check_source("model", model)
        load = AutoModelForImageTextToText.from_pretrained
        if quantization is None:
            return load_weights("model", model, load, dtype=dtype, **hub)
        shape = load_or_refuse("model", model, AutoConfig.from_pretrained, model, **hub)
        stored = quantization_config(quantization, kept_modules(shape), dtype)
        place = str(torch.get_default_device())  # the CPU, unless the caller says another; the trainer moves it
        where = {"quantization_config": stored, "device_map": {"": place}}
        return load_weights("model", model, load, dtype=dtype, **where, **hub)
    if isinstance(config, dict):
        shape = AutoConfig.for_model(**config)
    else:
        check_source("config", str(config))
        shape = load_or_refuse("config", str(config), AutoConfig.from_pretrained, str(config), **hub)
    return AutoModelForImageTextToText.from_config(shape, dtype=dtype)
