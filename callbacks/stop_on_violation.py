"""Stop a run that has gone wrong, while there is still something to go back to."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from safe_rlhf_v.data_modules.contract import split_names
from safe_rlhf_v.training.broken_numbers import checkpoint_folder, refuse_broken_state

UNSEEN = ("constraint/windowed_cost", "constraint/gap")
"""NaN here means that a constraint has not had a cost yet."""


class StopOnViolation(Callback):
    """Ends training with a checkpoint and one line that says why, on all ranks at the same iteration.

    Always watched: whether every logged training metric is finite. Optional: divergence from the start, length of the
    responses, and a cost that stays above the budget. The checkpoint, ``stopped-step=N.ckpt``, stands beside the others, which
    stay as they are. If the weights are broken, too, nothing is written: go on from an older one.

    The command line then ends with status 3, so that no script takes the policy for a finished one.

    List it after callbacks that keep a state, so that the checkpoint has this iteration of theirs.
    NaN costs do not get this far: the dual controller refuses them with a ``ValueError`` before anything is learned.

    Attributes:
        stopped: Whether it ended the last run.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.StopOnViolation
            init_args: {max_kl: 10.0, min_length: 4.0}
    """

    def __init__(
        self,
        max_kl: float | None = None,
        min_length: float | None = None,
        max_gap: float | None = None,
        patience: int = 20,
    ) -> None:
        """Choose the limits; ``None`` is no limit. One iteration is noisy: be generous.

        Args:
            max_kl: Largest mean KL from the reference per response, in nats.
            min_length: Smallest mean length of the responses, in tokens.
            max_gap: How far the windowed cost of any constraint may be above its budget.
            patience: Iterations in a row it may be so.

        Raises:
            ValueError: If ``patience`` is not positive.
        """
        if patience < 1:
            raise ValueError(f"StopOnViolation: patience is {patience}, it must be at least 1")
        self.max_kl = max_kl
        self.min_length = min_length
        self.max_gap = max_gap
        self.patience = patience
        self.above: dict[str, int] = {}
        self.stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run from the beginning counts anew."""
        self.stopped = False
        if not trainer.global_step:
            self.above = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at this iteration.

        Raises:
            NonFiniteError: If the weights are broken.
            ValueError: If a limit is set for something that the module does not log.
        """
        if trainer.should_stop:
            return
        reason = self.violation(training_metrics(trainer))
        anywhere: bool = trainer.strategy.reduce_boolean_decision(reason is not None, all=False)
        if not anywhere:
            return
        refuse_broken_state(pl_module)
        file = checkpoint_folder(trainer) / f"stopped-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(file, weights_only=False)
        if trainer.is_global_zero:
            reason = reason or "a metric of another rank is not finite"
            print(f"stopped after iteration {trainer.global_step}: {reason}; saved {file}", flush=True)
        trainer.should_stop = self.stopped = True

    def violation(self, metrics: dict[str, float]) -> str | None:
        """What is wrong with one iteration, in words."""
        bad = [n for n, v in metrics.items() if not math.isfinite(v) and not (n.startswith(UNSEEN) and math.isnan(v))]
        if bad:
            more = f" (+{len(bad) - 3})" if len(bad) > 3 else ""
            return f"not finite: {', '.join(f'{name} = {metrics[name]}' for name in sorted(bad)[:3])}{more}"
        if self.max_kl is not None and (kl := self._read(metrics, "policy/kl")) > self.max_kl:
            return f"policy/kl is {kl:.2f}, above max_kl {self.max_kl}"
        if self.min_length is not None and (length := self._read(metrics, "rollout/length")) < self.min_length:
            return f"rollout/length is {length:.2f}, below min_length {self.min_length}"
        if self.max_gap is None:
            return None
        gaps = [name for name in metrics if name.startswith("constraint/gap")]
        for name in gaps or ["constraint/gap"]:
            gap = self._read(metrics, name)
            self.above[name] = self.above.get(name, 0) + 1 if gap > self.max_gap else 0
            if self.above[name] >= self.patience:
                return f"{name} is {gap:.2f}, above max_gap {self.max_gap} for {self.above[name]} iterations"
        return None

    def state_dict(self) -> dict[str, Any]:
        """For how long each constraint has been violated."""
        return {"above": self.above}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.above = dict(state_dict["above"])

    def _read(self, metrics: dict[str, float], name: str) -> float:
        if name not in metrics:
            raise ValueError(f"StopOnViolation: the module logs no {name}; set its limit to null")
        return metrics[name]


def training_metrics(trainer: Trainer) -> dict[str, float]:
    """What the training step logged last; metrics of evaluated splits are not of this iteration."""
    prefixes = tuple(f"{split}/" for split in split_names(trainer, "validate"))
    logged = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith(prefixes)}
    values = torch.stack([value.detach().double().cpu() for value in logged.values()]) if logged else torch.zeros(0)
    return dict(zip(logged, values.tolist(), strict=True))
