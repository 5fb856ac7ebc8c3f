"""Models out of run folders: what later stages, commands and evaluations start from.

A run is read as a stranger's file: see :mod:`safe_rlhf_v.training.stored_config`. Of its configuration only the model's
section is used. What the model was built from stands in the checkpoint; a pretrained base is named by the user, or found
below the working directory or in the local hub cache, and never fetched.

In Python, a module that a ``Trainer`` has trained stands wherever a run can be named (:data:`Source`).
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jsonargparse.typing import register_type
from lightning_utilities.core.rank_zero import rank_zero_only

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.heads import Head
from safe_rlhf_v.models.sources import SOURCES_KEY, in_hub_cache
from safe_rlhf_v.training.checkpoints import CheckpointError, fingerprint, load_stage, read_stage
from safe_rlhf_v.training.models import is_model, load_model, model_stage, no_model_either
from safe_rlhf_v.training.stored_config import check_stored, find_class, is_listed, leads_out, read_stored, set_aside

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

NOTHING_NAMED: Mapping[str, str] = {}

IN_CHECKPOINT = ("init_from", "reference")
"""Options of modules that name runs whose weights a checkpoint holds from then on."""

BASES = ("model", "folder")
FILES = ("tokenizer", "processor", "config", "decoder")
"""Options of backbones that name pretrained weights, and other files."""

KINDS = {
    "policy": "a policy",
    "reward": "a reward model",
    "cost": "a cost model",
    "guard": "a guard",
    "tower": "a vision tower",
    "": "of a class that does not say what it trains",
}
"""What ``BaseModule.trains`` may be, in words."""


class TrainedModule(Protocol):
    """A module that was trained in Python; every :class:`~safe_rlhf_v.modules.base.BaseModule` is one."""

    def as_stage(self) -> dict[str, Any]:
        """What :func:`~safe_rlhf_v.training.checkpoints.read_stage` would read from a checkpoint of the module."""


Source = str | TrainedModule
"""Where the weights of an earlier stage come from: a run, the folder or hub name of a model, or in Python the module itself."""


def _refuse(value: Any) -> Any:
    raise ValueError("name a run folder or a checkpoint; a module itself can be given in Python only")


# For configurations a source is a text; without this, its help would offer to build a module.
register_type(TrainedModule, serializer=repr, deserializer=_refuse, fail_already_registered=False)


class StoredRun(NamedTuple):
    """A run's checkpoint, read and checked, and nothing is built yet; or a module that was given in its place.

    Attributes:
        file: The checkpoint, or which module was given.
        stage: Its content.
        model: Section of its configuration, with the checkpoint in place of files that it carries; empty for a given module.
        cls: The module's class.
        module: The given module; ``None`` for a run.
    """

    file: str
    stage: dict[str, Any]
    model: dict[str, Any]
    cls: Any
    module: Any = None

    @property
    def steps(self) -> int:
        """Optimizer steps it was trained."""
        return int(self.stage.get("global_step", 0))

    def named(self, role: str) -> str:
        """One line that says which file stands for a role."""
        return f"{role}: {self.file} (step {self.steps})"


def open_run(
    path: Source | Path,
    role: str = "run",
    kinds: Collection[str] = (),
    *,
    trust: Sequence[str] = (),
    base: str | None = None,
    known_bases: Collection[str] = (),
    parts: Collection[str] | None = None,
    named: Mapping[str, str] = NOTHING_NAMED,
) -> StoredRun:
    """Read and check a run's newest checkpoint.

    Args:
        path: Run folder or checkpoint, or a trained module in its place.
        role: What it is meant to be, for messages: ``reward model``.
        kinds: What it may train (:data:`KINDS`); empty for anything.
        trust: Packages whose classes may be imported.
        base: Folder or hub name of the pretrained model it was trained on, in place of the one it names.
        known_bases: Bases that the user named elsewhere, and that it may name, too.
        parts: Options of the module that will be used (``backbone``); ``None`` for all. The others are left out.
        named: Values that the user gives in place of stored ones, by their place: ``model.init_args.roles.init_args.cost``.

    Raises:
        CheckpointError: If there is no readable checkpoint of this library, or it is not what it is meant to be.
    """
    if not isinstance(path, (str, Path)):
        return _stand_in(path, role, kinds)
    if kinds == ("policy",) and is_model(path):
        return StoredRun(str(path), model_stage(path, role), {}, None)
    try:
        stage = read_stage(str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{role} {error}{no_model_either(path) if kinds == ('policy',) else ''}") from None
    file = stage["file"]
    model = read_stored(stage)["model"]
    init = model["init_args"] = {k: v for k, v in model["init_args"].items() if parts is None or k in parts}
    for name in IN_CHECKPOINT:
        if name in init:
            init[name] = None
    cls = None
    if is_listed(model["class_path"], trust):  # if not, it is refused below
        cls = _class_of(file, role, kinds, model["class_path"])
    users = set_aside(model, "model", named)
    places = _replace_sources(file, stage, init, base, known_bases)
    check_stored(file, model, "model", trust)
    init.get("backbone", {}).get("init_args", {}).update(places)
    for section, key, value in users:
        section[key] = value
    return StoredRun(file, stage, model, cls)


def stage_of(source: Source, role: str, kinds: Collection[str] = ()) -> dict[str, Any]:
    """What a later stage starts from; nothing is built.

    Args:
        source: Run folder, checkpoint or trained module.
        role: What it is meant to be, for messages about a module.
        kinds: What a module may train (:data:`KINDS`); empty for anything.

    Raises:
        CheckpointError: If it cannot be read, or is something else.
    """
    if is_model(source):
        return model_stage(str(source), role)
    return read_stage(source) if isinstance(source, (str, Path)) else _stand_in(source, role, kinds).stage


def _stand_in(module: TrainedModule, role: str, kinds: Collection[str]) -> StoredRun:
    """A module in the place of a run. Raises: CheckpointError: If it is none of ours, or not what it is meant to be."""
    cls: Any = type(module)
    if not hasattr(module, "as_stage"):
        raise CheckpointError(
            f"{role}: a {cls.__name__} was given; give a run folder, a checkpoint or a module of this library"
        )
    if fault := _unfit(cls, kinds):
        raise CheckpointError(f"{role}: the given {cls.__name__} {fault}")
    stage = module.as_stage()
    return StoredRun(stage["file"], stage, {}, cls, module)


def _class_of(file: str, role: str, kinds: Collection[str], path: str) -> Any:
    """A run's class. Raises: CheckpointError: If there is none, or it trains something else than it is meant for."""
    try:
        cls = find_class(path)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if fault := _unfit(cls, kinds):
        raise CheckpointError(f"{role} {file}: {fault}; name the run of one")
    return cls


def _unfit(cls: Any, kinds: Collection[str]) -> str:
    """What is wrong with a module's class, or "" if it trains what is needed."""
    trains = getattr(cls, "trains", "")
    if not kinds or trains in kinds:
        return ""
    needed = " or ".join(KINDS[kind] for kind in kinds)
    return f"is {KINDS.get(trains, trains)} ({cls.__name__}), {needed} is needed"


def _replace_sources(
    file: str, stage: dict[str, Any], init: dict[str, Any], base: str | None, known_bases: Collection[str]
) -> dict[str, Any]:
    """Take out of a backbone's section what names files; gives the values to put in once the rest is checked."""
    backbone = init.get("backbone")
    options = backbone.get("init_args") if isinstance(backbone, dict) else None
    if not isinstance(options, dict):
        return {}
    sources = stage.get(SOURCES_KEY)
    if (
        isinstance(sources, dict)
        and isinstance(sources.get("options"), dict)
        and isinstance(sources.get("files"), dict)
    ):
        options.update({name: value for name, value in sources["options"].items() if name in options})
        carried = [name for name in sources["files"] if name in options and name in FILES]
    else:
        carried = []
    places: dict[str, Any] = {}
    for name in (*BASES, *FILES):
        value = options.get(name)
        if name in carried:
            places[name] = file
        elif isinstance(value, str):
            places[name] = _place(file, name, value, base, known_bases)
        else:
            continue
        options[name] = None
    if "local_files_only" in options and base is None:
        places["local_files_only"] = True
    for name in ("tower", "clip"):  # shapes of towers that open_clip reads from a folder
        settings = options.get(name)
        scheme, colon, value = str(settings.get("name") if isinstance(settings, dict) else "").partition(":")
        if colon and isinstance(settings, dict):
            own = value if scheme == "local-dir" else f"{scheme}:{value}"  # an address never passes
            settings["name"] = None
            places[name] = {**settings, "name": f"local-dir:{_place(file, 'folder', own, base, known_bases)}"}
    return places


def _place(file: str, name: str, value: str, base: str | None, known_bases: Collection[str]) -> str:
    """Where the files are that a stored option names. Raises: CheckpointError: If the user has to say."""
    if name in BASES and base is not None:
        return base
    if value in known_bases:
        return value
    inside = not leads_out(value)
    if inside and Path(value).is_dir():
        return value
    if name in FILES:
        raise CheckpointError(f"{file}: carries no {name}, and its own ({value[:100]!r}) is not here; train it again")
    if inside and in_hub_cache(value):
        return value
    raise CheckpointError(
        f"{file}: was trained on {value[:100]!r}, which is neither below the working directory nor in the local hub cache; "
        "name it with --base FOLDER_OR_HUB_NAME"
    )


