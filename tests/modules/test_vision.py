"""What the attribute pretraining trains: tower and resampler, or the resampler alone."""

import lightning.pytorch as pl
import pytest
import torch

from safe_rlhf_v.data_modules import SupervisedDataModule
from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.tower import TowerSettings
from safe_rlhf_v.modules import VisionModule

ATTRIBUTES = {"object": 16, "colour": 6, "severity": 4}


@pytest.fixture
def train(world, backbone):
    def run(**options):
        module = VisionModule(backbone, ATTRIBUTES, lambda groups: torch.optim.SGD(groups, lr=0.1), **options)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=SupervisedDataModule(str(world), train_split="supervised", batch_size=4))
        before = backbone().state_dict()
        after = module.backbone.state_dict()
        return {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}

    return run


def test_tower_and_resampler_are_trained(train):
    assert train() == {"tower", "resampler"}


def test_the_resampler_alone_is_trained_and_the_tower_keeps_its_statistics(train):
    assert train(train_tower=False) == {"resampler"}


def test_nothing_to_train_is_refused(world):
    def without_resampler():
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        decoder = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return ClipDecoder(str(world / "tokenizer"), tower, decoder)

    tokens = without_resampler().image_shape[0]
    module = VisionModule(without_resampler, {f"a{i}": 2 for i in range(tokens - 1)}, train_tower=False)
    with pytest.raises(ValueError, match="train_tower: false leaves nothing to train"):
        module.build()
