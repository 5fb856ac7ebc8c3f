"""The training commands: ``fit``, ``validate``, ``test`` and ``predict`` through LightningCLI.

What differs from LightningCLI's defaults, and why:

* an error is one line, and what can be refused before anything is built is refused then;
* the resolved configuration travels inside every checkpoint, so ``test --ckpt_path X`` needs no ``--config``;
* on resume the user's settings win over the checkpoint's, and the differences are printed;
* ``--ckpt_path`` also takes a run's folder, or ``last``: the newest whole checkpoint there;
* ``predict`` writes ``predictions.jsonl`` into the run's folder and keeps no predictions in memory;
* checkpoints are written atomically, and without a ``ModelCheckpoint`` in the configuration the two newest are kept;
* a run that ends, or is told to, leaves its last state; one whose numbers break ends with status 3 and leaves nothing;
* data modules split by rank themselves (``use_distributed_sampler`` is off).
"""

import errno
import linecache
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from safe_rlhf_v import callbacks, data_modules, dual, engine, models, modules, objectives, policy, training
from safe_rlhf_v.callbacks import PredictionsFile, RunKeeper
from safe_rlhf_v.commands import STOPPED
from safe_rlhf_v.commands.config_files import check_files, check_stray
from safe_rlhf_v.commands.preflight import preflight
from safe_rlhf_v.commands.stored_settings import KEYWORDS, ReadingOptions, take_reading_options, with_stored_config
from safe_rlhf_v.functional.finite import NonFiniteError
from safe_rlhf_v.training.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    checkpoints_below,
    clear_leftovers,
    find_checkpoint,
    read_checkpoint,
)
from safe_rlhf_v.training.named import named
from safe_rlhf_v.training.parser_errors import ShortErrors
from safe_rlhf_v.training.runs import IN_CHECKPOINT
from safe_rlhf_v.training.stored_config import read_stored

# Help lists, and short names reach, only classes that are imported; several rooms import theirs on first use.
for _room in (callbacks, data_modules, dual, engine, models, modules, objectives, policy, training):
    for _name in _room.__all__:
        getattr(_room, _name)

# Warnings about what is intended here.
_EXPECTED = (
    ".*does not have many workers",  # the right choice on small machines
    ".*in eval mode at the start of training",  # a frozen tower
    ".*overridden `transfer_batch_to_device`",  # images stay on the CPU
    ".*isinstance.treespec, LeafSpec",
    ".*when using `ckpt_path`, callbacks used to create the checkpoint",  # what differs is printed by us
    ".*The dirpath has changed from ",  # a resumed run has a version folder of its own
    ".*could not find the monitored key",  # RunKeeper ends the run, and names the nearest metric that there is
    ".*Using ModelCheckpoint with manual optimization",  # a policy's checkpoints are of after the step, as all are
)


class ConfigInCheckpoint(SaveConfigCallback):
    """Writes ``config.yaml`` beside the logs and the same text into every checkpoint."""

    @cached_property
    def text(self) -> str:
        """The resolved configuration."""
        return str(self.parser.dump(self.config, skip_none=False))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add ``config_yaml``."""
        checkpoint["config_yaml"] = self.text


class TrainingParser(ShortErrors, LightningArgumentParser):
    """Lightning's parser, with an error in one line."""

    mend = "--print_config shows every key"

    def missing(self, names: list[str]) -> str:
        """A training needs a configuration, or a run that has one."""
        return f"missing: {', '.join(names)}; name a configuration by --config FILE, or a run by --ckpt_path RUN"


