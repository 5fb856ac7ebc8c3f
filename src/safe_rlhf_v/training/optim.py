"""Parameter groups, and learning-rate schedules that can be named in YAML."""

import math
from abc import abstractmethod
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import ReduceLROnPlateau as MonitoredPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def parameter_groups(module: nn.Module, scales: dict[str, float]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Trainable parameters with their names, grouped by the longest matching prefix in ``scales`` ("" without one).

    Raises:
        ValueError: If a prefix matches nothing.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = max((p for p in scales if name.startswith(p)), key=len, default="")
            groups.setdefault(prefix, []).append((name, parameter))
    if unused := sorted(set(scales) - set(groups)):
        parts = sorted({name.partition(".")[0] for group in groups.values() for name, _ in group})
        raise ValueError(f"lr_scale: no trainable parameter's name starts with {unused[0]!r}; names start with {parts}")
    return groups


def group_names(module: nn.Module, scales: dict[str, float]) -> list[list[str]]:
    """Names of the parameters of each group, for comparison with a checkpoint."""
    return [[name for name, _ in group] for group in parameter_groups(module, scales).values()]


def optimizer_config(optimizer: Optimizer, scheduler: Any | None, *, automatic: bool) -> OptimizerLRScheduler:
    """Optimizer and schedule as Lightning takes them: the schedule moves once per optimizer step.

    Args:
        optimizer: The only one.
        scheduler: Its schedule, or ``None``.
        automatic: Whether Lightning makes the steps; otherwise the module does, and moves the schedule itself.

    Raises:
        ValueError: If the module would move a schedule that waits for a metric.
    """
    if scheduler is None:
        return {"optimizer": optimizer}
    if isinstance(scheduler, ReduceLROnPlateau) and not automatic:
        raise ValueError(
            "scheduler: ReduceLROnPlateau waits for a metric, and this module moves the schedule after each of its steps; use "
            "safe_rlhf_v.training.WarmupCosine"
        )
    if isinstance(scheduler, MonitoredPlateau):  # the metric exists once per validation only
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def run_length(trainer: Trainer) -> int:
    """Number of optimizer steps of a complete run, from data, ranks, accumulation and epochs.

    Raises:
        ValueError: If the run has no end.
    """
    steps = trainer.estimated_stepping_batches
    if steps == math.inf or steps < 0:
        raise ValueError(
            "scheduler: total_steps is null, but the run has no fixed length; set trainer.max_steps or trainer.max_epochs, "
            "or total_steps"
        )
    return int(steps)


class Schedule(LRScheduler):
    """A schedule given by a closed form of the step, after a warm-up; rates are multiples of the optimizer's.

    Every option is an attribute of the same name: a resumed run takes options from the configuration and the step from the
    checkpoint.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int | None, warmup: float, last_epoch: int = -1) -> None:
        """Create the schedule.

        Args:
            optimizer: The optimizer; its ``lr`` is the peak, per parameter group.
            total_steps: Optimizer steps until the end of the schedule; the last rate is kept after it. ``None`` is the length
                of the run, which the training module computes and sets by :meth:`set_length`.
            warmup: Share of the steps for the warm-up, in [0, 1).
            last_epoch: Step to continue from, as in PyTorch; -1 starts a new schedule.

        Raises:
            ValueError: If an option is outside its range.
        """
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, not {total_steps}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), not {warmup}")
        self.total_steps = total_steps
        self.warmup = warmup
        super().__init__(optimizer, last_epoch)

    @abstractmethod
    def rise(self, progress: float) -> float:
        """Factor during the warm-up, ``progress`` in [0, 1)."""

    @abstractmethod
    def fall(self, progress: float) -> float:
        """Factor after the warm-up, ``progress`` in [0, 1]."""

    def get_lr(self) -> list[float | Tensor]:
        """Rates of the parameter groups for the coming step.

        Raises:
            ValueError: If it is stepped before its length is known.
        """
        if self.total_steps is None:
            if self.last_epoch > 0:
                raise ValueError(
                    f"{type(self).__name__}: total_steps is null; outside of a training module, give a number"
                )
            return list(self.base_lrs)  # during construction
        step = self.last_epoch
        warmup = self.warmup_steps
        if step < warmup:
            factor = self.rise(step / warmup)
        else:
            factor = self.fall(min(1.0, (step - warmup) / max(1, self.total_steps - warmup)))
        return [base * factor for base in self.base_lrs]

    @property
    def warmup_steps(self) -> int:
        """Number of warm-up steps."""
        return round(self.warmup * (self.total_steps or 0))

    def set_length(self, total_steps: int) -> None:
        """Set the number of steps, unless the constructor got one."""
        if self.total_steps is not None:
            return
        self.total_steps = max(1, total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


class WarmupCosine(Schedule):
    """Linear warm-up to the optimizer's rate, then a half cosine down to ``final`` times it (arXiv 1608.03983).

    YAML::

        scheduler:
          class_path: safe_rlhf_v.training.WarmupCosine
          init_args: {warmup: 0.1}
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.03,
        final: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        """Create the schedule.

        Args:
            optimizer: The optimizer; its ``lr`` is the peak, per parameter group.
            total_steps: Optimizer steps until the end of the schedule; ``None`` is the length of the run.
            warmup: Share of the steps for the warm-up, in [0, 1).
            final: Last rate as a share of the peak; 1 keeps the rate constant after the warm-up.
            last_epoch: Step to continue from, as in PyTorch; -1 starts a new schedule.
        """
        self.final = final
        super().__init__(optimizer, total_steps, warmup, last_epoch)

    def rise(self, progress: float) -> float:
        """Linear, with a rate above 0 at the first step."""
        return progress + 1 / max(1, self.warmup_steps)

    def fall(self, progress: float) -> float:
        """Half a cosine from 1 to ``final``."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class OneCycle(Schedule):
    """Half a cosine up from ``peak / start`` and a longer one down to almost 0 (arXiv 1708.07120).

    Unlike ``torch.optim.lr_scheduler.OneCycleLR`` the peak is each group's own rate, and momentum is not changed.

    YAML::

        scheduler:
          class_path: safe_rlhf_v.training.optim.OneCycle
          init_args: {warmup: 0.3}
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.3,
        start: float = 25.0,
        end: float = 1e4,
        last_epoch: int = -1,
    ) -> None:
        """Create the schedule.

        Args:
            optimizer: The optimizer; its ``lr`` is the peak, per parameter group.
            total_steps: Optimizer steps until the end of the schedule; ``None`` is the length of the run.
            warmup: Share of the steps for the warm-up, in [0, 1).
            start: The first rate is the peak divided by this.
            end: The last rate is the first divided by this.
            last_epoch: Step to continue from, as in PyTorch; -1 starts a new schedule.
        """
        self.start = start
        self.end = end
        super().__init__(optimizer, total_steps, warmup, last_epoch)

    def rise(self, progress: float) -> float:
        """Half a cosine from ``1 / start`` to 1."""
        return 1 + (1 / self.start - 1) * 0.5 * (1 + math.cos(math.pi * progress))

    def fall(self, progress: float) -> float:
        """Half a cosine from 1 to ``1 / (start * end)``."""
        low = 1 / (self.start * self.end)
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
