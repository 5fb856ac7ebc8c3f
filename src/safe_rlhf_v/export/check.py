"""Is what was written the run's model? The folder is loaded as a stranger would load it, and both answer the same probes."""

import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.export.trained import Trained
from safe_rlhf_v.export.vlm_loader import inputs_of, load_processor
from safe_rlhf_v.models.adapters import adapter, adapter_layers
from safe_rlhf_v.models.quantization import kept_modules, quantization_config
from safe_rlhf_v.records.batches import Prompts

QUESTION = "what does this show and is it safe"
RESPONSE = "it is safe"
FLOAT32 = 1e-4
"""Largest difference that is rounding, in units of the values' size; the tests' bound is stricter."""
HALF = 0.1
"""The same where weights were rounded to 16 bits."""


def picture() -> Tensor:
    """(30, 44, 3) uint8: a gradient, wider than high."""
    rows = torch.arange(30, dtype=torch.float32)[:, None, None] / 30
    columns = torch.arange(44, dtype=torch.float32)[None, :, None] / 44
    phase = torch.tensor([0.0, 2.0, 4.0])
    return (127 + 120 * torch.sin(6 * rows + 9 * columns + phase)).to(torch.uint8)


@torch.no_grad()
def values_of_run(trained: Trained) -> list[Tensor]:
    """Per probe what the run's own model says: log-probabilities of a policy's response tokens, outputs of a head."""
    backbone: Any = trained.backbone
    values: list[Tensor] = []
    for images in ((), (picture(),)):
        prompts = Prompts((images,), (tuple(f"probe-{i}" for i in range(len(images))),), (QUESTION,))
        prepared = backbone.prepare(prompts, [(RESPONSE,)])
        head = trained.head
        states = backbone.response_states(prepared, log_probs=head is None or head.needs_log_probs)
        values.append(states.log_probs[0] if head is None else head(states)[0])
    return values


@torch.no_grad()
def values_of_folder(trained: Trained, folder: Path, settings: dict[str, Any]) -> list[Tensor]:
    """Per probe what the folder's model says.

    Args:
        trained: The run, for its kind.
        folder: What was written.
        settings: ``export.json`` in it.

    Raises:
        ValueError: If it cannot be loaded.
    """
    try:
        with warnings.catch_warnings():  # what libraries say to those who load it is not about the run
            warnings.simplefilter("ignore")
            return _values_of_folder(trained, folder, settings)
    except Exception as error:  # libraries, and what is not installed
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"not written: on its own the folder's model cannot be used ({type(error).__name__}: {reason}); mend that, or write "
            "it all the same with --check false"
        ) from error


def _values_of_folder(trained: Trained, folder: Path, settings: dict[str, Any]) -> list[Tensor]:
    from PIL import Image

    pictures = [[], [Image.fromarray(picture().numpy())]]
    if settings["form"] == "clip" and trained.head is None:
        model = load_module(folder / "loader.py").Model(folder)
        return [model.states(images, QUESTION, RESPONSE)["log_probs"] for images in pictures]
    if settings["form"] in ("clip", "scorer"):
        module = load_module(folder / "loader.py")
        scorer = (module.Model if settings["form"] == "clip" else module.Scorer)(folder)
        return [torch.tensor([*scorer(images, QUESTION, RESPONSE).values()]) for images in pictures]
    return [_log_probs(folder, settings, images) for images in pictures]


def _log_probs(folder: Path, settings: dict[str, Any], images: list[Any]) -> Tensor:
    """(R,) log-probabilities of the response's tokens in a plain Hugging Face folder, or in an adapter's."""
    from transformers import AutoModelForImageTextToText

    if settings["form"] == "adapter":
        from peft import PeftModel

        base = AutoModelForImageTextToText.from_pretrained(
            settings["base"], revision=settings["revision"], **_stored(settings)
        )
        model: Any = PeftModel.from_pretrained(base, folder)
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = load_processor(folder)
    template = processor.chat_template
    form = {**settings["prompt"], "template": template["default"] if isinstance(template, dict) else template}
    inputs = inputs_of(processor, form, images, QUESTION, RESPONSE)
    alone = inputs_of(processor, form, images, QUESTION, "")["input_ids"].shape[1] - 1
    logits = model.eval()(**inputs).logits[0, alone - 1 : -1].float()
    targets = inputs["input_ids"][0, alone:]
    log_probs: Tensor = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return log_probs


def _stored(settings: dict[str, Any]) -> dict[str, Any]:
    """How the base under an adapter is loaded: in the 4 or 8 bits that the adapter was trained on."""
    kind = settings["quantization"]
    if kind is None:
        return {}
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(settings["base"], revision=settings["revision"])
    dtype = getattr(torch, settings["dtype"])
    config = quantization_config(kind, kept_modules(shape), dtype)
    return {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": dtype}


@torch.no_grad()
def values_of_base(trained: Trained) -> list[Tensor] | None:
    """As :func:`values_of_run` without the run's adapter; ``None`` if it has none."""
    if not adapter_layers(trained.backbone):
        return None
    with adapter(trained.backbone, None):
        return values_of_run(trained)


def refuse_differences(
    run: list[Tensor], folder: list[Tensor], rounded: bool, base: list[Tensor] | None = None
) -> float:
    """The largest difference, in units of the values' size.

    Args:
        run: What the run's model says.
        folder: What the folder's model says.
        rounded: Whether weights were rounded to 16 bits.
        base: What the run's model says without its adapter.

    Raises:
        ValueError: If it is more than rounding, or what was written is the base.
    """
    if any(a.shape != b.shape for a, b in zip(run, folder, strict=True)):
        raise ValueError(
            "not written: loaded on its own, the folder reads other tokens than the run (its processor differs)"
        )
    largest = _difference(run, folder, run)
    if not largest <= (HALF if rounded else FLOAT32):
        raise ValueError(
            f"not written: loaded on its own, the folder's model differs from the run's by {largest:.2g} of its values; this "
            "model cannot be exported (--check false writes it all the same)"
        )
    if base is not None and 2 * _difference(base, folder, run) < largest:  # 16 bits could hide what an adapter changes
        raise ValueError(
            "not written: loaded on its own, the folder's model is the base without what the run has trained"
        )
    return largest


def _difference(values: list[Tensor], others: list[Tensor], scale: list[Tensor]) -> float:
    """The largest difference, in units of the size of ``scale``."""
    differences = [
        float((a.float() - b.float()).abs().max()) / max(1.0, float(of.abs().max()))
        for a, b, of in zip(values, others, scale, strict=True)
    ]
    return max(differences, key=lambda difference: (math.isnan(difference), difference))  # NaN is the worst


def load_module(file: Path) -> Any:
    """A Python file as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"exported_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
