"""What a training command refuses before anything is built: it costs a second instead of the minutes until it matters."""

import inspect
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import strategies
from lightning.pytorch.strategies import StrategyRegistry

from safe_rlhf_v.commands.stored_settings import ReadingOptions
from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.models.sources import check_source
from safe_rlhf_v.scoring.external import find_scorer
from safe_rlhf_v.shards import Manifest
from safe_rlhf_v.training.checkpoints import CheckpointError, read_checkpoint, read_stage
from safe_rlhf_v.training.models import is_model, no_model_either
from safe_rlhf_v.training.parser_errors import unknown
from safe_rlhf_v.training.runs import KINDS, open_run
from safe_rlhf_v.training.stored_config import find_class, is_listed, read_stored

ROLES = {"start": "policy", "reward": "reward", "cost": "cost"}
"""Options of a policy's roles that name runs, and what those must train."""

NOTHING_TRUSTED = ReadingOptions()

_SPLITS = {
    "fit": ("train_split", "validation_splits"),
    "validate": ("validation_splits",),
    "test": ("test_splits",),
    "predict": ("test_splits",),
}


def preflight(command: str, config: Any, reading: ReadingOptions = NOTHING_TRUSTED) -> None:
    """Check a resolved configuration.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: Its section of the configuration, with ``trainer``, ``model`` and ``data``.
        reading: How runs are read; trusted packages are handed on to the roles.

    Raises:
        ValueError: With what was given and the mend.
    """
    check_precision(config.trainer)
    check_strategy(config.trainer.strategy)
    check_numbers(config)
    if command == "fit":
        check_length(config.trainer)
    for name in ("model", "data"):
        check_classes(config.get(name), name)
    check_runs(config, reading)
    check_sources(config.model.get("init_args", {}))
    if config.get("data") is not None:
        check_data(command, config.data)


def check_runs(config: Any, reading: ReadingOptions) -> None:
    """Every run that is named can be read, and is what it is named for.

    Raises:
        CheckpointError: Naming the option.
    """
    model = config.model.get("init_args", {})
    roles = (model.get("roles") or {}).get("init_args", {})
    if reading.trust and "trust" in roles:
        roles["trust"] = [*(roles["trust"] or ()), *reading.trust]
    trust = (*reading.trust, *(roles.get("trust") or ()))
    references: dict[str, tuple[Any, tuple[str, ...]]] = {"reference": (model.get("reference"), ("policy",))}
    references |= {role: (roles.get(role), (kind,)) for role, kind in ROLES.items()}
    for name, (path, kinds) in references.items():
        external = find_scorer(path, name) is not None if name in ("reward", "cost") else is_model(path)
        if isinstance(path, str) and not external:  # those are read when they are needed
            parts = () if kinds == ("policy",) else None
            open_run(path, name, kinds, trust=trust, base=reading.base or "", parts=parts)  # its base: when it is built
    if isinstance(path := model.get("init_from"), str) and not is_model(path):
        try:
            read_stage(path)
        except CheckpointError as error:
            raise CheckpointError(f"init_from {error}{no_model_either(path)}") from None
    if config.get("ckpt_path") and str(config.ckpt_path).endswith(".ckpt"):
        check_resumed(str(config.ckpt_path), config.model.class_path, trust)


def check_classes(section: Any, place: str) -> None:
    """No abstract class is named, at any depth: its turn may come after minutes.

    Raises:
        ValueError: Naming the option and classes that would do.
    """
    if isinstance(section, (list, tuple)):
        for i, item in enumerate(section):
            check_classes(item, f"{place}.{i}")
    items = getattr(section, "__dict__", section if isinstance(section, dict) else {})
    for key, value in items.items():
        if key == "class_path" and isinstance(value, str):
            cls = find_class(value)
            if is_abstract(cls):
                known = sorted(name for name, other in _concrete(cls) if not name.startswith("_"))
                mend = f", as {', '.join(known[:4])}" if known else ""
                raise ValueError(f"{place}: {value} is abstract; name a class that is built on it{mend}")
        else:
            check_classes(value, f"{place}.{key}")


def is_abstract(cls: Any) -> bool:
    """Whether a class leaves methods to others; Lightning's modules may be built all the same, and fail when one is called."""
    return inspect.isclass(cls) and any(
        getattr(inspect.getattr_static(cls, name, None), "__isabstractmethod__", False) for name in dir(cls)
    )


