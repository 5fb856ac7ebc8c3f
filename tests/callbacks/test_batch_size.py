"""No picture and no table depends on how the rows were cut into batches."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.callbacks.conftest import TAXONOMY, make_batch
from tests.callbacks.scripted import prompts

import safe_rlhf_v.callbacks as package
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.callbacks.split_report import SplitReport

ROWS = 24
ABSTRACT = {"ResponseCallback", "EvaluationCallback"}
REPORTS = sorted(
    name for name in package.__all__ if issubclass(getattr(package, name), SplitReport) and name not in ABSTRACT
)


class Taken(Pictures):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}

    def image(self, tag: str, pixels: np.ndarray) -> None:
        self.images[tag] = pixels

    def histogram(self, tag: str, values: np.ndarray) -> None:
        self.images[tag] = values


def cut(batch: Any, start: int, size: int) -> Any:
    """Some rows of a batch."""
    end = start + size
    parts = {
        n: v[start:end]
        for n, v in batch._asdict().items()
        if isinstance(v, (torch.Tensor, tuple)) and not hasattr(v, "_fields")
    }
    nested = {n: v for n, v in batch._asdict().items() if n in ("prompts", "truth") and v is not None}
    return batch._replace(**parts, **{n: type(v)(*(part[start:end] for part in v)) for n, v in nested.items()})


def written(name: str, sizes: list[int]) -> dict[str, np.ndarray]:
    """What a callback writes after batches of these sizes."""
    callback, board = getattr(package, name)(), Taken()
    responses = issubclass(type(callback), package.ResponseCallback)
    callback._kind = "cost"
    callback._share = 12
    whole = prompts(ROWS, padding=3) if responses else make_batch(ROWS)
    generator = torch.Generator().manual_seed(0)
    levels = torch.log_softmax(3 * torch.randn(ROWS, 2, 7, generator=generator), -1)
    scores = levels if name == "GuardReport" else 2 * torch.randn(ROWS, 2, generator=generator)
    rows = [{"response": f"response {i}", "cost": i - 9.0, "reward": i % 5 - 2.0, "refused": 0.0} for i in range(ROWS)]
    notes: list[Any] = []
    start = 0
    for size in sizes:
        batch, output = (
            cut(whole, start, size),
            rows[start : start + size] if responses else scores[start : start + size],
        )
        notes += callback.note(output, batch, len(notes))
        start += size
    module = SimpleNamespace(dual=SimpleNamespace(budget=torch.tensor([-0.5])))
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(taxonomy=TAXONOMY), state=SimpleNamespace(fn="test"), lightning_module=module
    )
    callback.report(board, "test", notes, trainer)
    return board.images


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_written_is_that_of_one_batch(name: str) -> None:
    whole = written(name, [ROWS])
    assert whole
    for sizes in ([1] * ROWS, [5, 5, 5, 5, 4], [2, 21, 1]):
        found = written(name, sizes)
        assert set(found) == set(whole)
        assert all(np.array_equal(found[tag], whole[tag]) for tag in whole)
