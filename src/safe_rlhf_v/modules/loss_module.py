r"""Training steps whose accumulated micro-batches and ranks make exactly one big batch.

Every term of a loss has its own denominator (:mod:`safe_rlhf_v.functional.shares`), and it is known only when all micro-batches
of an optimizer step have been seen: an accumulation window, ``Trainer(accumulate_grad_batches=n)``, a shorter one where an epoch
ends. So the batches of a window are only prepared on the CPU as they come in, and the last one starts the work: what counts is
summed over the window and over all W ranks, and each micro-batch b in turn goes forward and backward with

.. math:: \ell_b = W \sum_t w_t \frac{S_{tb}}{\sum_{r}\sum_{b'} n_{tb'r}}

The gradients of the window add up, DDP and FSDP2 divide by W, and the result is the gradient of
:math:`\sum_t w_t \sum_r\sum_b S_{tbr} / \sum_r\sum_b n_{tbr}`: that of one batch holding all rows. No more than one micro-batch's
graph exists at a time; what waits are prepared inputs in host memory (pictures as the processor leaves them). Clipping and the
optimizer's step come after that, as always. Counting ahead is also what transformers' Trainer does (``num_items_in_batch``), for
its one term and tokens only.

The steps before the last return 0 and cost little; the last returns the window's loss, and logs it and the terms that counted
something.
"""

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from safe_rlhf_v.functional.shares import Share, divided, loss_of
from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.records.batches import Prompts

TAKEN = Prompts((), (), ())
"""Stands where the prompts of a prepared batch stood: raw pictures need not wait for the window's end."""


class LossModule(BaseModule):
    """A module that learns from a loss of several terms; a subclass writes :meth:`prepare`, :meth:`counts` and :meth:`shares`."""

    in_progress_bar: tuple[str, ...] = ("loss",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start with an empty accumulation window.

        Args:
            args: Those of :class:`BaseModule`.
            kwargs: Those of :class:`BaseModule`.
        """
        super().__init__(*args, **kwargs)
        self._window: list[tuple[Any, Any]] = []
        self._labelled: bool | None = None  # whether a window had anything to learn from; None before the first one

    @abstractmethod
    def prepare(self, batch: Any) -> tuple[Any, Any]:
        """The batch without its prompts, and the network's inputs made of them, on the CPU.

        Args:
            batch: As the data module gives it, labels on the module's device.
        """

    @abstractmethod
    def counts(self, batch: Any, inputs: Any) -> dict[str, Tensor]:
        """() count of every term of :meth:`shares`, by name and in the same order, before the network has run.

        Args:
            batch: What :meth:`prepare` gave.
            inputs: What :meth:`prepare` gave.
        """

    @abstractmethod
    def shares(self, batch: Any, inputs: Any) -> dict[str, Share]:
        """What a prepared batch adds to every term of the loss, by name; one named ``loss`` must be the only one with a weight.

        Args:
            batch: What :meth:`prepare` gave.
            inputs: What :meth:`prepare` gave.
        """

    def seen(self, batch: Any, inputs: Any) -> dict[str, Tensor | int]:
        """Numbers of a prepared batch to be logged, by name and always the same: truncated responses, pairs left out, ...

        Args:
            batch: What :meth:`prepare` gave.
            inputs: What :meth:`prepare` gave.
        """
        return {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Wait for the window's last batch, then learn from all of them; see the module's text.

        Returns:
            () the window's loss over all ranks, times the number of batches Lightning divides it by; 0 before the last batch.
        """
        accumulated = 1 if self._trainer is None else self.trainer.accumulate_grad_batches
        # Whatever an interrupted window or a repeated closure left goes.
        del self._window[batch_idx % accumulated :]
        self._window.append(self.prepare(batch))
        if self._trainer is not None and self.trainer.fit_loop._should_accumulate():
            return torch.zeros((), device=self.device, requires_grad=True)
        window = self._window
        self._window = []
        return accumulated * self._learn(window)

    def on_train_end(self) -> None:
        """Whether there was anything to learn from. Raises: ValueError: If no window of this training had a label."""
        super().on_train_end()
        if self._labelled is False:
            raise ValueError(
                "nothing was learned: no record that training read has a label this stage learns from; see "
                "'python -m safe_rlhf_v shards inspect' on data.init_args.path"
            )

    def _learn(self, window: list[tuple[Any, Any]]) -> Tensor:
        """Gradients of all micro-batches but the last, and the window's loss with the last one's graph."""
        noted = [self.seen(*part) for part in window]
        self.log_counts({name: sum(counts[name] for counts in noted) for name in noted[0]})
        own = [torch.stack(list(self.counts(*part).values())).detach() for part in window]  # each (T,)
        counts = self.total(torch.stack(own).sum(0))  # (T,)
        counted = [count > 0 for count in counts.tolist()]
        self._labelled = any(counted) or bool(self._labelled)
        ranks = 1 if self._trainer is None else self.trainer.world_size
        totals = torch.zeros_like(counts)
        for i, part in enumerate(window):
            shares = self.shares(*part)
            totals += torch.stack([share.total.detach() for share in shares.values()])
            loss = ranks * loss_of(shares, dict(zip(shares, counts, strict=True)))
            if i < len(window) - 1:
                self._add_gradients(loss)
        means = divided(self.total(totals), counts)
        window_loss = means @ means.new_tensor([share.weight for share in shares.values()])
        logged = {name: mean for name, mean, real in zip(shares, means, counted, strict=True) if real}
        if logged:  # a mean of nothing is no number to be shown
            logged["loss"] = window_loss
        for name, value in logged.items():
            self.log(f"train/{name}", value, prog_bar=name in self.in_progress_bar)
        return loss + (window_loss - loss.detach())

    def _add_gradients(self, loss: Tensor) -> None:
        """A backward pass that ranks do not exchange: the window's last one exchanges the sum."""
        strategy = self.trainer.strategy
        alone = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
        with (
            alone,
            torch.autocast(self.device.type, enabled=False),
        ):  # as Lightning's own backward pass, outside of the step
            strategy.backward(loss, None)
