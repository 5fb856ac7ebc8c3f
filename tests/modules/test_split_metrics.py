"""Values of evaluated splits: each with its own loader, whatever the loaders are, and nothing of an evaluation that broke off."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import SumMetric

from safe_rlhf_v.metrics import Collected, mean
from safe_rlhf_v.modules.split_metrics import SplitMetrics

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Stream(IterableDataset):
    """Numbers without a length."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        return iter(self.numbers)


class Data(LightningDataModule):
    def __init__(self, sized=True):
        super().__init__()
        self.sized = sized

    def evaluation_splits(self, stage):
        return ("first", "second")

    def val_dataloader(self):
        """Ranks take turns; -1 is padding, so that all have equally many batches."""
        rank = self.trainer.global_rank if self.trainer else 0
        world = self.trainer.world_size if self.trainer else 1
        splits = ([1.0, 2.0, 6.0], [10.0])
        shares = [(numbers + [-1.0] * (-len(numbers) % world))[rank::world] for numbers in splits]
        return [DataLoader(share if self.sized else Stream(share), batch_size=None) for share in shares]

    test_dataloader = val_dataloader

    def train_dataloader(self):
        return DataLoader([0.0, 0.0], batch_size=None)


class Module(SplitMetrics):
    """``mean`` of what it sees, ``above`` of what is above 5, and the number of records."""

    def __init__(self, breaks=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.breaks = breaks
        self.seen = []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if len(self.seen) == self.breaks:
            self.seen.append(None)
            raise RuntimeError("broke off")
        self.seen.append(batch)
        metrics = self.metrics_of(
            self.split_name("validate", dataloader_idx),
            lambda: {"mean": Collected(mean), "above": Collected(mean), "batches": SumMetric()},
        )
        number = torch.tensor([float(batch)])
        valid = number >= 0
        metrics["mean"].update(number, torch.zeros(1).long(), valid)
        metrics["above"].update(number, torch.where(number > 5, 0, -1), valid)
        metrics["batches"].update(valid.sum())

    test_step = validation_step

    def training_step(self, batch, batch_idx):
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1, **quiet, **options)


FIRST = {"first/mean": 3.0, "first/above": 6.0, "first/batches": 3.0}
SECOND = {"second/mean": 10.0, "second/above": 10.0, "second/batches": 1.0}


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_each_loader_has_the_values_of_its_split(stage, tmp_path):
    assert getattr(trainer(tmp_path), stage)(Module(), Data(), verbose=False) == [FIRST, SECOND]


def test_loaders_without_a_length_are_logged_at_the_end(tmp_path):
    run = trainer(tmp_path)
    run.validate(Module(), Data(sized=False), verbose=False)
    assert run.callback_metrics == FIRST | SECOND


def test_what_has_no_row_is_not_logged(tmp_path):
    run = trainer(tmp_path, limit_val_batches=2)
    run.validate(Module(), Data(), verbose=False)
    assert run.callback_metrics == {"first/mean": 1.5, "first/batches": 2.0, **SECOND}  # nothing above 5 was seen


def test_an_evaluation_that_broke_off_leaves_nothing(tmp_path):
    module = Module(breaks=2)
    run = trainer(tmp_path)
    with pytest.raises(RuntimeError, match="broke off"):
        run.validate(module, Data(), verbose=False)
    assert run.validate(module, Data(), verbose=False) == [FIRST, SECOND]


def test_sanity_checking_does_not_count(tmp_path):
    run = trainer(tmp_path, num_sanity_val_steps=1)
    module = Module()
    run.fit(module, datamodule=Data())
    assert module.seen[:2] == [1.0, 10.0] and len(module.seen) == 6  # once for the check, then all
    assert {name: float(value) for name, value in run.callback_metrics.items()} == FIRST | SECOND


def test_loaders_of_nobody_have_names(tmp_path):
    run = trainer(tmp_path)
    run.validate(Module(), dataloaders=Data().val_dataloader(), verbose=False)
    assert {name.partition("/")[0] for name in run.callback_metrics} == {"validation", "validation_1"}


class Kept(Callback):
    """Writes down what a rank has logged."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, pl_module):
        torch.save(dict(trainer.callback_metrics), self.folder / f"{trainer.global_rank}.pt")


def test_two_ranks_log_what_one_process_logs(tmp_path):
    """One of them sees only padding of the second split, and nothing above 5 in the first."""
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    run = trainer(tmp_path, devices=2, strategy=strategy, use_distributed_sampler=False, callbacks=[Kept(tmp_path)])
    run.validate(Module(), Data(), verbose=False)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == FIRST | SECOND


class Late(Module):
    """``late`` exists from the first number above 5 on: one rank never has it."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        metrics = self.metrics_of(self.split_name("validate", dataloader_idx), dict)
        number = torch.tensor([float(batch)])
        for name in ("mean", *(["late"] if number > 5 else [])):
            metrics.setdefault(name, Collected(mean)).update(number, torch.zeros(1).long(), number >= 0)


def test_two_ranks_agree_on_names_that_only_one_of_them_has(tmp_path):
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    run = trainer(tmp_path, devices=2, strategy=strategy, use_distributed_sampler=False, callbacks=[Kept(tmp_path)])
    run.validate(Late(), Data(), verbose=False)
    expected = {"first/mean": 3.0, "first/late": 6.0, "second/mean": 10.0, "second/late": 10.0}
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == expected
