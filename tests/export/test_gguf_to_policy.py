"""A decoder from a GGUF file through the whole method: supervised, exported, shared roles, and out again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.conftest import OwnWords, strangers_words
from tests.models.test_real_tokenizer import TOWER, write_model
from tests.shared_runs import policy, shared, train

from safe_rlhf_v.commands.export import export


@pytest.mark.slow
def test_a_gguf_decoder_becomes_a_policy_that_strangers_use(world: Path, tmp_path: Path) -> None:
    parts = write_model(tmp_path)
    tower = {"vision_cfg": dict(TOWER.vision_cfg or {})}
    options = {"tokenizer": str(parts / "tiny.gguf"), "tower": tower, "decoder": str(parts), "gguf_file": "tiny.gguf"}
    first = {"class_path": "safe_rlhf_v.models.ClipDecoder", "init_args": options}
    train("SupervisedModule", world, tmp_path / "supervised", first)
    base = export(tmp_path / "supervised", tmp_path / "base", base=str(parts))
    assert base.difference is not None and base.difference < 1e-5
    init = {"folder": str(base.path), "lora": {"r": 2, "alpha": 4}}
    backbone = {"class_path": "safe_rlhf_v.models.SavedClipDecoder", "init_args": init}
    for name in ("reward", "cost"):
        train(f"{name.title()}Module", world, tmp_path / name, backbone)
    scores = {"clip": 1000.0}
    run: Any = train(
        "ConstrainedPolicyModule", world, tmp_path / "policy", backbone, **policy(shared(tmp_path), scores=scores)
    )
    assert run.trainer.global_step == 2
    done = export(tmp_path / "policy", tmp_path / "out", base=str(base.path))
    assert done.kind == "policy" and done.difference is not None and done.difference < 1e-5
    (theirs,) = strangers_words({"folder": str(done.path), "kind": "responds"})
    own = OwnWords(tmp_path / "policy", base.path)
    assert theirs == own.responses() and any(theirs)
    trained = own.backbone.decoder.get_output_embeddings().weight.clone()
    assert torch.equal(
        trained, OwnWords(tmp_path / "supervised", parts).backbone.decoder.get_output_embeddings().weight
    )
    before = torch.tensor(own.next_tokens())
    own.backbone.load_state_dict(
        {name: value * (0 if "lora_B" in name else 1) for name, value in own.backbone.state_dict().items()}
    )
    assert (torch.tensor(own.next_tokens()) - before).abs().max() > 1e-4  # the policy's training is in it
