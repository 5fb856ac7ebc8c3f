"""What the architecture of a family tells, without weights and processor: on the meta device, in about a second."""

import logging
from typing import Any

import torch

from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models.family_defaults import DEFAULTS


def model_types() -> tuple[str, ...]:
    """Model types of ``AutoModelForImageTextToText`` in the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    return tuple(sorted(NAMES))


def structure_line(model_type: str) -> tuple[str, bool]:
    """One line about a family, and whether it can be served.

    Args:
        model_type: One of :func:`model_types`.
    """
    try:
        model = _on_meta(model_type)
    except Exception as error:  # the defaults of a config need not make a network
        return f"{model_type}: unknown, its default config makes no network ({first_line(error)}); check a model", False
    if model is None:
        return f"{model_type}: refused: transformers has no image-text-to-text network for its config", False
    try:
        families.check_supported(model)
        families.check_processor(model.config)
    except ValueError as error:
        return f"{model_type}: refused: {error}", False
    rows = "packed rows" if families.packs(model.config) else "unpacked rows, as its layers carry states"
    return f"{model_type}: supported by its structure ({rows}); each model is tried when it is loaded", True


def _on_meta(model_type: str) -> Any | None:
    """The network of a config's defaults, ``None`` if the config is of another kind of model (proteins, for one)."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as NETWORKS

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # about defaults that nobody chose
    try:
        config = AutoConfig.for_model(model_type, **DEFAULTS.get(model_type, {}))
        if type(config) not in NETWORKS:
            return None
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """Type and beginning of an error, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
