"""Explained variance over ranks; its value on one rank is tested with the losses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from safe_rlhf_v.functional.policy_losses import explained_variance

GENERATOR = torch.Generator().manual_seed(0)


def test_that_of_ranks_is_that_of_all_their_tokens() -> None:
    """Two ranks of unequal means and lengths, as threads; a mean of their values would be another number."""
    values = torch.randn(5, 6, generator=GENERATOR)
    returns = values + torch.randn(5, 6, generator=GENERATOR)
    returns[:2] += 5.0
    mask = torch.arange(6) < torch.tensor([[6], [2], [1], [0], [4]])
    expected = explained_variance(values, returns, mask).item()
    sent = [torch.zeros(0), torch.zeros(0)]
    barrier = threading.Barrier(2)
    rows = [slice(0, 2), slice(2, None)]

    def on(rank: int) -> float:
        def total(sums: torch.Tensor) -> torch.Tensor:
            sent[rank] = sums
            barrier.wait(10)
            both = sent[0] + sent[1]
            barrier.wait(10)
            return both

        return explained_variance(values[rows[rank]], returns[rows[rank]], mask[rows[rank]], total).item()

    with ThreadPoolExecutor(2) as ranks:
        assert list(ranks.map(on, (0, 1))) == pytest.approx([expected, expected])
    alone = [explained_variance(values[part], returns[part], mask[part]).item() for part in rows]
    assert expected != pytest.approx(sum(alone) / 2, abs=1e-3)
