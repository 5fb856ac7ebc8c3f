"""What an exact resume needs beside Lightning: random states of every rank, and options that follow the user."""

import inspect
import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from safe_rlhf_v.training.optim import Schedule
from safe_rlhf_v.training.random_state import read_random_state, reseed, write_random_state

log = logging.getLogger(__name__)


class StepBorder:
    """The position right after the last optimizer step: the loops' counters, the data, this rank's random states.

    A checkpoint written later, but before the next optimizer step, gets this position instead of the present one. Weights
    and moments are still those of the border; gradients collected since then are in no checkpoint, so the batches that they
    came from are read once more. So it does not matter when somebody saves: amid an accumulation window, in or after a
    validation, at the end of an epoch that ``max_steps`` cut short.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.step = -1
        self.loops: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.random: dict[str, Tensor] = {}

    def note(self, module: LightningModule, loops: dict[str, Any] | None = None) -> None:
        """An optimizer step is done, or training starts.

        Args:
            module: In training.
            loops: Counters from the checkpoint that training goes on from; the trainer's own have moved on already.
        """
        trainer: Any = module.trainer
        self.step = trainer.global_step
        self.loops = loops or trainer.fit_loop.state_dict()
        self.data = trainer.datamodule.state_dict() if trainer.datamodule is not None else {}
        self.random = read_random_state()

    def write(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put position and random states into a checkpoint. A collective: every rank must call it."""
        trainer: Any = module.trainer
        if trainer.global_step != self.step:  # written right after a step, before it was noted
            checkpoint["random_states"] = gather_random_states(module, read_random_state())
            return
        checkpoint["loops"]["fit_loop"] = self.loops
        if self.data:
            checkpoint[type(trainer.datamodule).__qualname__] = self.data
        checkpoint["random_states"] = gather_random_states(module, self.random)


def gather_random_states(module: LightningModule, states: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random states of all ranks, each (world size, N) on the CPU. A collective: every rank must call it.

    Args:
        module: Of this rank.
        states: Of this rank.
    """
    world = module.trainer.world_size
    if world == 1:
        return {name: state[None] for name, state in states.items()}
    # Lightning gathers on the module's device; NCCL cannot gather from the CPU.
    return {k: module.all_gather(v.to(module.device)).reshape(world, -1).cpu() for k, v in states.items()}  # type: ignore[union-attr]


def restore_random_states(module: LightningModule, states: dict[str, Tensor]) -> None:
    """Continue this rank's random states, or start fresh ones if the number of ranks changed (and say so)."""
    world, saved = module.trainer.world_size, len(states["torch"])
    if saved == world:
        write_random_state({name: rows[module.global_rank] for name, rows in states.items()})
        return
    if module.global_rank == 0:
        log.warning("the checkpoint is of %d ranks, now there are %d: random states start anew", saved, world)
    reseed(torch.initial_seed(), module.trainer.global_step, module.global_rank)


class UserOptions:
    """The options of optimizer and schedule as configured, to be put back after a checkpoint overwrote them.

    Learning rates keep the point of the schedule they had reached; everything else (weight decay, betas, schedule
    lengths) becomes what the configuration says. Moments and counters are left alone.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any | None) -> None:
        """
        Args:
            optimizer: Fresh.
            scheduler: Fresh, or ``None``.
        """
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self.schedule: dict[str, Any] = {}
        if scheduler is not None:
            names = {"base_lrs", *inspect.signature(type(scheduler)).parameters} - {"optimizer", "last_epoch"}
            self.schedule = {name: value for name, value in vars(scheduler).items() if name in names}

    def apply(self, optimizer: Optimizer, scheduler: Any | None) -> None:
        """Overwrite the options of a restored optimizer and schedule."""
        for group, mine in zip(optimizer.param_groups, self.groups, strict=True):
            before, now = (g.get("initial_lr", g["lr"]) for g in (group, mine))
            rate = group["lr"] * (now / before) if before else now
            group.update({**mine, "lr": rate})
        if scheduler is None:
            return
        vars(scheduler).update(self.schedule)
        if isinstance(scheduler, Schedule):  # a closed form: a changed length counts from this step on
            for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate
