"""A run as a folder that loads without this library."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from safe_rlhf_v import __version__
from safe_rlhf_v.export import check, clip, guard_levels, vlm, vlm_loader
from safe_rlhf_v.export.card import write_card
from safe_rlhf_v.export.folder import check_new, new_folder
from safe_rlhf_v.export.trained import Trained
from safe_rlhf_v.guard.calibration import Calibration, CalibrationMissing, run_home
from safe_rlhf_v.models import plain_inputs
from safe_rlhf_v.models.clip_decoder import ClipDecoder
from safe_rlhf_v.models.heads import ScalarHead
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.links import MAX_LOG_SCALE, CornLink, CumulativeLink, SoftmaxLink
from safe_rlhf_v.models.quantization import storage_of
from safe_rlhf_v.records.taxonomy import MIN_LEVEL
from safe_rlhf_v.training.lineage import exported_lineage

DType = Literal["float32", "bfloat16", "float16"]
SETTINGS_FILE = "export.json"
_SHARED = re.compile(r"^from safe_rlhf_v\.models\.plain_inputs import (?:\([^)]*\)|.*)$", re.MULTILINE)
"""The line of a loader in whose place the functions stand that it shares with this library."""


class Export(NamedTuple):
    """What was written.

    Attributes:
        kind: ``policy``, ``reward``, ``cost`` or ``guard``.
        loads_with: What loads it.
        left_out: What of the run is not in it, in words.
        difference: Largest difference of the folder's values from the run's, in units of their size; ``None`` if not compared.
    """

    kind: str
    loads_with: str
    left_out: tuple[str, ...]
    difference: float | None


def write_export(
    trained: Trained,
    path: Path,
    out: Path,
    data: Path | None = None,
    adapter: bool = False,
    dtype: DType | None = None,
    compare: bool = True,
) -> Export:
    """Write a run's model; what cannot be exported is refused before anything is written.

    Args:
        trained: The run, loaded; its model is changed.
        path: The run's folder or checkpoint, whose measurements go into the card.
        out: Folder to write.
        data: Shard folder that it was trained on, in place of the one that the run names.
        adapter: Write a policy's adapter without its base.
        dtype: Of the weights; ``None`` leaves them as they are.
        compare: Load what was written on its own, and compare it with the run.

    Raises:
        FileError: If something stands in the place of the folder.
        ValueError: If the model is none that can be exported.
    """
    check_new(out)
    _check(trained, adapter, dtype)
    expected = check.values_of_run(trained) if compare else None
    base = check.values_of_base(trained) if compare else None
    weights = None if dtype is None else getattr(torch, dtype)
    with new_folder(out) as folder:
        settings = {**_about(trained, path, adapter), **_guard(trained, path)}
        settings |= _write(trained, settings["outputs"], folder, adapter, weights)
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        rounded = settings["dtype"] != "float32"
        difference = None
        if expected is not None:
            actual = check.values_of_folder(trained, folder, settings)
            difference = check.refuse_differences(expected, actual, rounded, base)
        card = write_card(trained, path, settings, data, difference)
        (folder / "README.md").write_text(card, errors="replace")
    return Export(trained.kind, settings["loads_with"], trained.left_out, difference)


def _check(trained: Trained, adapter: bool, dtype: DType | None) -> None:
    """Raises: ValueError: If the model is none that can be exported."""
    backbone = trained.backbone
    name = type(backbone).__name__
    head = trained.head
    if adapter:
        vlm.check_adapter(trained)
        if dtype is not None:
            raise ValueError("--dtype: an adapter is float32 whatever its base is; leave the option out")
    if isinstance(backbone, ClipDecoder):
        clip.check_tower(backbone)
        if head is not None and not clip.known_head(head):
            raise ValueError(
                f"its head, {type(head).__name__}, is none that a folder can carry (ScalarHead, EvidenceHead)"
            )
    elif isinstance(backbone, HFVLM):
        if head is not None and type(head) is not ScalarHead:
            raise ValueError(
                f"its head, {type(head).__name__}, reads more than the last state; on a Hugging Face model ScalarHead is exported"
            )
    else:
        raise ValueError(f"its backbone, {name}, cannot be exported; HFVLM and ClipDecoder can")
    if trained.link is not None and type(trained.link) not in (CornLink, CumulativeLink, SoftmaxLink):
        raise ValueError(f"its link, {type(trained.link).__name__}, is none that a folder can carry (CornLink, ...)")


def _about(trained: Trained, path: Path, adapter: bool) -> dict[str, Any]:
    """What the model is and where it comes from; folders of this machine are named only where an adapter needs its base."""
    base, _, revision = str(trained.backbone.base or "").partition("@")
    outputs = {"policy": [], "reward": ["reward"], "cost": ["cost"]}.get(trained.kind)
    if outputs is None:
        assert trained.link is not None
        outputs = [f"level_{i}" for i in range(trained.link.features)]
        outputs += ["prompt_risk", *(f"category: {name}" for name in trained.categories)]
    return {
        "format": "safe_rlhf_v.export",
        "written_by": f"safe_rlhf_v {__version__}",
        "kind": trained.kind,
        "run": Path(path).resolve().name,
        "step": trained.run.steps,
        "outputs": outputs,
        "base": None if not base else base if adapter or not Path(base).exists() else Path(base).name,
        "revision": revision or None,
        "left_out": list(trained.left_out),
        **exported_lineage(str(path)),
    }


def _guard(trained: Trained, path: Path) -> dict[str, Any]:
    """Link, categories and calibration of a guard. Raises: ValueError: If the calibration belongs to other weights."""
    link = trained.link
    if link is None:
        return {}
    if isinstance(link, CumulativeLink):
        scale = MAX_LOG_SCALE if link.scale else None
        numbers = {"kind": "cumulative", "thresholds": link.thresholds.double().tolist(), "max_log_scale": scale}
    else:
        numbers = {"kind": "corn" if isinstance(link, CornLink) else "softmax"}
    fitted: Calibration | None = None
    with suppress(CalibrationMissing):
        fitted = Calibration.load(run_home(path))
    if fitted is not None:
        fitted.check_model(trained.identity)
    names = ("level_temperature", "prompt_temperature", "block", "review", "prompt_block", "prompt_review")
    plain = {"level_temperature": 1.0, "prompt_temperature": 1.0}
    return {
        "link": numbers,
        "lowest_level": MIN_LEVEL,
        "categories": list(trained.categories),
        "calibrated": fitted is not None,
        "calibration": plain if fitted is None else {name: getattr(fitted, name) for name in names},
        "certificate": {} if fitted is None else fitted.certificate,
    }


def _write(
    trained: Trained, outputs: list[str], folder: Path, adapter: bool, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Write weights and loaders; gives what the loaders and a reader must know."""
    backbone = trained.backbone
    if isinstance(backbone, ClipDecoder):
        from safe_rlhf_v.export import clip_loader

        settings = clip.write_clip(backbone, trained.head, folder, dtype)
        _copy_loader(clip_loader, folder, "loader.py")
        form = {"form": "clip", "loads_with": "loader.Model"}
        weights = backbone.decoder.dtype
    else:
        assert isinstance(backbone, HFVLM)
        vlm.complete_processor(backbone)
        settings = {"prompt": vlm.prompt_form(backbone)}
        if adapter:
            stored = storage_of(backbone.model)
            vlm.write_adapter(trained, folder)
            settings["quantization"] = stored
            form = {"form": "adapter", "loads_with": "peft.PeftModel"}
        elif trained.head is None:
            vlm.write_policy(backbone, folder, dtype)
            form = {"form": "policy", "loads_with": "transformers.AutoModelForImageTextToText"}
        else:
            loads = vlm.write_scorer(trained, outputs, folder, dtype)
            _copy_loader(vlm_loader, folder, "loader.py")
            form = {"form": "scorer", "class": loads, "loads_with": f"loader.Scorer, transformers.{loads}"}
        weights = backbone.model.dtype
    if trained.link is not None:
        _copy_loader(guard_levels, folder, "levels.py")
    return {**settings, **form, "dtype": str(weights).removeprefix("torch.")}


def _copy_loader(module: Any, folder: Path, name: str) -> None:
    """One of this room's files, with a copy of what it uses of this library in it."""
    source = Path(str(module.__file__)).read_text()
    shared = Path(plain_inputs.__file__).read_text()
    shared = shared[shared.index("\nimport") :]  # without its docstring
    (folder / name).write_text(_SHARED.sub(lambda _: shared, source))