class CLI(LightningCLI):
    """See the module's docstring."""

    reading: ReadingOptions
    stored: dict[str, Any] | None

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with short errors that takes no abbreviated options."""
        self.parser_class = TrainingParser
        return super().init_parser(allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults of ours that every configuration may override."""
        parser.set_defaults({"trainer.use_distributed_sampler": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with the checkpoint's own configuration where the command line names no model."""
        self.reading, args = take_reading_options(args)
        check_stray(args[1:])
        sections = check_files(args, "the sections of a configuration (model, data, trainer)")
        args, self.stored = with_stored_config(args, self.reading, sections)
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Resolve the checkpoint; unlike Lightning's, never let its settings replace the user's.

        Raises:
            ValueError: If there is no readable checkpoint.
        """
        command = self.config.subcommand
        config = self.config[command]
        if config.get("ckpt_path") == "":
            raise ValueError("ckpt_path: is empty; name a run's folder or a .ckpt file, or leave it out")
        named_path = config.get("ckpt_path")
        if named_path == "last":
            folder = run_folder(config.trainer)
            if command == "fit":
                clear_leftovers(folder, below=True)
            if not checkpoints_below(folder) and command == "fit":
                _say(f"{folder} holds no checkpoint yet: starting at the beginning")
                config.ckpt_path = None
            else:
                config.ckpt_path = str(folder)
        if not config.get("ckpt_path") or config.ckpt_path in KEYWORDS:
            return
        try:
            config.ckpt_path = str(find_checkpoint(config.ckpt_path))
        except CheckpointError as error:
            raise CheckpointError(f"ckpt_path {error}") from None
        for name in IN_CHECKPOINT:
            if config.model.get("init_args", {}).get(name):
                config.model.init_args[name] = None  # the checkpoint has the weights
        stage = read_checkpoint(config.ckpt_path)
        what = "resuming from" if command == "fit" else "checkpoint:"
        _say(f"{what} {config.ckpt_path} (step {stage.get('global_step', 0)})")
        if command == "fit":
            clear_leftovers(
                Path(named_path) if Path(named_path).is_dir() else Path(config.ckpt_path).parent, below=True
            )
            now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[command]
            before = self.stored or (read_stored(stage) if "config_yaml" in stage else now)
            if self.stored:  # of the trainer only some settings were taken; its other options are defaults
                now["trainer"] = as_far_as(now["trainer"], self.stored["trainer"])
                trainer = read_stored(stage).get("trainer")
                if not config.trainer.callbacks and isinstance(trainer, dict) and trainer.get("callbacks"):
                    _say("the run's callbacks are not taken from it; add them by its --config, or one by one")
            for key, old, new in differences({name: before.get(name) for name in now}, now):
                _say(f"with another setting: {key} was {old!r}, is now {new!r}")

    def _set_seed(self) -> None:
        """Raises: ValueError: If NumPy does not take the seed."""
        seed = self.config[self.config.subcommand].get("seed_everything")
        if seed is not None and not 0 <= seed < 2**32:
            raise ValueError(f"seed_everything is {seed}; it must be within 0..{2**32 - 1}")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work before anything expensive happens; run nothing that is stored in a checkpoint."""
        config = self.config[self.config.subcommand]
        preflight(self.config.subcommand, config, self.reading)
        if config.get("weights_only") is None:
            config.weights_only = True
        if self.config.subcommand == "predict" and config.get("return_predictions") is None:
            config.return_predictions = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer that writes whole checkpoints and, unless told otherwise, keeps the two newest and a link."""
        config = self.config_init[self.subcommand].trainer
        callbacks = as_list(config.callbacks)
        plugins = as_list(config.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        keeps = config.enable_checkpointing is not False and not config.barebones and not config.fast_dev_run
        if self.subcommand == "fit" and keeps and not any(isinstance(callback, Checkpoint) for callback in callbacks):
            callbacks.append(ModelCheckpoint(monitor="step", mode="max", save_top_k=2, save_last="link"))
        if self.subcommand == "fit" and not any(isinstance(callback, RunKeeper) for callback in callbacks):
            callbacks.append(RunKeeper())
        if self.subcommand == "predict" and not any(isinstance(callback, PredictionsFile) for callback in callbacks):
            folder = run_folder(self.config[self.subcommand].trainer)
            callbacks.append(PredictionsFile(str(folder / "predictions.jsonl")))
        with named("trainer"):
            return super().instantiate_trainer(**{"callbacks": callbacks, "plugins": plugins, **kwargs})


def as_list(value: Any) -> list[Any]:
    """What Lightning accepts as nothing, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def run_folder(trainer: Any) -> Path:
    """Where a Trainer section's checkpoints go, as far as that is known before anything is built."""
    sections = [*as_list(trainer.callbacks), *as_list(trainer.logger)]
    options = [section.get("init_args") or {} for section in sections if hasattr(section, "class_path")]
    for option in options:
        if option.get("dirpath"):
            return Path(option["dirpath"])
    for option in options:
        if option.get("save_dir"):
            return Path(option["save_dir"]) / (option.get("name") or "")
    return Path(trainer.default_root_dir or ".") / ("lightning_logs" if trainer.logger in (None, True) else "")


def as_far_as(section: Any, known: Any) -> Any:
    """Of a nested configuration the keys that another one has, too."""
    if not isinstance(section, dict) or not isinstance(known, dict):
        return section
    return {name: as_far_as(section[name], value) for name, value in known.items() if name in section}


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf that differs between two nested configurations, as (dotted key, old, new)."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old = dict(enumerate(old))
        new = dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if name not in ("config", "ckpt_path", "weights_only", *IN_CHECKPOINT):  # how a file is read, not a setting
                yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif old != new:
        yield key, old, new


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


@rank_zero_only
def _complain(text: str) -> None:
    sys.stderr.write(f"error: {text}\n")


def _is_no_advert(message: logging.LogRecord) -> bool:
    """False for Lightning's tips to install packages of its makers' cloud, which no option switches off."""
    return not message.getMessage().startswith("\N{ELECTRIC LIGHT BULB} Tip: For seamless cloud")


def main(args: list[str] | None = None) -> CLI:
    """Run a training command; users and tests call the same function.

    Args:
        args: Command line without the program's name; ``None`` reads ``sys.argv``.
    """
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advert)
    try:
        return CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=ConfigInCheckpoint,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=list(sys.argv[1:] if args is None else args),
        )
    except NonFiniteError as error:
        _complain(str(error))  # all ranks raise it
        sys.exit(STOPPED)
    except SIGTERMException:  # where there is nothing to save yet; Lightning's own ends with status 0
        sys.exit(128 + signal.SIGTERM)
    except SystemExit as error:  # Lightning turns an interrupt into status 1
        if isinstance(error.__context__, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        raise
    except (ValueError, RuntimeError, MisconfigurationException, OSError, ModuleNotFoundError) as error:
        ours = refusal(error) or lightnings_refusal(error)
        line = surroundings(error) if ours is None else str(ours)
        if line is None:
            raise
        sys.stderr.write(f"error: {line}\n")
        sys.exit(2)


def surroundings(error: BaseException | None) -> str | None:
    """One line about an error of the disk, the installation or a missing checkpoint; ``None`` for other errors."""
    if isinstance(error, ValueError) and _raised_by(error)[0].endswith(".checkpoint_connector"):
        return f"ckpt_path: {str(error).splitlines()[0]}"
    while error is not None and not isinstance(error, (OSError, ModuleNotFoundError)):
        error = error.__cause__
    if error is None:
        return None
    if isinstance(error, OSError):
        no_folder = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT) and not (
            error.errno in no_folder and _raised_by(error)[1] in ("makedirs", "mkdir")
        ):
            return None
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{str(error.strerror).lower()}; make room or choose another folder"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "a package is missing"
    trace = error.__traceback__
    while trace is not None:  # a logger or plugin of Lightning asks for a package of its own
        home = trace.tb_frame.f_globals.get("__name__", "")
        if home.startswith(("lightning.pytorch.loggers", "lightning.pytorch.plugins", "lightning.pytorch.strategies")):
            return f"{home}: {reason}; install that package, or choose another logger"
        trace = trace.tb_next
    return None


