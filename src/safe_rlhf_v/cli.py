"""The training commands: ``fit``, ``validate``, ``test`` and ``predict`` through LightningCLI.

What differs from LightningCLI's defaults, and why:

* one line per error instead of the whole usage;
* on resume the user's settings win over the checkpoint's, and the differences are printed;
* the resolved configuration travels inside every checkpoint, so ``test --ckpt_path X`` needs no ``--config``;
* checkpoints are written atomically, and ``--ckpt_path`` takes a run folder (newest whole checkpoint in it);
* data modules split by rank themselves (``use_distributed_sampler`` is off).
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import safe_rlhf_v.callbacks
import safe_rlhf_v.data_modules.preference
import safe_rlhf_v.data_modules.supervised
import safe_rlhf_v.modules  # noqa: F401  short class names resolve among imported classes
from safe_rlhf_v.checkpoints import find_checkpoint

_NOISE = ("Does not validate", "Expected a <class 'NoneType'>", "Given value", "Errors", "Problem with", 'Parser key "model"')


# Warnings about what is intended here.
_EXPECTED = (
    "LightningCLI's args parameter",  # args may carry a stored configuration
    ".*does not have many workers",  # the right choice on small machines
    ".*in eval mode at the start of training",  # a frozen tower
    ".*overridden `transfer_batch_to_device`",  # images stay on the CPU
    ".*isinstance.treespec, LeafSpec",
)


class ShortErrorParser(LightningArgumentParser):
    """Prints what is wrong, not how the program is used."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the informative lines of an error and exit with status 2."""
        lines = [line.strip(" -") for line in str(message).splitlines()]
        kept = [line for line in lines if line and not line.startswith(_NOISE)] or lines[:1]
        sys.stderr.write("error: " + "\n  ".join(dict.fromkeys(kept)) + "\n(see --help, or --print_config for all keys)\n")
        sys.exit(2)


class ConfigInCheckpoint(SaveConfigCallback):
    """Writes ``config.yaml`` beside the logs and the same text into every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add ``config_yaml``."""
        checkpoint["config_yaml"] = self.parser.dump(self.config, skip_none=False)


class CLI(LightningCLI):
    """See the module's docstring."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with short errors."""
        self.parser_class = ShortErrorParser
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults of ours that every configuration may override."""
        parser.set_defaults(
            {
                "trainer.use_distributed_sampler": False,
                "trainer.plugins": [{"class_path": "safe_rlhf_v.checkpoints.AtomicCheckpointIO"}],
            }
        )

    def _parse_ckpt_path(self) -> None:
        """Resolve the checkpoint; unlike Lightning's, never lets its settings replace the user's.

        Raises:
            ValueError: If there is no readable checkpoint.
        """
        config = self.config[self.config.subcommand]
        if not config.get("ckpt_path"):
            return
        config.ckpt_path = str(find_checkpoint(config.ckpt_path))
        model = config.model.get("init_args", config.model)
        if model.get("init_from"):
            model["init_from"] = None  # the checkpoint has the weights
        stored = torch.load(config.ckpt_path, weights_only=True, map_location="cpu", mmap=True).get("config_yaml")
        if stored and self.config.subcommand == "fit":
            now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.config.subcommand]
            for key, old, new in differences(yaml.safe_load(stored), now):
                print(f"resuming with another setting: {key} was {old!r}, is now {new!r}")

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work before anything expensive happens.

        Raises:
            ValueError: With the mend.
        """
        trainer = self.config[self.config.subcommand].trainer
        on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
        if on_cpu and trainer.precision in ("16-mixed", "16", 16, "16-true"):
            raise ValueError(f"trainer.precision {trainer.precision} needs a GPU; on a CPU use 32-true or bf16-mixed")
        data = self.config[self.config.subcommand].get("data")
        path = data.get("init_args", data).get("path") if data else None
        if path and not (Path(path) / "manifest.json").is_file():
            raise ValueError(f"data.path {path}: no shard folder there; write one with 'python -m safe_rlhf_v shards --help'")


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf that differs between two nested configurations, as (dotted key, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if name not in ("config", "ckpt_path", "init_from"):
                yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new


def stored_config(args: list[str]) -> list[str]:
    """Arguments of an evaluation, with the checkpoint's own configuration where none is given.

    Raises:
        ValueError: If the checkpoint does not exist or carries no configuration.
    """
    if not args or args[0] not in ("validate", "test", "predict") or any(a.startswith(("--config", "-c")) for a in args):
        return args
    given = [a.split("=", 1)[1] for a in args if a.startswith("--ckpt_path=")]
    given += [args[i + 1] for i, a in enumerate(args[:-1]) if a == "--ckpt_path"]
    if not given:
        return args
    file = find_checkpoint(given[-1])
    stored = torch.load(file, weights_only=True, map_location="cpu", mmap=True).get("config_yaml")
    if not stored:
        raise ValueError(f"{file}: carries no configuration; give one with --config")
    body = yaml.safe_load(stored)
    keep = {name: body[name] for name in ("seed_everything", "model", "data", "trainer") if name in body}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as config:
        yaml.safe_dump(keep, config)
    return [args[0], "--config", config.name, *args[1:]]


def main(args: list[str] | None = None) -> CLI:
    """Run a training command; users and tests call the same function.

    Args:
        args: Command line without the program's name; ``None`` reads ``sys.argv``.
    """
    args = list(sys.argv[1:] if args is None else args)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
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
            args=stored_config(args),
        )
    except ValueError as error:
        if error.__traceback__ is not None and _ours(error):
            sys.stderr.write(f"error: {error}\n")
            sys.exit(2)
        raise


def _ours(error: ValueError) -> bool:
    """Whether an error was raised by this package about the user's input: those need no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("safe_rlhf_v.")