@rank_zero_only
def say(line: str) -> None:
    """Print which checkpoint stands for a role."""
    print(line, flush=True)


def load_run(
    path: str | Path,
    role: str = "run",
    kinds: Collection[str] = (),
    *,
    trust: Sequence[str] = (),
    base: str | None = None,
    named: Mapping[str, str] = NOTHING_NAMED,
) -> "LightningModule":
    """The module of a run's newest checkpoint, on the CPU and in evaluation mode; which one is printed.

    Args:
        path: Run folder or checkpoint.
        role: See :func:`open_run`, like the others.
        kinds: What it may train.
        trust: Packages whose classes may be imported.
        base: Its pretrained model.
        named: Values in place of stored ones, as a policy's ``model.init_args.roles.init_args.cost``.

    Raises:
        CheckpointError: If there is no readable checkpoint of this library, or it does not fit.
    """
    return load_opened(open_run(path, role, kinds, trust=trust, base=base, named=named), role)


def load_opened(run: StoredRun, role: str) -> "LightningModule":
    """The module of a run that was opened; see :func:`load_run`."""
    module = build_module(run)
    module.configure_model()
    module.on_load_checkpoint(run.stage)
    module.load_state_dict(run.stage["state_dict"], strict=module.strict_loading)
    say(run.named(role))
    return module.eval()


def build_module(run: StoredRun) -> "LightningModule":
    """The module of a run, without networks.

    Raises:
        CheckpointError: If its options are not those of its class.
    """
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    module: LightningModule = _instantiated(run, parser, {"model": run.model}).model
    return module


def load_scorer(run: StoredRun, role: str) -> tuple[Backbone, Head]:
    """Network and head of a reward or cost model, on the CPU and in evaluation mode; those of a given module are copied.

    Args:
        run: The run.
        role: See :func:`open_run`.
    """
    if run.module is None:
        module: Any = load_opened(run, role)
        return module.backbone, module.head
    say(run.named(role))
    backbone: Backbone = copy.deepcopy(run.module.backbone).cpu().eval()
    head: Head = copy.deepcopy(run.module.head).cpu().eval()
    return backbone, head


def load_head(run: StoredRun, backbone: Backbone) -> Head:
    """The head of a reward or cost model, reading a backbone that exists already: no second one is built.

    Args:
        run: The run.
        backbone: Stands where the run's own stood.
    """
    if run.module is not None:
        copied: Head = copy.deepcopy(run.module.head).cpu()
        return copied
    module: Any = build_module(run)
    module.make_backbone = lambda: backbone
    module.build()
    weights = {k.removeprefix("head."): v for k, v in run.stage["state_dict"].items() if k.startswith("head.")}
    head: Head = module.head
    head.load_state_dict(weights)
    return head


def load_backbone(
    path: str | Path,
    role: str = "policy",
    kinds: Collection[str] = ("policy",),
    *,
    trust: Sequence[str] = (),
    base: str | None = None,
) -> Backbone:
    """The backbone alone of a run's newest checkpoint: a policy, without critics and scorers; which one is printed.

    Args:
        path: Run folder or checkpoint, or a model's folder or hub name, which may be downloaded.
        role: See :func:`open_run`, like the others.
        kinds: What it may train.
        trust: Packages whose classes may be imported.
        base: Its pretrained model.

    Raises:
        CheckpointError: If there is no readable checkpoint of this library, or it is no policy's.
    """
    if is_model(path):
        say(f"{role}: {path}")
        return load_model(path, role, base, fetch=True)
    run = open_run(path, role, kinds, trust=trust, base=base, parts=("backbone",))
    backbone = build_backbone(run)
    load_stage(run.stage, backbone, fingerprint(backbone))
    say(run.named(role))
    return backbone.eval()


def build_backbone(run: StoredRun) -> Backbone:
    """The backbone of a run as it was built, before its training.

    Raises:
        CheckpointError: If its options are not those of its class.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Callable[[], Backbone])
    section = {"backbone": run.model["init_args"].get("backbone")}
    backbone: Backbone = _instantiated(run, parser, section).backbone()
    return backbone


def _instantiated(run: StoredRun, parser: Any, section: dict[str, Any]) -> Any:
    """The objects of a section of a run's configuration. Raises: CheckpointError: If its options are not their classes'."""
    from jsonargparse import ArgumentError

    from safe_rlhf_v.training.parser_errors import shorten

    try:
        return parser.instantiate_classes(parser.parse_object(section))
    except ArgumentError as error:
        reason = f"its configuration is not one of this version ({shorten(str(error))})"
        raise CheckpointError(f"{run.file}: {reason}") from None
