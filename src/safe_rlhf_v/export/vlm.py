"""Models of a Hugging Face family as folders that plain transformers, or peft, loads."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.export.trained import Trained
from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models.adapters import adapter_tensors
from safe_rlhf_v.models.heads import ScalarHead
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.images import needs_padding
from safe_rlhf_v.models.lora import linear_names, merge_adapters, merged_state
from safe_rlhf_v.models.prompt_writer import FALLBACK_TEMPLATE, PromptWriter
from safe_rlhf_v.models.quantization import as_plain_config, quantized_layers

_PARTS = (
    "{%% if m['content'] is string %%}{{ m['content'] }}{%% else %%}{%% for c in m['content'] %%}"
    "{%% if c['type'] == 'image' %%}%s\n{%% else %%}{{ c['text'] }}{%% endif %%}{%% endfor %%}{%% endif %%}"
)


def prompt_form(backbone: HFVLM) -> dict[str, Any]:
    """How a prompt and a response are written, for the loader; by the template that is written into the folder.

    Args:
        backbone: Its processor is complete (:func:`complete_processor`).
    """
    writer = PromptWriter(backbone.processor, backbone.model.config, backbone.model.generation_config)
    return {
        **writer.form,
        "never_in_text": sorted(backbone.never_in_text & set(range(len(backbone.tokenizer)))),
        "end_id": backbone.eos_id,
        "max_length": backbone.most_tokens,
    }


def complete_processor(backbone: HFVLM) -> None:
    """Give the processor what this library adds to it: a chat template, and padding to a square in place of cropping."""
    processor = backbone.processor
    if not processor.chat_template:
        own = processor.tokenizer.chat_template
        parts = FALLBACK_TEMPLATE.replace("{{ m['content'] }}", _PARTS % processor.image_token)
        processor.chat_template = own.get("default") if isinstance(own, dict) else own or parts
    if needs_padding(processor):
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        settings = processor.image_processor.to_dict()
        known = LlavaImageProcessorPil.valid_kwargs.__annotations__
        options = {name: value for name, value in settings.items() if name in known and value is not None}
        processor.image_processor = LlavaImageProcessorPil(**{**options, "do_pad": True})


def write_policy(backbone: HFVLM, folder: Path, dtype: torch.dtype | None) -> None:
    """A folder of ``AutoModelForImageTextToText``, adapters merged.

    Args:
        backbone: Changed: its adapters are merged.
        folder: Empty.
        dtype: Of the weights; ``None`` leaves them as they are.
    """
    _make_plain(backbone, dtype)
    backbone.model.save_pretrained(folder)
    families.save_processor(backbone.processor, folder)


def write_adapter(trained: Trained, folder: Path) -> None:
    """A folder of ``peft.PeftModel``, without the base.

    Args:
        trained: A policy.
        folder: Empty.

    Raises:
        ValueError: If the adapter is not all that was trained, or there is none.
    """
    backbone: Any = trained.backbone
    check_adapter(trained)
    write_adapter_files(backbone, adapter_tensors(backbone.language_model.state_dict()), folder)
    families.save_processor(backbone.processor, folder)
    backbone.model.config.save_pretrained(folder)  # some processors are recognised by it


def write_adapter_files(backbone: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """What peft and engines read of an adapter: its settings and its tensors.

    Args:
        backbone: An HFVLM with adapters.
        tensors: Of one of its adapters, by their names below the language model.
        folder: Empty.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    decoder = backbone.language_model
    (prefix,) = (name for name, part in backbone.model.named_modules() if part is decoder)
    name, _, revision = str(backbone.base).partition("@")
    layers = sorted({key.partition(".lora_")[0] for key in tensors})
    config = LoraConfig(
        r=backbone.lora.r,
        lora_alpha=backbone.lora.alpha,
        lora_dropout=backbone.lora.dropout,
        target_modules=_targets(backbone.model, [f"{prefix}.{layer}" for layer in layers]),
        base_model_name_or_path=name,
        revision=revision or None,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_file(
        {f"base_model.model.{prefix}.{key}": value.contiguous() for key, value in tensors.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )


def check_adapter(trained: Trained) -> None:
    """Raises: ValueError: If a policy is not its base and an adapter."""
    backbone = trained.backbone
    if not isinstance(backbone, HFVLM) or backbone.lora is None:
        raise ValueError("--adapter: the run was trained without adapters (lora); leave the option out")
    if trained.kind != "policy":
        raise ValueError(f"--adapter: is for policies; this run's {trained.kind} head would be left out")
    if backbone.base is None:
        raise ValueError("--adapter: the run's base has random weights, so nobody has it; leave the option out")
    if trained.changed:
        more = f" (+{len(trained.changed) - 1})" if len(trained.changed) > 1 else ""
        raise ValueError(
            f"--adapter: beside its adapter the run holds {trained.changed[0]}{more}, which {backbone.base} does not give "
            "(trained, or from the run it started from); leave the option out: everything is merged then"
        )


def write_scorer(trained: Trained, outputs: list[str], folder: Path, dtype: torch.dtype | None) -> str:
    """A folder of the model and ``score.safetensors``; gives the name of the class that loads the model.

    Where the family has a class for it, the head is in the model's own file, too (``*ForSequenceClassification``).

    Args:
        trained: A reward, cost or guard model with a linear head; its adapters are merged.
        outputs: Names of the head's outputs.
        folder: Empty.
        dtype: Of the weights; ``None`` leaves them as they are.
    """
    from safetensors.torch import save_file

    backbone: Any = trained.backbone
    head: Any = trained.head
    _make_plain(backbone, dtype)
    save_file({k: v.detach().contiguous() for k, v in head.linear.state_dict().items()}, folder / "score.safetensors")
    families.save_processor(backbone.processor, folder)
    model = classifier(backbone, head, outputs)
    if model is None:
        backbone.model.save_pretrained(folder)
        return "AutoModelForImageTextToText"
    model.save_pretrained(folder)
    return "AutoModelForSequenceClassification"


def classifier(backbone: HFVLM, head: ScalarHead, outputs: list[str]) -> Any | None:
    """The model as its family's ``*ForSequenceClassification``; ``None`` if there is none that scores as this head does.

    Args:
        backbone: Without adapters.
        head: Linear.
        outputs: Names of the head's outputs.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    core = backbone.model.model
    config = copy.deepcopy(backbone.model.config)
    text = config.get_text_config()
    pad = backbone.tokenizer.pad_token_id
    if type(config) not in CLASSES or head.linear.bias is not None or pad in (None, backbone.eos_id):
        return None  # these classes have no bias, and read the last token that is not the padding
    text.pad_token_id = pad
    names = dict(enumerate(outputs))
    config.update({"id2label": names, "label2id": {name: i for i, name in names.items()}})
    config.problem_type = "regression" if len(outputs) == 1 else "multi_label_classification"
    with torch.device("meta"):
        model: Any = CLASSES[type(config)](config)
    inside = {f"model.{name}" for name in core.state_dict()}
    if not isinstance(getattr(model, "score", None), nn.Linear) or {*model.state_dict()} ^ inside != {"score.weight"}:
        return None
    model.model = core
    model.score = nn.Linear(head.linear.in_features, len(outputs), bias=False)
    model.score.weight.data = head.linear.weight.detach().to(core.dtype)
    return model.eval()


def _make_plain(backbone: HFVLM, dtype: torch.dtype | None) -> None:
    """Merge adapters, in float32 where that is the dtype that is wished for, and give the weights that dtype.

    Weights that are stored in 4 or 8 bits become the numbers that they compute with.
    """
    if quantized_layers(backbone.model):
        model = backbone.model
        with torch.device("meta"):  # its shapes only
            plain = type(model)._from_config(as_plain_config(model.config), dtype=model.dtype)
        plain.generation_config = model.generation_config
        plain.load_state_dict(merged_state(model), assign=True)
        backbone.model = plain
    if dtype == torch.float32:
        backbone.to(dtype)
    merge_adapters(backbone.model)
    if dtype is not None:
        backbone.to(dtype)


def _targets(model: nn.Module, layers: list[str]) -> str:
    """A regular expression of exactly these layers among the model's linear ones."""
    prefix = os.path.commonpath([layer.replace(".", "/") for layer in layers]).replace("/", ".")
    ends = sorted({layer.rpartition(".")[2] for layer in layers})
    short = rf"{re.escape(prefix)}\..*\.({'|'.join(map(re.escape, ends))})"
    matched = [name for name in linear_names(model) if re.fullmatch(short, name)]
    return short if sorted(matched) == layers else "|".join(map(re.escape, layers))
