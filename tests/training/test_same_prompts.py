"""A reward or cost model reads prompts as the actor prepares them: other ones than it was trained on are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from safe_rlhf_v.models import HFVLM, ClipDecoder
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.same_prompts import check_same_prompts

DECODER = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
           "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def refused(scorer: Any, actor: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^x.ckpt: .*{words}") as error:
        check_same_prompts("x.ckpt", scorer, actor)
    assert "\n" not in str(error.value)


def test_other_templates_sizes_and_tokens_of_pictures_are_refused(world: Path) -> None:
    def backbone(size: int = 64, slots: int = 3, template: str | None = None) -> ClipDecoder:
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": size})
        torch.manual_seed(0)
        return ClipDecoder(str(world / "tokenizer"), tower, DECODER, SlotSettings(slots, 16), template=template)

    actor = backbone()
    check_same_prompts("x.ckpt", backbone(), actor)
    refused(backbone(size=96), actor, r"another image_size \('96'\) than the actor's \('64'\)")
    refused(backbone(slots=4), actor, r"another image_tokens \('5'\)")
    refused(backbone(template="{question} <image>"), actor, "another template")


def test_another_budget_of_pixels_or_chat_template_is_refused(tmp_path: Path) -> None:
    folder = str(write_tiny_vlm("qwen2_5_vl", tmp_path / "model"))
    actor, scorer = (HFVLM(folder, self_test=False) for _ in range(2))
    for name, content in actor.stored_sources().files["processor"].items():  # as a checkpoint stores it
        (tmp_path / "stored").mkdir(exist_ok=True)
        (tmp_path / "stored" / name).write_bytes(content)
    check_same_prompts("x.ckpt", scorer, actor)
    check_same_prompts("x.ckpt", HFVLM(folder, processor=str(tmp_path / "stored"), self_test=False), actor)
    refused(HFVLM(folder, self_test=False, max_pixels=56 * 56), actor, "another size")
    scorer._writer.form["template"] += "!"
    refused(scorer, actor, "another chat")