def refusal(error: BaseException | None) -> BaseException | None:
    """The error, or what it was caused by, that this package raised on purpose about the user's input; it needs no traceback.

    A constructor's refusal comes wrapped by the parser, page by page of it.
    """
    while error is not None and not (isinstance(error, ValueError) and raised_here(error)):
        error = error.__cause__
    return error


def lightnings_refusal(error: BaseException | None) -> str | None:
    """One line of what Lightning raised on purpose: options that do not go together, a metric that nobody logs."""
    while error is not None:
        asked = isinstance(error, RuntimeError) and raised_in(error, "lightning.pytorch.callbacks.")
        if asked or isinstance(error, MisconfigurationException):
            return " ".join(str(error).split())
        error = error.__cause__
    return None


def raised_here(error: BaseException) -> bool:
    """Whether a statement of this package raised the error."""
    return raised_in(error, "safe_rlhf_v.")


def raised_in(error: BaseException, package: str) -> bool:
    """Whether a ``raise`` statement in a module whose name starts so raised the error."""
    trace = _innermost(error)
    if trace is None:
        return False
    frame = trace.tb_frame
    line = linecache.getline(frame.f_code.co_filename, trace.tb_lineno)
    return frame.f_globals.get("__name__", "").startswith(package) and line.strip().startswith("raise ")


def _raised_by(error: BaseException) -> tuple[str, str]:
    """Module and function."""
    trace = _innermost(error)
    return ("", "") if trace is None else (trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code.co_name)


def _innermost(error: BaseException) -> TracebackType | None:
    """Where an error was raised; ``None`` if it was not."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace
