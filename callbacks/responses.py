"""The base of callbacks that look at what a policy responds to held-out prompts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from safe_rlhf_v.callbacks.pictures import draws
from safe_rlhf_v.callbacks.split_report import SplitReport, on_cpu
from safe_rlhf_v.data_modules.contract import data_of, split_names
from safe_rlhf_v.records.batches import PolicyBatch
from safe_rlhf_v.scoring.rows import Row


class ResponseCallback(SplitReport, ABC):
    """Looks at the responses to the first prompts of each split, the same ones at every evaluation.

    The first validation split is also responded to and reported before the first step, so that there is something to compare
    with. The same prompts draw the same random numbers, and training goes on as if nothing had been asked.
    A subclass writes :meth:`observe` and :meth:`report`; see :class:`SplitReport`.

    Attributes:
        earlier: What later reports compare with, by split: plain data, in the checkpoint.
    """

    needs: ClassVar[tuple[str, str]] = ("responses", "{'responses': rows}")

    def __init__(self, prompts: int, before: bool) -> None:
        """Choose how much is looked at.

        Args:
            prompts: Prompts per split, over all ranks; those of rank 0 if nothing is gathered.
            before: Whether to respond before the first step, too.

        Raises:
            ValueError: If the number of prompts is not positive.
        """
        super().__init__()
        if prompts < 1:
            raise ValueError(f"{type(self).__name__}: the number of prompts is {prompts}, it must be at least 1")
        self.prompts = prompts
        self.before = before
        self.earlier: dict[str, Any] = {}
        self._share = prompts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Share the prompts out among the ranks.

        Raises:
            ValueError: If the module is no policy.
        """
        from safe_rlhf_v.policy import ConstrainedPolicyModule

        if not isinstance(pl_module, ConstrainedPolicyModule):
            name = type(self).__name__
            module = type(pl_module).__name__
            raise ValueError(f"{name} is for constrained policies, not for {module}; remove the callback")
        self._share = math.ceil(self.prompts / trainer.world_size) if self.gathers else self.prompts

    @abstractmethod
    def observe(self, row: Row, batch: PolicyBatch, i: int) -> Any:
        """A picklable note of one response.

        Args:
            row: The response, its scores and what else is known about it.
            batch: Where its prompt stands.
            i: In which row.
        """

    def note(self, output: Any, batch: Any, noted: int) -> list[Any]:
        """See :class:`SplitReport`."""
        rows = batch.valid.nonzero().flatten().tolist()[: max(self._share - noted, 0)]
        return [self.observe(output[i], batch, i) for i in rows]

    def state_dict(self) -> dict[str, Any]:
        """What is compared with."""
        return {"earlier": self.earlier}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with it."""
        self.earlier = dict(state_dict["earlier"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run from the beginning is not compared with another."""
        if not trainer.global_step:
            self.earlier = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Report once before the first step: not earlier, the module measures its scores' unit in ``on_train_start``."""
        if not self.before or batch_idx or trainer.global_step or not draws(trainer):
            return
        if not trainer.enable_validation:
            return
        data = data_of(trainer)
        assert data is not None, "policies are trained on a PromptDataModule"
        limit = trainer.num_val_batches[0] if trainer.num_val_batches else len(data.val_dataloader()[0])
        notes: list[Any] = []
        with evaluating(pl_module), trainer.precision_plugin.val_step_context():
            for number, held_out in enumerate(islice(data.val_dataloader()[0], int(limit))):
                held_out = pl_module.transfer_batch_to_device(held_out, pl_module.device, 0)
                held_out, rows = pl_module.admit(held_out, lambda b, n=number: pl_module.response_rows(b, n, 0))
                notes += self.note(rows, on_cpu(held_out), len(notes))
                if (number + 1) * len(held_out.valid) >= self._share:  # not len(notes): all ranks must stop alike
                    break
        self.write(trainer, split_names(trainer, "validate")[0], notes)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part is in the mode it was in, and so is the random state."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):  # the start of an ordinary loader draws a seed
            yield
    finally:
        for part in training:
            part.training = True


def moment(trainer: Trainer) -> str:
    """When this is, in words."""
    if trainer.state.fn != "fit":
        return "this policy"
    done = trainer.global_step
    return f"after {done:,} iteration{'s' if done > 1 else ''}" if done else "before training"
