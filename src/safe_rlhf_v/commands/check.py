"""``python -m safe_rlhf_v check``: whether a Hugging Face model can be trained here, before its weights are loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_rlhf_v.commands.runner import run

if TYPE_CHECKING:
    from safe_rlhf_v.models.family_check import FamilyReport

EXAMPLES = ("check llava-hf/llava-1.5-7b-hf", "check models/my_vlm --freeze_projector false", "check all")
ABOUT = """With a hub name or folder, a small random copy of the network is tried on the CPU with the model's own processor:
padded and packed rows, features against pixels, several pictures, cached decoding, placeholders, gradients. With a model type
(qwen2_5_vl), or with 'all' for all families of the installed transformers, only what the architecture tells is looked at.
The status is 0 if every model that is named can be trained."""


class Checked(NamedTuple):
    """What :func:`check` gives.

    Attributes:
        lines: One per model.
        refused: Whether a model that was named cannot be trained.
    """

    lines: tuple[str, ...]
    refused: bool


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(
        check,
        args,
        name="check",
        show=lambda result: "\n".join(result.lines),
        examples=EXAMPLES,
        about=ABOUT,
        positional=True,
        status=lambda result: int(result.refused),
    )


def check(
    model: str,
    processor: str | None = None,
    freeze_tower: bool = True,
    freeze_projector: bool = True,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checked:
    """Say whether a Hugging Face image-text-to-text model can be trained, and what it cannot do.

    Args:
        model: Hub name, folder or model type; 'all' for every family of the installed transformers.
        processor: Hub name or folder of processor and tokenizer; without it the model's own.
        freeze_tower: Do not train the vision tower.
        freeze_projector: Do not train the projector (connector, merger).
        revision: Hub revision of model and processor.
        local_files_only: Never use the network.

    Returns:
        One line per model.

    Raises:
        ValueError: If the model's config or processor cannot be read.
    """
    from safe_rlhf_v.models.family_structure import model_types, structure_line

    if model == "all":
        return Checked(tuple(line for line, _ in map(structure_line, model_types())), refused=False)
    if model in model_types():
        line, served = structure_line(model)
        return Checked((line,), not served)
    hub = {"revision": revision, "local_files_only": local_files_only}
    report = _tried(model, {"freeze_tower": freeze_tower, "freeze_projector": freeze_projector, **hub}, processor, hub)
    return Checked((report.line,), bool(report.refused))


def _tried(model: str, options: dict[str, Any], processor: str | None, hub: dict[str, Any]) -> "FamilyReport":
    """The self-test of a model's family; its weights are not read."""
    from transformers import AutoConfig

    from safe_rlhf_v.models.family_reports import tested
    from safe_rlhf_v.models.family_shrink import shrunk_config
    from safe_rlhf_v.models.hf_vlm import HFVLM
    from safe_rlhf_v.models.sources import check_source, load_or_refuse, plain_config

    check_source("model", model)
    config = load_or_refuse("model", model, AutoConfig.from_pretrained, model, **hub)
    small = plain_config(shrunk_config(config, narrow=True))
    return tested(HFVLM(config=small, processor=processor or model, self_test=False, **options))
