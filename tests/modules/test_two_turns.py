"""Reward and cost models are trained on the two-turn world, and read the first turn."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from tests.modules.offline import DECODER

from safe_rlhf_v.commands.tokenizer import write_tokenizer
from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.models import ClipDecoder, EvidenceHead
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import CostModule, RewardModule
from safe_rlhf_v.objectives import BradleyTerry, CostObjective, OrdinalTerm, SignTerm
from safe_rlhf_v.world import SIZES, write_world

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def two_turns(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "two_turns"
    sizes = {**dict.fromkeys(SIZES, 2), "train": 24, "counterfactual_history": 12}
    write_world(root, sizes=sizes, two_turns=True, progress=False)
    write_tokenizer(str(root), str(root / "tokenizer"))
    return root


@pytest.mark.parametrize(
    ("stage", "objective"),
    [(RewardModule, BradleyTerry), (CostModule, lambda: CostObjective([SignTerm(), OrdinalTerm()]))],
)
def test_a_few_steps_and_the_twins_over_histories(stage, objective, two_turns):
    def backbone():
        torch.manual_seed(0)
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        return ClipDecoder(str(two_turns / "tokenizer"), tower, DECODER, SlotSettings(3, 16))

    splits = ("counterfactual_history",)
    data = PreferenceDataModule(str(two_turns), batch_size=8, validation_splits=splits, test_splits=splits)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    module = stage(backbone, objective, partial(EvidenceHead, fusion=8), optimizer=optimizer)
    trainer = pl.Trainer(accelerator="cpu", max_steps=6, limit_val_batches=0, **QUIET)
    trainer.fit(module, data)
    assert trainer.global_step == 6 and torch.isfinite(trainer.callback_metrics["train/loss"])
    (tested,) = trainer.test(module, data, verbose=False)
    assert any("true_accuracy" in name for name in tested)

    batch = next(iter(data.test_dataloader()[0]))
    assert all(len(context.history) == 2 for context in batch.prompts.contexts)
    with torch.no_grad():
        scores = module.score(batch.prompts, batch.responses)
        last_turn = batch.prompts._replace(contexts=(type(batch.prompts.contexts[0])(),) * len(batch.keys))
        blind = module.score(last_turn, batch.responses)
    torch.testing.assert_close(blind[::2], blind[1::2])  # twins are the same but for their first turns
    assert float((scores[::2] - scores[1::2]).abs().max()) > 1e-4