def _concrete(cls: type) -> Iterator[tuple[str, type]]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        if not is_abstract(child):
            yield child.__name__, child
        yield from _concrete(child)


def check_resumed(file: str, class_path: str, trust: Sequence[str]) -> None:
    """A checkpoint goes on as what it is: weights of a reward model fit into a cost model, and would mean nothing there.

    Raises:
        CheckpointError: If the configuration trains something else.
    """
    stage = read_checkpoint(file)
    if "config_yaml" not in stage:
        return
    stored = read_stored(stage)["model"]["class_path"]
    if stored == class_path or not is_listed(stored, trust):  # of a class that is not imported the tensors are compared
        return
    old, new = (getattr(find_class(path), "trains", "") for path in (stored, class_path))
    if old != new:
        raise CheckpointError(
            f"ckpt_path {file}: is {KINDS.get(old, old)} ({stored}), the configuration names {class_path}; "
            "give the configuration of that run, or start anew with init_from"
        )


def check_sources(model: Any) -> None:
    """Folders of tokenizers and models exist and hold what they should.

    Raises:
        ValueError: Naming the option.
    """
    backbone = (model.get("backbone") or {}).get("init_args", {})
    for option in ("tokenizer", "processor", "model", "config", "decoder"):
        if isinstance(value := backbone.get(option), str):
            check_source(option, value)
    if isinstance(value := backbone.get("model"), str) and not backbone.get("processor") and Path(value).is_dir():
        check_source("tokenizer", value)


def check_precision(trainer: Any) -> None:
    """Float16 needs a GPU.

    Raises:
        ValueError: If there is none.
    """
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and str(trainer.precision) in ("16", "16-mixed", "16-true"):
        raise ValueError(f"trainer.precision {trainer.precision} needs a GPU; on a CPU use 32-true or bf16-mixed")


def check_strategy(strategy: Any) -> None:
    """A strategy is a class, or one of the names that Lightning has for them.

    Raises:
        ValueError: With the nearest name.
    """
    names = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy not in names:
        classes = [name for name in dir(strategies) if name.endswith("Strategy")]
        mend = f"Lightning's are {', '.join(name for name in names if '_' not in name)}; or name a class by its path"
        raise ValueError(f"trainer: {unknown('strategy', strategy.rpartition('.')[2], [*names, *classes], mend)}")


def check_numbers(config: Any) -> None:
    """Numbers that Lightning takes without a word, and that mean nothing.

    Raises:
        ValueError: Naming the option.
    """
    for name, least in (("accumulate_grad_batches", 1), ("gradient_clip_val", 0)):
        value = config.trainer.get(name)
        if value is not None and value < least:
            raise ValueError(f"trainer.{name} is {value}; it must be at least {least}")
    for prefix, scale in (config.model.get("init_args", {}).get("lr_scale") or {}).items():
        if scale < 0:
            raise ValueError(f"lr_scale: {prefix} is {scale}; a learning rate cannot be negative")


def check_length(trainer: Any) -> None:
    """A training has steps: one without would end with status 0 and leave nothing.

    Raises:
        ValueError: Naming the option that allows none.
    """
    for name in ("max_steps", "max_epochs", "limit_train_batches"):
        if (value := trainer.get(name)) is not None and value == 0:
            raise ValueError(f"trainer.{name} is 0, nothing would be trained; give a number above 0")


def check_data(command: str, data: Any) -> None:
    """Shard folder and splits exist; data modules of others are not looked into.

    Raises:
        ValueError: Naming what is missing.
    """
    module, _, name = data.class_path.rpartition(".")
    if not issubclass(getattr(import_module(module), name), ShardDataModule):
        return
    options = data.init_args
    path = Path(options.path)
    if not (path / "manifest.json").is_file():
        raise ValueError(
            f"data.path {path}: no shard folder; name one by --data.init_args.path, or write one: "
            "'python -m safe_rlhf_v world --out data/world' (synthetic), or of your own by 'shards import' ('shards --help')"
        )
    manifest = Manifest.load(path)
    if command == "fit":
        manifest.check_training(path)
    known = list(manifest.splits)
    for option in _SPLITS[command]:
        splits = options[option]
        for split in (splits,) if isinstance(splits, str) else splits:
            if split not in known:
                raise ValueError(
                    f"data.{option} names {split!r}, but {path} has only {', '.join(known)}; "
                    f"choose, as in --data.init_args.{option}={known[0] if isinstance(splits, str) else f'[{known[0]}]'}"
                )
