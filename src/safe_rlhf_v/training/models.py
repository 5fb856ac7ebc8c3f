"""Models that are no runs, where a run can be named: exported folders, other Hugging Face folders, and names on the hub.

Their formats are read and never executed. A model that a configuration names is never fetched, as it may be a stranger's; one
that is named on a command line may be.
"""

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.sources import CLASSIFIES, in_hub_cache, load_or_refuse
from safe_rlhf_v.training.checkpoints import CheckpointError, checkpoints_below, fingerprint, refuse_non_finite

_LOG = logging.getLogger(__name__)

CLIP_FILE = "clip_decoder.json"
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG_FILE = "config.json"
EXPORT_FILE = "export.json"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_MAX_BYTES = 10_000_000


def is_model(source: Any) -> bool:
    """Whether a source is a model's folder or a name on the hub, and no run."""
    if not isinstance(source, (str, Path)):
        return False
    path = Path(source)
    if path.is_dir():
        return any((path / name).is_file() for name in (CLIP_FILE, ADAPTER_FILE, CONFIG_FILE))
    return is_hub_name(str(source))


def no_model_either(source: Any) -> str:
    """The end of a message about a folder without a checkpoint, where a model would do, too; "" of anything else."""
    if not isinstance(source, (str, Path)) or not Path(source).is_dir() or checkpoints_below(Path(source)):
        return ""
    return f"; nor is it a model's folder (none of {CONFIG_FILE}, {ADAPTER_FILE}, {CLIP_FILE})"


def is_hub_name(source: str) -> bool:
    """Whether a text can only be a name on the hub: it looks like one, and nothing here has its first part."""
    if not _HUB_NAME.fullmatch(source) or source.endswith(".ckpt"):
        return False
    return not Path(source).exists() and not Path(Path(source).parts[0]).exists()


def load_model(
    source: str | Path, role: str, base: str | None = None, fetch: bool = False, kind: str = "policy"
) -> Backbone:
    """A policy that is no run, or the network of another exported model, on the CPU and in evaluation mode.

    Args:
        source: Folder or hub name (``OWNER/NAME``, ``OWNER/NAME@REVISION``).
        role: What it is meant to be, for messages.
        base: Of an adapter's folder: the model under it, in place of the one that the folder names.
        fetch: Whether what is not on this machine may be downloaded.
        kind: What it must be, where it says so.

    Raises:
        CheckpointError: If it cannot be used, or is something else.
    """
    name = str(source)
    if not fetch and is_hub_name(name) and not in_hub_cache(name):
        raise CheckpointError(
            f"{role} {name}: no such run or folder, and not in the local hub cache; download it first"
        )
    try:
        _check_kind(Path(name), kind)
        backbone = _built(name, base, fetch)
    except Exception as error:  # a folder whose parts do not fit can raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise CheckpointError(f"{role} {name}: {kind}{' '.join(str(error).split())[:400]}") from error
    refuse_non_finite(backbone.state_dict(), f"{role} {name}")
    return backbone


def _built(name: str, base: str | None, fetch: bool) -> Backbone:
    if Path(name, CLIP_FILE).is_file():
        from safe_rlhf_v.models.clip_decoder import ClipDecoder

        return ClipDecoder.from_pretrained(name).eval()
    if Path(name, ADAPTER_FILE).is_file():
        return _with_adapter(name, base, fetch)
    return _family(name, fetch)


def model_stage(source: str | Path, role: str) -> dict[str, Any]:
    """A model in place of the checkpoint that a later stage starts from; see :func:`~.checkpoints.read_stage`.

    Args:
        source: Folder or hub name; nothing is fetched.
        role: See :func:`load_model`.

    Raises:
        CheckpointError: If it cannot be used.
    """
    backbone = load_model(source, role)
    return {
        "file": str(source),
        "state_dict": {f"backbone.{name}": value for name, value in backbone.state_dict().items()},
        "fingerprint": fingerprint(backbone),
        "rebuilt": [],
        "global_step": 0,
        "plain": True,
    }


def _check_kind(folder: Path, kind: str) -> None:
    """Raises: ValueError: If a folder holds a model of another kind, whose network alone would do something else."""
    if (folder / EXPORT_FILE).is_file():
        other = read_json(folder / EXPORT_FILE).get("kind")
        if other != kind:
            raise ValueError(f"is a {other} model, a {kind} is needed")
    elif (folder / CONFIG_FILE).is_file():
        classes = read_json(folder / CONFIG_FILE).get("architectures") or ()
        if any(CLASSIFIES in str(name) for name in classes):
            raise ValueError(f"holds {', '.join(map(str, classes))}, a {kind} is needed")


def _family(name: str, fetch: bool, processor: str | None = None) -> Backbone:
    from transformers import AutoConfig

    from safe_rlhf_v.models.hf_vlm import HFVLM

    place, _, revision = name.partition("@") if is_hub_name(name) else (name, "", "")
    hub: dict[str, Any] = {"revision": revision or None, "local_files_only": not fetch}
    config = load_or_refuse("model", place, AutoConfig.from_pretrained, place, **hub)
    brain = str(config.dtype).removeprefix("torch.") == "bfloat16"  # float16 has digits that bfloat16 would lose
    return HFVLM(place, processor=processor, dtype="bfloat16" if brain else "float32", **hub).eval()


def _with_adapter(folder: str, base: str | None, fetch: bool) -> Backbone:
    """The base of an adapter's folder, with the adapter merged."""
    from peft import PeftModel

    settings = read_json(Path(folder, ADAPTER_FILE))
    revision = settings.get("revision")
    named = settings.get("base_model_name_or_path")
    under = base or (f"{named}@{revision}" if named and revision and is_hub_name(str(named)) else named)
    if not under:
        raise ValueError(f"{ADAPTER_FILE} names no base model; name it there, or with --base")
    if not Path(folder, ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"holds {ADAPTER_FILE}, but no {ADAPTER_WEIGHTS}")
    if not Path(under).is_dir() and not (is_hub_name(str(under)) and (fetch or in_hub_cache(str(under)))):
        place = "in the local hub cache" if is_hub_name(str(under)) else "here"
        raise ValueError(f"its base, {under}, is not {place}; name the base with --base, or in its {ADAPTER_FILE}")
    exported = read_json(Path(folder, EXPORT_FILE)) if Path(folder, EXPORT_FILE).is_file() else {}
    if stored := exported.get("quantization"):
        _LOG.warning(
            "%s: was trained on a base stored as %.20s; here its base is plain, so numbers differ", folder, stored
        )
    own = folder if Path(folder, "tokenizer_config.json").is_file() else None
    backbone: Any = _family(str(under), fetch, own)
    try:
        with warnings.catch_warnings():  # between versions of peft and transformers, not about the folder
            warnings.simplefilter("ignore", FutureWarning)
            backbone.model = PeftModel.from_pretrained(backbone.model, folder).merge_and_unload()
    except Exception as error:  # an untrusted folder can raise anything
        raise ValueError(f"its adapter does not fit {under} ({type(error).__name__}: {str(error)[:200]})") from None
    backbone.base = None  # the base alone no longer gives these weights
    adapted: Backbone = backbone.eval()
    return adapted


def read_json(file: Path) -> dict[str, Any]:
    """A file of settings. Raises: ValueError: If it is none."""
    from safe_rlhf_v.records.user_files import read_bounded

    try:
        content = json.loads(read_bounded(file, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} cannot be read ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no settings")
    return content
