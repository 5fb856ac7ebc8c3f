r"""Losses as sums and counts, so that batches, micro-batches and ranks add up before anything is divided.

A loss is a sum of terms, each a mean over its own units: decided pairs, labelled responses or tokens. The mean of two batches'
means is not the mean of both: a token of a 2-token response would weigh ten times one of a 20-token response. So a batch b gives
of every term t its share, a sum :math:`S_{tb}` and a count :math:`n_{tb}`, and the loss of all of them is

.. math:: L = \sum_t w_t \frac{\sum_b S_{tb}}{\sum_b n_{tb}}
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_rlhf_v.functional.masked import masked_sum


@dataclass(frozen=True)
class Share:
    """Contribution of one batch to one term of a loss.

    Attributes:
        total: () float32 sum over the units that count, with its graph.
        count: () float32 number of units (rows, responses, tokens) or sum of their weights. It depends on labels and masks
            only, never on a network's output.
        weight: :math:`w_t`, the term's factor in the loss; 0 for a term that is only logged.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """() the batch's own mean; 0, with its graph, where nothing counts."""
        return divided(self.total, self.count)


def masked_share(values: Tensor, mask: Tensor, weight: float = 1.0) -> Share:
    """The share of the values where ``mask`` is true.

    Args:
        values: Any shape.
        mask: Same shape, bool or non-negative weights.
        weight: The term's factor in the loss.
    """
    return Share(masked_sum(values, mask), masked_sum(torch.ones_like(values), mask).detach(), weight)


def divided(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``, and ``total`` (a sum of nothing, but with its graph) where the count is 0."""
    return total / torch.where(count > 0, count, 1.0)


def loss_of(shares: Mapping[str, Share], counts: Mapping[str, Tensor] | None = None) -> Tensor:
    """() the weighted sum of the terms.

    Args:
        shares: Shares of one batch, by name.
        counts: Divisor of each total; ``None`` for the batch's own counts. With the summed counts of several batches, the
            results of these batches add up to the loss of one large batch.
    """
    counts = {name: share.count for name, share in shares.items()} if counts is None else counts
    terms = {name: share for name, share in shares.items() if share.weight or share.total.requires_grad}
    return torch.stack([share.weight * divided(share.total, counts[name]) for name, share in terms.items()]).sum()


def loss_and_means(shares: Mapping[str, Share]) -> dict[str, Tensor]:
    """``loss`` () with its graph, and the mean of every term of one batch by name, detached."""
    means = {name: share.mean.detach() for name, share in shares.items()}
    return {**means, "loss": loss_of(shares)}
