"""What an exact resume needs beside Lightning: random states of every rank, and options that follow the user."""

import inspect
import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from safe_rlhf_v.optim import Schedule
from safe_rlhf_v.random_state import read_random_state, reseed, write_random_state

log = logging.getLogger(__name__)


def gather_random_states(module: LightningModule) -> dict[str, Tensor]:
    """Random states of all ranks, each (world size, N) on the CPU. A collective: every rank must call it."""
    world = module.trainer.world_size
    states = read_random_state()
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
        """Args:
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
