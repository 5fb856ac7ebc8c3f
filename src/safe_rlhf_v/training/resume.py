"""Additions to Lightning for an exact resume: random states of every rank, and options taken from the user's configuration."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.optim import Schedule
from safe_rlhf_v.training.random_state import read_random_state, reseed, write_random_state

log = logging.getLogger(__name__)


class StepBoundary:
    """The position right after the last optimizer step: counters of the loops, the data, this rank's random states.

    A checkpoint written before the next optimizer step holds this position instead of the current one. Weights and optimizer
    state are still those of the boundary; gradients accumulated since then are not stored, so their batches are read again.
    Therefore it does not matter when a checkpoint is written: within an accumulation window, during or after a validation, or
    at the end of an epoch that ``max_steps`` shortened.
    """

    def __init__(self) -> None:
        """Start without a position."""
        self.step = -1
        self.loops: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.random: dict[str, Tensor] = {}

    def note(self, module: LightningModule, loops: dict[str, Any] | None = None) -> None:
        """Store the position after an optimizer step or at the start of training.

        Args:
            module: The module in training.
            loops: Counters from the checkpoint that training is resumed from; the trainer's own have already advanced.
        """
        trainer: Any = module.trainer
        self.step = trainer.global_step
        self.loops = loops or trainer.fit_loop.state_dict()
        self.data = trainer.datamodule.state_dict() if trainer.datamodule is not None else {}
        self.random = read_random_state()

    def write(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write position and random states into a checkpoint, as a collective operation: every rank must call it."""
        trainer: Any = module.trainer
        if trainer.global_step != self.step:  # written right after a step, before the position was stored
            checkpoint["random_states"] = gather_random_states(module, read_random_state())
            return
        checkpoint["loops"]["fit_loop"] = self.loops
        if self.data:
            checkpoint[type(trainer.datamodule).__qualname__] = self.data
        checkpoint["random_states"] = gather_random_states(module, self.random)


def refuse_lost_position(file: str, checkpoint: Mapping[str, Any], data: Any) -> None:
    """Refuse to train on from a checkpoint whose position in the data would be lost: it is stored by the class's name.

    Args:
        file: Name of the checkpoint, for the message.
        checkpoint: Its content.
        data: The data module now; ``None`` with plain loaders, which have no position.

    Raises:
        CheckpointError: Naming both classes.
    """
    parts = {name: part for name, part in checkpoint.items() if isinstance(part, dict)}
    stored = [name for name, part in parts.items() if part.keys() >= {"version", "stream"}]
    name = type(data).__qualname__
    if data is not None and stored and name not in stored:
        raise CheckpointError(
            f"{file}: its position in the data is that of {stored[0]}, and the data module now is {name}, which would start "
            "anew; resume with the same class, or start a new run with init_from"
        )


def gather_random_states(module: LightningModule, states: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random states of all ranks, each (world size, N) on the CPU; a collective operation: every rank must call it.

    Args:
        module: Module of this rank.
        states: Random states of this rank.
    """
    world = module.trainer.world_size
    if world == 1:
        return {name: state[None] for name, state in states.items()}
    # Lightning gathers on the module's device, and NCCL cannot gather from the CPU.
    gathered: dict[str, Any] = {name: module.all_gather(state.to(module.device)) for name, state in states.items()}
    return {name: state.reshape(world, -1).cpu() for name, state in gathered.items()}


def restore_random_states(module: LightningModule, states: dict[str, Tensor]) -> None:
    """Restore this rank's random states, or seed new ones, with a warning, if the number of ranks has changed."""
    world = module.trainer.world_size
    saved = len(states["torch"])
    if saved == world:
        write_random_state({name: rows[module.global_rank] for name, rows in states.items()})
        return
    if module.global_rank == 0:
        log.warning(
            "the checkpoint was written by %d ranks, now there are %d: random states are seeded anew", saved, world
        )
    reseed(torch.initial_seed(), module.trainer.global_step, module.global_rank)


class UserOptions:
    """The configured options of optimizer and schedule, to be restored after a checkpoint has overwritten them.

    Learning rates keep their position in the schedule; all other options (weight decay, betas, schedule lengths) are set to
    the configured values where these have changed. Moments and counters are not changed, nor what a schedule or the optimizer
    itself moves in a group: momentum that is cycled, an estimated step size.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any | None) -> None:
        """Read the options.

        Args:
            optimizer: A newly built optimizer.
            scheduler: A newly built schedule, or ``None``.
        """
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self.schedule: dict[str, Any] = {}
        if scheduler is not None:
            names = {"base_lrs", *inspect.signature(type(scheduler)).parameters} - {"optimizer", "last_epoch"}
            self.schedule = {name: value for name, value in vars(scheduler).items() if name in names}

    def apply(
        self, optimizer: Optimizer, scheduler: Any | None, stored: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Overwrite the options of a restored optimizer and schedule.

        Args:
            optimizer: After its state was restored.
            scheduler: Likewise, or ``None``.
            stored: :attr:`groups` of the run that wrote the checkpoint; ``None`` if an old one does not say, and then every
                option is overwritten.
        """
        for group, configured, before in zip(
            optimizer.param_groups, self.groups, stored or [{}] * len(self.groups), strict=True
        ):
            old, new = (g.get("initial_lr", g["lr"]) for g in (group, configured))
            rate = group["lr"] * (new / old) if old else new
            changed = {k: v for k, v in configured.items() if k not in before or bool(before[k] != v)}
            group.update({**changed, "lr": rate})
        if scheduler is None:
            return
        vars(scheduler).update(self.schedule)
        if isinstance(scheduler, Schedule):  # a closed form, so a changed length takes effect from this step on
            for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate
