"""Preference batches with any labels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, VoteShares


@pytest.fixture
def preference_batch() -> Callable[..., PreferenceBatch]:
    """Builds a batch of ``rows`` x ``responses`` with nothing labelled but what is given, as nested lists."""

    def build(rows: int, responses: int = 2, votes: VoteShares | None = None, **labels: Any) -> PreferenceBatch:
        tensors = {
            "more_helpful": torch.full((rows,), -1),
            "safer": torch.full((rows,), -1),
            "safety_tie": torch.zeros(rows, dtype=torch.bool),
            "safety": torch.full((rows, responses), UNKNOWN_LEVEL),
            "is_safe": torch.full((rows, responses), -1),
            "category": torch.full((rows, 2), -1),
            "valid": torch.ones(rows, dtype=torch.bool),
        }
        tensors |= {name: torch.tensor(value) for name, value in labels.items()}
        return PreferenceBatch(
            prompts=Prompts(images=((),) * rows, image_ids=((),) * rows, questions=("q",) * rows),
            responses=(("a",) * responses,) * rows,
            keys=tuple(f"k{i}" for i in range(rows)),
            **tensors,
            votes=votes,
        )

    return build
