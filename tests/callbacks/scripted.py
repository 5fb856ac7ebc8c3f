"""A policy module that does what it is told: scripted curves, responses known beforehand, no networks."""

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from safe_rlhf_v.data_modules.loader import ResumableLoader
from safe_rlhf_v.policy import ConstrainedPolicyModule
from safe_rlhf_v.records.batches import PolicyBatch, Prompts, Records

CURVES = {"policy/kl": 1.0, "policy/entropy": 0.3, "rollout/length": 15.0, "constraint/cost": 0.1}


def prompts(rows: int, first: int = 0, padding: int = 0) -> PolicyBatch:
    """Numbered prompts, the last ones padding; the third has no picture."""
    numbers = range(first, first + rows)
    return PolicyBatch(
        prompts=Prompts(
            images=tuple((torch.full((6, 8, 3), 9 * n, dtype=torch.uint8),) if n != 2 else () for n in numbers),
            image_ids=tuple((f"i{n}",) for n in numbers),
            questions=tuple(f"What is {n}?" for n in numbers),
        ),
        category=torch.zeros(rows, 1, dtype=torch.long),
        records=Records((None,) * rows),
        valid=torch.arange(rows) < rows - padding,
        keys=tuple(f"k{n}" for n in numbers),
    )


def responses(module: Any, batch: PolicyBatch, *_: Any) -> list[dict[str, Any]]:
    """The cost of prompt n is n - 2 before training and falls by 1 per iteration, the reward rises by 0.5."""
    done = module.global_step
    module.asked.append((done, module.training, tuple(batch.keys)))
    return [
        {
            "response": f"Response {key} at {min(done, 2)}.",
            "cost": float(key[1:]) - 2.0 - done if ok else float("nan"),
            "reward": 0.5 * done,
            "refused": 0.0,
            "unfinished": 0.0,
        }
        for key, ok in zip(batch.keys, batch.valid.tolist(), strict=True)
    ]


class Scripted(ConstrainedPolicyModule):
    """Logs ``script(i)`` in iteration i, counted from 1; spoils its weights in iteration ``breaks``."""

    def __init__(self, script: Any = lambda i: {}, breaks: int = 0, constraints: tuple[str, ...] = ("",)) -> None:
        LightningModule.__init__(self)
        self.automatic_optimization = False
        self.script, self.breaks, self.names = script, breaks, constraints
        self.weight = nn.Parameter(torch.ones(2))
        self.part = nn.Dropout(0.5).eval()
        self.dual = SimpleNamespace(budget=torch.tensor([-0.5] * len(constraints)))
        self.asked: list[tuple[int, bool, tuple[str, ...]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight.square().sum())
        optimizer.step()
        i = self.global_step
        if i == self.breaks:
            self.weight.data[0] = torch.nan
        values = dict(CURVES)
        for k, name in enumerate(self.names):
            cost = 1.0 - i / 4 + k
            values |= {f"constraint/windowed_cost{name}": cost, f"constraint/gap{name}": cost + 0.5}
            values |= {f"constraint/lambda{name}": 1.0 + i + k, f"constraint/budget{name}": -0.5}
            values[f"constraint/lambda_step{name}"] = 1.0
        self.log_dict(values | self.script(i))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        nan = float("nan")
        self.log(
            "validation/curve", nan, batch_size=len(batch.valid), sync_dist=True
        )  # a scorer's value that applies to no prompt
        return {"responses": responses(self, batch)}

    def response_rows(self, batch: PolicyBatch, batch_idx: int, loader: int) -> list[dict[str, Any]]:
        return responses(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.01)

    def configure_model(self) -> None: ...
    def on_fit_start(self) -> None: ...
    def on_train_start(self) -> None: ...
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...


class EqualBatches(ResumableLoader, DataLoader[Any]):
    """Any batch is the right one to go on with."""


class PromptData(LightningDataModule):
    """Two splits of numbered prompts; with several ranks each takes every other batch."""

    def __init__(self, splits: dict[str, list[PolicyBatch]] | None = None) -> None:
        super().__init__()
        self.splits = splits or {
            "validation": [prompts(4), prompts(4, 4, padding=1)],
            "other": [prompts(3), prompts(1, 3)],
        }

    def evaluation_splits(self, stage: str) -> tuple[str, ...]:
        return tuple(self.splits)

    def train_dataloader(self) -> Any:
        return EqualBatches([prompts(2)] * 20, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return [DataLoader(x[rank::world], batch_size=None) for x in self.splits.values()]  # type: ignore[arg-type]
