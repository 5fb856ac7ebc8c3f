"""Small stages for tests: a stub of a backbone, its checkpoint, and loading it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safe_rlhf_v.training.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    fingerprint,
    load_stage,
    read_stage,
)


class Stub(torch.nn.Module):
    """The least that a fingerprint needs."""

    base: str | None = None

    def __init__(self, width: int = 4, vocabulary: str = "ab") -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, width)
        self.tokenizer = tokenizer(vocabulary)


def tokenizer(vocabulary: str, **special: str) -> Any:
    ids = {token: number for number, token in enumerate(vocabulary)}
    return SimpleNamespace(get_vocab=lambda: ids, special_tokens_map=special)


def save(path: Path, backbone: Any, **more: Any) -> Path:
    weights = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    content = {
        "state_dict": {**weights, "head.weight": torch.ones(1)},
        "fingerprint": fingerprint(backbone),
        "rebuilt": [],
    }
    AtomicCheckpointIO().save_checkpoint({**content, **more}, path)
    return path


def hand_on(path: Path, backbone: Any) -> None:
    load_stage(read_stage(str(path)), backbone, fingerprint(backbone))


def one_line(error: pytest.ExceptionInfo[CheckpointError], *parts: str) -> bool:
    text = str(error.value)
    return "\n" not in text and all(part in text for part in parts)
