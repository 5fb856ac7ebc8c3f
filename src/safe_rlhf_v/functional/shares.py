r"""Losses as sums and counts, so that batches, micro-batches and ranks add up before anything is divided.

A loss is made of terms, each the mean over what *it* counts: decided pairs, labelled responses, tokens. The mean of two batches'
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
    """What one batch adds to one term of a loss.

    Attributes:
        total: () float32 sum over what counts, with its graph.
        count: () float32 how much counts: rows, responses, tokens, or their weights. It follows from labels and masks alone,
            never from what a network computes.
        weight: :math:`w_t`, the term's factor in the loss; 0 for what is only watched.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """() the batch's own mean; 0, with its graph, where nothing counts."""
        return divided(self.total, self.count)


def masked_share(values: Tensor, mask: Tensor, weight: float = 1.0) -> Share:
    """The share of values that count where ``mask`` says so.

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
        shares: Those of one batch, by name.
        counts: What each total is divided by; ``None`` for the batch's own counts. With the counts of many batches together, the
            results of all of them add up to the loss of one big batch.
    """
    counts = {name: share.count for name, share in shares.items()} if counts is None else counts
    terms = {name: share for name, share in shares.items() if share.weight or share.total.requires_grad}
    return torch.stack([share.weight * divided(share.total, counts[name]) for name, share in terms.items()]).sum()


def loss_and_means(shares: Mapping[str, Share]) -> dict[str, Tensor]:
    """``loss`` () with its graph, and the mean of every term of one batch by name, detached."""
    means = {name: share.mean.detach() for name, share in shares.items()}
    return {**means, "loss": loss_of(shares)}
