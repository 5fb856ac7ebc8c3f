"""A small copy of a Hugging Face config: one layer of each kind and, where the config allows it, a narrow language model.

Nothing about its structure changes: the size of a head, the number of queries per key, the vocabulary and everything that
decides how many tokens an image has stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch

_DEPTHS = ("num_hidden_layers", "depth", "num_layers", "n_layers")
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_SAME_AS_TEXT = ("out_hidden_size", "projection_dim", "text_hidden_size", "hidden_size")
_NARROW_FEED_FORWARD = 256


@contextmanager
def plain_cpu() -> Iterator[None]:
    """A context in which copies are built and run in float32 on the CPU, whatever the trainer builds networks under."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_default_dtype(default)


def shrunk_config(config: Any, narrow: bool) -> Any:
    """A small copy of a model's config.

    Args:
        config: A config of transformers.
        narrow: Also use fewer heads in the language model, if that changes nothing else.
    """
    options = deepcopy(config).to_dict()
    options.pop("quantization_config", None)
    text_name = _name_of_text(config)
    text = options if text_name is None else options[text_name]
    text.pop("quantization_config", None)
    levels = 0
    for name in getattr(config, "sub_configs", {}):
        part = options.get(name)
        if name != text_name and isinstance(part, dict):
            levels = max(levels, _shrink_tower(part, _needed_layers(options)))
    _shrink_layers(text, levels)
    if narrow:
        _narrow(text, options, text_name)
    return type(config).from_dict(options)


def _name_of_text(config: Any) -> str | None:
    text = config.get_text_config()
    return next((name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is text), None)


def _needed_layers(options: dict[str, Any]) -> int:
    """Layers that a tower must have so that the features named by the config exist."""
    chosen = options.get("vision_feature_layer")
    layers = chosen if isinstance(chosen, list) else [chosen]
    return max((abs(layer) + 1 for layer in layers if isinstance(layer, int)), default=2)


def _shrink_tower(part: dict[str, Any], needed: int) -> int:
    """Shorten a tower in place; returns how many of its layers are handed to the language model (deepstack)."""
    name = next((name for name in _DEPTHS if isinstance(part.get(name), int)), None)
    if name is None:
        return 0
    depth = part[name]
    lists = {key: value for key, value in part.items() if key.endswith("_indexes") and _are_layers(value, depth)}
    longest = max((len(value) for value in lists.values()), default=0)
    part[name] = min(depth, max(2, needed, longest + 1))
    for key, value in lists.items():
        part[key] = list(range(part[name] - len(value), part[name]))
    for key, value in part.items():
        if isinstance(value, list) and len(value) == depth and key not in lists:
            part[key] = value[: part[name]]
    return max((len(value) for key, value in lists.items() if "deepstack" in key), default=0)


def _are_layers(value: Any, depth: int) -> bool:
    return isinstance(value, list) and all(isinstance(i, int) and 0 <= i < depth for i in value) and len(value) < depth


def _shrink_layers(text: dict[str, Any], least: int) -> None:
    """Keep the first layer of each kind, in their order, and at least so many."""
    depth = text.get("num_hidden_layers")
    if not isinstance(depth, int):
        return
    lists = {key: value for key, value in text.items() if isinstance(value, list) and len(value) == depth > 1}
    lists.pop("mrope_section", None)
    kinds = [tuple(str(value[i]) for value in lists.values()) for i in range(depth)]
    first = [i for i in range(depth) if kinds.index(kinds[i]) == i]
    dense = text.get("first_k_dense_replace")
    if isinstance(dense, int):  # a dense layer, and behind all dense ones a sparse one
        first = sorted({*first, *range(min(dense + 1, depth))})
    first += [i for i in range(depth) if i not in first][: max(0, least - len(first))]
    first.sort()
    text["num_hidden_layers"] = len(first)
    for key, value in lists.items():
        text[key] = [value[i] for i in first]


def _narrow(text: dict[str, Any], options: dict[str, Any], text_name: str | None) -> None:
    """One key head with its queries; the hidden size follows in proportion."""
    heads = text.get("num_attention_heads")
    groups = text.get("num_key_value_heads") or heads
    hidden = text.get("hidden_size")
    for name in _WIDTHS:
        if isinstance(text.get(name), int):
            text[name] = min(text[name], _NARROW_FEED_FORWARD)
    if not (isinstance(heads, int) and isinstance(groups, int) and isinstance(hidden, int)) or not heads or not groups:
        return
    few = max(heads // groups, 2)
    if heads % groups or few >= heads or hidden * few % heads or heads % few:
        return
    text.setdefault("head_dim", None)
    text["head_dim"] = text["head_dim"] or hidden // heads
    text["num_attention_heads"] = few
    if text.get("num_key_value_heads"):
        text["num_key_value_heads"] = few // (heads // groups)
    text["hidden_size"] = hidden * few // heads
    for part in (
        options,
        *(options[name] for name in options if isinstance(options[name], dict) and name != text_name),
    ):
        for name in _SAME_AS_TEXT:
            if part is not text and part.get(name) == hidden and (name != "hidden_size" or part is options):
                part[name] = text["hidden_size"]
