"""A run's last state is kept: at its end, and when a signal asks it to stop; broken numbers end it and keep nothing."""

import json
import signal
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from safe_rlhf_v.callbacks.signals import PendingSignals
from safe_rlhf_v.functional.finite import NonFiniteError, all_finite
from safe_rlhf_v.records.user_files import locked_folder, write_whole
from safe_rlhf_v.training.broken_numbers import checkpoint_folder, how_to_continue

_BROKEN = 1000
"""What ranks tell one another when their numbers are broken; above every signal's number."""

_SMALLEST_SCALE = 2.0**-20
"""Float16 training that skips steps until its loss scale, 65536 at first, is below this will never learn again."""


class StoppedBySignal(SystemExit):
    """A run ended because it was asked to; its state is saved. The exit status is 128 plus the signal's number."""


class RunKeeper(Callback):
    """Leaves a checkpoint of the last step, ``step=N.ckpt`` beside the others, unless that step has one already.

    * A run that ends, for whatever reason (steps, epochs, time, early stopping), leaves its last state. ``last.ckpt`` of a
      ``ModelCheckpoint`` with ``save_last`` is turned into a link to it; one that is a folder of shards stays.
    * SIGTERM and SIGINT are obeyed when the optimizer step at hand is done, on all ranks at the same one: the state is saved,
      the exit status is 143 or 130. A validation is left for them (with one process; several ranks finish it first).
    * SLURM's requeue stays Lightning's, but saves between two steps instead of amid one.
    * Its folder is locked while it trains: a second run that would write its checkpoints there, too, is refused.
    * A loss or gradient of NaN or infinity ends the run with status 3, before anything of it is saved. Steps that float16
      training skips by itself do not count.

    The command line adds it to every ``fit``. List it after callbacks that keep a state.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.RunKeeper
    """

    def __init__(self) -> None:
        """Nothing to choose."""
        self._signals = PendingSignals()
        self._start = self._step = self._saved = -1
        self._finite: dict[str, Tensor] = {}
        self._locks = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the run's folder: runs that start at the same moment choose the same ``version_N``.

        Raises:
            FileError: If another process is training into it.
        """
        folder = versioned_folder(trainer) if stage == "fit" else None
        if folder is not None and trainer.is_global_zero:
            self._locks.enter_context(locked_folder(folder))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unlock it."""
        self._locks.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unlock it."""
        self._locks.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over: earlier there is nothing to save. What self-tests of backbones found is kept."""
        self._signals.install()
        keep_family_reports(trainer, pl_module)
        self._start = self._step = trainer.global_step
        self._finite = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before the first step; what the run started from is still all there is."""
        if trainer.global_step == self._start:
            self._obey(trainer, self._agreed(trainer, self._signals.pending), save=False)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradients, on the device."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # skips what is not finite
            self._note("gradients, at every loss scale", torch.tensor(scaler.get_scale() >= _SMALLEST_SCALE))
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._note("gradients", all_finite(p.grad for p in parameters if p.grad is not None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, do what is due.

        Raises:
            NonFiniteError: If loss or gradients were broken.
            StoppedBySignal: If it was asked to stop.
        """
        if isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
            self._note("loss", all_finite([outputs["loss"]]))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._check(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave a validation of the run; ranks may have different numbers of batches, so they finish it."""
        if trainer.world_size == 1 and not trainer.sanity_checking and self._step >= 0:
            self._obey(trainer, self._signals.pending)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the first validation it is known which metrics there are.

        Raises:
            ValueError: If a checkpoint callback monitors one that is not there.
        """
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            check_monitors(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self._check(trainer, save=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training without a step is no finished one, nor is one whose best checkpoint was never chosen.

        Raises:
            ValueError: If no step was made, or a checkpoint callback waited for a metric in vain.
        """
        if not trainer.global_step and not getattr(trainer, "fast_dev_run", False):
            raise ValueError(
                "nothing was trained, the run made no step; look at trainer.max_time and at the train split"
            )
        check_monitors(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that this step has a checkpoint that training can go on from."""
        self._saved = trainer.global_step

    def _note(self, what: str, finite: Tensor) -> None:
        known = self._finite.get(what)
        self._finite[what] = finite if known is None else known & finite.to(known.device)

    def _check(self, trainer: Trainer, save: bool = False) -> None:
        """Read what was noted since the last step (the only wait for the device), agree with all ranks, and act."""
        broken = [what for what, finite in self._finite.items() if not finite]
        self._finite = {}
        agreed = self._agreed(trainer, _BROKEN if broken else self._signals.pending)
        if agreed == _BROKEN:
            raise NonFiniteError(
                f"step {trainer.global_step}: NaN or infinity in the {' and the '.join(broken) or 'numbers of another rank'}; "
                f"stopped, nothing of it is saved: {how_to_continue(trainer)}, with a smaller learning rate"
            )
        if save:
            self._save(trainer)
        self._obey(trainer, agreed)

    def _agreed(self, trainer: Trainer, code: int) -> int:
        """The largest code of all ranks."""
        if trainer.world_size == 1:
            return code
        return int(trainer.strategy.reduce(torch.tensor(code, device=trainer.strategy.root_device), reduce_op="max"))

    def _obey(self, trainer: Trainer, number: int, save: bool = True) -> None:
        """Do what a signal asks for, between two steps."""
        if not number:
            return
        if not self._signals.stops(number):
            self._signals.forward(number)
            return
        if save:
            self._save(trainer)
        if trainer.is_global_zero:
            is_saved = self._saved == trainer.global_step
            where = f"saved in {checkpoint_folder(trainer)}" if is_saved else "nothing new to save"
            print(f"{signal.Signals(number).name}: stopped after step {trainer.global_step}, {where}", flush=True)
        raise StoppedBySignal(128 + number)

    def _save(self, trainer: Trainer) -> None:
        """Write the present step's checkpoint, unless there is one or the user wants none."""
        if (
            self._saved == trainer.global_step
            or not trainer.checkpoint_callbacks
            or getattr(trainer, "fast_dev_run", False)
        ):
            return
        file = checkpoint_folder(trainer) / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(file, weights_only=False)  # optimizer and position too
        keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
        if trainer.is_global_zero and any(keeper.save_last for keeper in keepers):
            name = ModelCheckpoint.CHECKPOINT_NAME_LAST + ModelCheckpoint.FILE_EXTENSION
            if not _linked(file, name):
                print(f"{file.with_name(name)} is a folder and stays as it is; the last state is {file}", flush=True)


def _linked(file: Path, name: str) -> bool:
    """Put a link to a checkpoint beside it, in place of a file or link; not of a folder, whose shards somebody else wrote."""
    place = file.with_name(name)
    if place.is_dir() and not place.is_symlink():
        return False
    link = file.with_name(f".{name}-{file.name}")
    link.unlink(missing_ok=True)
    link.symlink_to(file.name)
    link.replace(place)
    return True


def keep_family_reports(trainer: Trainer, module: LightningModule) -> None:
    """Write ``family_check.json``: what self-tests of the run's Hugging Face backbones found, by their place in it."""
    reports = {name: getattr(part, "family_report", None) for name, part in module.named_modules()}
    stored = {name: report._asdict() for name, report in reports.items() if report is not None}
    if stored and trainer.is_global_zero and versioned_folder(trainer) is not None:
        folder = checkpoint_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "family_check.json", (json.dumps(stored, indent=1) + "\n").encode())


def versioned_folder(trainer: Trainer) -> Path | None:
    """The folder that belongs to this run alone; ``None`` where it saves nothing, or its logger gives names that are unique."""
    if not trainer.checkpoint_callbacks or getattr(trainer, "fast_dev_run", False):
        return None
    if any(getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks):
        return checkpoint_folder(trainer)
    if trainer.logger is not None and not isinstance(trainer.logger, (TensorBoardLogger, CSVLogger)):
        return None
    return Path(trainer.log_dir or trainer.default_root_dir)


def check_monitors(trainer: Trainer) -> None:
    """Raises: ValueError: If a checkpoint callback monitors a metric that the run has not logged, naming those it has."""
    if getattr(trainer, "fast_dev_run", False):
        return
    logged = ["epoch", "step", *sorted(trainer.callback_metrics)]
    for callback in trainer.checkpoint_callbacks:
        name = getattr(callback, "monitor", None)
        if name is not None and name not in logged:
            near = get_close_matches(name, logged, n=1)
            raise ValueError(
                f"{type(callback).__name__}.monitor is {name!r}, which this run has not logged"
                f"{f'; did you mean {near[0]!r}?' if near else ''} (a metric exists only after a validation, and only where the "
                f"data have the labels or the truth it needs); it has logged: {', '.join(logged)}"
            )
