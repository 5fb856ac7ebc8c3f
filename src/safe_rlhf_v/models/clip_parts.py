"""The parts of the LLaVA-like backbone: tokenizer with a placeholder, decoder, projector, and what a saved folder says."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from safe_rlhf_v.models.corpus_tokenizer import ANSWER_TOKEN, IMAGE_TOKEN
from safe_rlhf_v.models.prompt_writer import PromptWriter
from safe_rlhf_v.models.sources import check_source, load_tokenizer, load_weights
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings

SETTINGS_FILE = "clip_decoder.json"
WORD_TEMPLATE = "<bos> <image> {question} <answer>"
"""Prompt of tokenizers built from a corpus, which have these words."""


def saved_settings(folder: str | Path) -> dict[str, Any]:
    """Constructor arguments that rebuild what :meth:`ClipDecoder.save_pretrained` wrote, without the vision weights.

    Raises:
        ValueError: If the folder was not written by ``save_pretrained``.
    """
    folder = Path(folder)
    if not (folder / SETTINGS_FILE).is_file():
        raise ValueError(f"{folder}: no {SETTINGS_FILE}; it is not a folder that save_pretrained wrote")
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    tower = TowerSettings(
        **{**settings.pop("tower"), "pretrained": None, "weights": None}
    )  # the weights are in the folder
    slots = settings.pop("slots")
    parts = {"tokenizer": str(folder / "tokenizer"), "tower": tower, "decoder": str(folder / "decoder")}
    return {**settings, **parts, "slots": SlotSettings(**slots) if slots else None}


def placeholder_tokenizer(source: str) -> tuple[Any, int]:
    """The tokenizer and the id of its image placeholder, which is added if it is missing."""
    tokenizer = load_tokenizer(source)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return tokenizer, int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def chat_writer(tokenizer: Any, decoder: Any) -> PromptWriter:
    """Writes prompts by the tokenizer's chat template, or as LLaVA-1.5 does."""
    processor = SimpleNamespace(tokenizer=tokenizer, chat_template=None, image_token=IMAGE_TOKEN)
    return PromptWriter(processor, decoder.config, decoder.generation_config)


def prompt_template(tokenizer: Any, template: str | None) -> str | None:
    """The prompt text to use, ``None`` for a chat template.

    Raises:
        ValueError: If the user's lacks a part.
    """
    if template is not None and (template.count(IMAGE_TOKEN) != 1 or template.count("{question}") != 1):
        raise ValueError(f"template must contain {IMAGE_TOKEN} and {{question}} once each, not {template!r}")
    words = not tokenizer.chat_template and ANSWER_TOKEN in tokenizer.get_vocab()
    return WORD_TEMPLATE if template is None and words else template


def build_projector(d_in: int, d_out: int, layers: int) -> nn.Sequential:
    """Linear layers with GELU between them."""
    parts: list[nn.Module] = [nn.Linear(d_in, d_out)]
    for _ in range(layers - 1):
        parts += [nn.GELU(), nn.Linear(d_out, d_out)]
    return nn.Sequential(*parts)


def build_decoder(decoder: str | dict[str, Any], vocabulary: int, gguf_file: str | None, dtype: torch.dtype) -> Any:
    """A causal language model whose vocabulary covers the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    if isinstance(decoder, dict):
        config = AutoConfig.for_model(**{**decoder, "vocab_size": max(vocabulary, decoder.get("vocab_size", 0))})
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    options: dict[str, Any] = {}
    if gguf_file:  # as plain weights: those in blocks can be neither trained nor saved
        options = {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    check_source("decoder", decoder)
    model = load_weights("decoder", decoder, AutoModelForCausalLM.from_pretrained, dtype=dtype, **options)
    if gguf_file:
        model.config.architectures = [type(model).__name__]  # the file does not say it, and saving needs it
    _enlarge(model, vocabulary)
    return model


def _enlarge(model: Any, vocabulary: int) -> None:
    """Give new tokens the mean of the old rows: the same in every run, and about as likely as any other token."""
    old = model.get_input_embeddings().num_embeddings
    if old >= vocabulary:
        return
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.weight[old:] = part.weight[:old].float().mean(0).to(part.weight.dtype)
