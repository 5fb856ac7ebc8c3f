"""Command lines of the training commands: the configuration that a checkpoint carries is put in front."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from safe_rlhf_v.commands.config_files import options_of, values
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.runs import StoredRun, open_run
from safe_rlhf_v.training.stored_config import check_stored, read_stored, set_aside

KEYWORDS = ("best", "hpc")
"""Values of ``--ckpt_path`` that are Lightning's own."""

# Of a checkpoint's trainer section a resumed training takes these, where they are plain numbers and words: the others name
# classes that act, or places that are written to.
_RESUMED = (
    "accelerator", "accumulate_grad_batches", "check_val_every_n_epoch", "deterministic", "devices", "enable_checkpointing",
    "enable_progress_bar", "enable_model_summary", "gradient_clip_algorithm", "gradient_clip_val", "limit_train_batches",
    "limit_val_batches", "log_every_n_steps", "max_epochs", "max_steps", "min_epochs", "min_steps", "num_nodes",
    "num_sanity_val_steps", "precision", "reload_dataloaders_every_n_epochs", "strategy", "sync_batchnorm",
    "use_distributed_sampler", "val_check_interval",
)  # fmt: skip


class ReadingOptions(NamedTuple):
    """How runs are read.

    Attributes:
        trust: Packages whose classes a stored configuration may name.
        base: Pretrained model in place of the one that a run names.
    """

    trust: tuple[str, ...] = ()
    base: str | None = None


def take_reading_options(args: Sequence[str]) -> tuple[ReadingOptions, list[str]]:
    """Read ``--trust PACKAGE`` and ``--base PATH``; gives them and the other arguments.

    Raises:
        ValueError: If one of them has no value.
    """
    values_of: dict[str, list[str]] = {"--trust": [], "--base": []}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        option, joined, value = word.partition("=")
        if option not in values_of:
            rest.append(word)
            continue
        if not joined:
            value = next(words, "")
        if not value or value.startswith("-"):
            raise ValueError(
                f"{option}: needs a value, as in {option} {'my_package' if option == '--trust' else 'models/base'}"
            )
        values_of[option].append(value)
    return ReadingOptions(tuple(values_of["--trust"]), values_of["--base"][-1] if values_of["--base"] else None), rest


def with_stored_config(
    args: list[str], reading: ReadingOptions, sections: set[str]
) -> tuple[list[str], dict[str, Any] | None]:
    """A command line, with the configuration stored in its checkpoint put first unless a ``--config`` names a model.

    Of that, model and data are used, as of a stranger's file, and of the trainer's section only numbers, for ``fit``; what
    is written goes into the run's folder.

    Args:
        args: Without the options that :func:`take_reading_options` took.
        reading: Those.
        sections: Top-level keys of the ``--config`` in it.

    Returns:
        The command line, and what was put in front of it.

    Raises:
        ValueError: If the checkpoint does not exist, carries no configuration, or one that could act.
    """
    checkpoint = values(args, "--ckpt_path")[-1:]
    if not checkpoint or checkpoint[0] in ("last", *KEYWORDS):
        return args, None
    if "model" in sections:
        return args, None
    named = {option.removeprefix("--"): value for option, value in options_of(args)}
    run = open_run(checkpoint[0], "ckpt_path", trust=reading.trust, base=reading.base, named=named)
    stored = read_stored(run.stage)
    home = str(run_home(checkpoint[0], run.file))
    logger = {"save_dir": home, "name": "", "default_hp_metric": False}
    trainer = {
        "default_root_dir": home,
        "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": logger},
        **(_resumed(stored.get("trainer")) if args[0] == "fit" else {}),
    }
    used = {"model": run.model, **_data(run, stored.get("data"), named, reading)}
    seed = stored.get("seed_everything")
    seed = seed if isinstance(seed, (bool, int)) else 0
    first = {"seed_everything": seed, **normal_form(run.file, used), "trainer": trainer}
    return [args[0], f"--config={yaml.safe_dump(first)}", *args[1:]], first


def run_home(path: str | Path, file: str | Path) -> Path:
    """The folder of a run: the one that was named, or the one that a named checkpoint lies in.

    Args:
        path: What the user named.
        file: The checkpoint that was found.
    """
    if Path(path) != Path(file):
        return Path(path)
    home = Path(file).parent
    if home.name == "checkpoints":
        home = home.parent
    return home.parent if re.fullmatch(r"version_\d+", home.name) else home


def _data(run: StoredRun, data: Any, named: Mapping[str, str], reading: ReadingOptions) -> dict[str, Any]:
    """The stored data section, as far as it may be used; the user may name another folder of shards."""
    if data is None:
        return {}
    if not isinstance(data, dict) or not isinstance(data.setdefault("init_args", {}), dict):
        raise CheckpointError(f"{run.file}: its data section is none; name the data with --config")
    users = set_aside(data, "data", named)
    check_stored(run.file, data, "data", reading.trust)
    for section, key, value in users:
        section[key] = value
    return {"data": data}


def _resumed(section: Any) -> dict[str, Any]:
    """Plain settings of a stored trainer section."""
    options = section if isinstance(section, dict) else {}
    plain = {name: options[name] for name in _RESUMED if name in options}
    return {
        name: value
        for name, value in plain.items()
        if value is None
        or isinstance(value, (bool, int, float))
        or (isinstance(value, str) and re.fullmatch(r"[a-z0-9_-]+", value))
    }


def normal_form(file: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Checked sections with every option in the shape of its type, so that no text in them is taken for a file's name.

    Args:
        file: Where they come from, for the message.
        sections: ``model`` and ``data``.

    Raises:
        CheckpointError: If they do not fit their classes.
    """
    from jsonargparse import ArgumentError, ArgumentParser
    from lightning.pytorch import LightningDataModule, LightningModule

    from safe_rlhf_v.training.parser_errors import shorten

    parser = ArgumentParser(exit_on_error=False)  # reads no files: no sub_configs
    parser.add_subclass_arguments(LightningModule, "model")
    if "data" in sections:
        parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        parsed = parser.parse_object(sections)
    except ArgumentError as error:
        raise CheckpointError(f"{file}: its configuration is not one of this version ({shorten(str(error))})") from None
    normal: dict[str, Any] = yaml.safe_load(parser.dump(parsed, skip_none=False))
    return normal
