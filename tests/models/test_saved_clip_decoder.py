"""A saved backbone as the base of adapters: the same numbers, and checkpoints without what the folder gives back."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.shared_runs import policy, shared, train
from torch import Tensor

from safe_rlhf_v.models import ClipDecoder, SavedClipDecoder
from safe_rlhf_v.models.adapters import adapter_of
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.policy.responses import comparable, respond
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.training.runs import load_backbone

DECODER = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
PICTURE = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = Prompts(((PICTURE,), ()), (("a",), ()), ("what is it ?", "who ?"))
RESPONSES = [("this is one red knife .", "no"), ("yes you can .", "i see")]


@pytest.fixture
def original(world: Path) -> ClipDecoder:
    """Trained elsewhere."""
    torch.manual_seed(0)
    return ClipDecoder(str(world / "tokenizer"), TOWER, DECODER, SlotSettings(3, 16), max_length=100).eval()


def log_probs(backbone: ClipDecoder) -> Tensor:
    with torch.no_grad():
        prepared = backbone.prepare(PROMPTS, RESPONSES, packed=True)
        found = backbone.eval().response_states(prepared, log_probs=True).log_probs
    assert found is not None
    return found


def test_it_is_what_was_saved(original: ClipDecoder, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path)
    saved = SavedClipDecoder(str(tmp_path)).eval()
    assert saved.base == str(tmp_path)
    assert saved.max_length == 100 and SavedClipDecoder(str(tmp_path), max_length=50).max_length == 50
    assert torch.equal(log_probs(saved), log_probs(original))
    adapted = SavedClipDecoder.from_pretrained(tmp_path, lora=LoraSettings(r=2))
    assert torch.equal(log_probs(adapted), log_probs(original))
    assert {adapter_of(name) for name, value in adapted.named_parameters() if value.requires_grad} == {"default"}
    with pytest.raises(ValueError, match="no clip_decoder"):
        SavedClipDecoder(str(tmp_path / "decoder"))


def test_a_policy_is_measured_against_the_network_that_its_base_was_saved_from(
    original: ClipDecoder, tmp_path: Path
) -> None:
    original.save_pretrained(tmp_path)
    saved = SavedClipDecoder(str(tmp_path), lora=LoraSettings(r=2)).eval()
    assert comparable(saved, original) and comparable(original, saved)
    streams = [torch.Generator().manual_seed(i) for i in range(2)]
    same = respond(saved, PROMPTS, SamplingOptions(6), streams, original)
    assert [answer.values["kl"] for answer in same] == [0.0, 0.0]
    with torch.no_grad():
        for name, value in saved.named_parameters():
            if "lora_B" in name:
                value.fill_(0.1)
    moved = respond(saved, PROMPTS, SamplingOptions(6), streams, original)
    assert all(answer.values["kl"] != 0.0 for answer in moved)


def test_one_saved_base_carries_all_roles(
    original: ClipDecoder, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original.save_pretrained(tmp_path / "base")
    init = {"folder": str(tmp_path / "base"), "lora": {"r": 2, "alpha": 4}}
    backbone = {"class_path": "safe_rlhf_v.models.SavedClipDecoder", "init_args": init}
    for name in ("reward", "cost"):
        train(f"{name.title()}Module", world, tmp_path / name, backbone)
    roles = shared(tmp_path)
    done: Any = train("ConstrainedPolicyModule", world, tmp_path / "policy", backbone, **policy(roles))
    stored = torch.load(next((tmp_path / "policy").glob("*.ckpt")), weights_only=True)["state_dict"]
    trained = {name for name, value in done.model.named_parameters() if value.requires_grad}
    buffers = {name for name, _ in done.model.named_buffers()}
    assert trained <= set(stored) <= trained | buffers
    actor = log_probs(done.model.backbone)
    assert (actor - log_probs(original)).abs().max() > 1e-4
    assert torch.equal(log_probs(load_backbone(tmp_path / "policy", base=str(tmp_path / "base"))), actor)
    with torch.no_grad():  # the same tower, but another language model
        original.decoder.get_output_embeddings().weight.add_(1.0)
    original.save_pretrained(tmp_path / "moved")
    backbone["init_args"] = {**init, "folder": str(tmp_path / "moved")}
    with pytest.raises(SystemExit):
        train("ConstrainedPolicyModule", world, tmp_path / "other", backbone, **policy(roles))
    said = capsys.readouterr().err.splitlines()
    message = r"error: .*lm_head\.weight of its base is another tensor than here; name the weights of that run, .*base"
    assert any(re.match(message, line) for line in said)


def test_the_pixels_of_a_saved_tower_are_those_of_its_weights(
    original: ClipDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag of pretrained weights says mean and std, which the saved folder no longer names."""
    import open_clip

    sizes = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64}

    def create_model(name: str, pretrained: str | None = None) -> Any:
        text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
        model = open_clip.CLIP(embed_dim=8, vision_cfg=sizes, text_cfg=text)
        if pretrained:
            model.visual.preprocess_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
        return model

    monkeypatch.setattr(open_clip, "create_model", create_model)
    tower = TowerSettings(name="some-tower", pretrained="some-tag")
    original.tokenizer.save_pretrained(tmp_path / "tokenizer_only")
    model = ClipDecoder(str(tmp_path / "tokenizer_only"), tower, DECODER, SlotSettings(3, 16)).eval()
    model.save_pretrained(tmp_path / "saved")
    saved = SavedClipDecoder(str(tmp_path / "saved")).eval()
    torch.testing.assert_close(saved.tower.mean.flatten(), torch.tensor([0.5, 0.4, 0.3]) * 255)
    torch.testing.assert_close(saved.tower.std.flatten(), torch.tensor([0.1, 0.2, 0.3]) * 255)
    assert torch.equal(log_probs(saved), log_probs(model))


def test_a_folder_without_some_weights_is_refused_in_one_line(original: ClipDecoder, tmp_path: Path) -> None:
    """Transformers would fill them with random numbers."""
    original.save_pretrained(tmp_path)
    file = tmp_path / "decoder" / "model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "mlp" not in name}, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"decoder .*: holds no weights for .*mlp.*\(\+3\) of LlamaForCausalLM"
    ) as refused:
        SavedClipDecoder(str(tmp_path))
    assert "\n" not in str(refused.value)
