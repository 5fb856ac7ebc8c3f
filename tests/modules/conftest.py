"""Networks and batches of the tiny world."""

import pytest
import torch
from tests.modules.offline import DECODER

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings


@pytest.fixture
def backbone(world):
    def make(seed=0, **options):
        torch.manual_seed(seed)
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        return ClipDecoder(str(world / "tokenizer"), tower, DECODER, SlotSettings(3, 16), **options)

    return make


@pytest.fixture(scope="module")
def batches(world):
    loader = PreferenceDataModule(str(world), batch_size=6).train_dataloader()
    return [batch for batch, _ in zip(loader, range(2), strict=False)]


@pytest.fixture
def batch(batches):
    return batches[0]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llava"
    write_tiny_vlm("llava", folder)
    return str(folder)
