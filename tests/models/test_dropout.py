"""Dropout of every form is switched off: two passes in training mode are equal, whatever drops."""

import json
from types import SimpleNamespace

import pytest
import torch
from open_clip.transformer import PatchDropout
from torch import nn

from safe_rlhf_v.models import HFVLM, ClipDecoder
from safe_rlhf_v.models.dropout import switch_off_dropout
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.models.tower import TowerSettings
from safe_rlhf_v.records.batches import Prompts

PICTURE = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = Prompts(((PICTURE,),), (("a",),), ("what is it ?",))
DROPS = {"attention_dropout": 0.4, "hidden_dropout_prob": 0.4, "projection_dropout": 0.4, "dropout": 0.4}


def passes(backbone, count=2):
    """Log-probabilities of one response, several times in training mode."""
    prepared = backbone.prepare(PROMPTS, [["it is a knife , keep away from it"]])
    backbone.train()
    return [backbone.response_states(prepared, log_probs=True).log_probs for _ in range(count)]


def check(backbone):
    first, second = passes(backbone)
    assert not torch.equal(first, second), "nothing was dropped to begin with"
    switch_off_dropout(backbone)
    first, second = passes(backbone)
    assert torch.equal(first, second)
    first.sum().backward()
    assert backbone.training
    assert any(parameter.grad is not None for parameter in backbone.parameters())
    backbone.eval()
    with torch.no_grad():
        alone = backbone.response_states(
            backbone.prepare(PROMPTS, [["it is a knife , keep away from it"]]), log_probs=True
        )
    torch.testing.assert_close(first.detach(), alone.log_probs)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", pytest.param("rest", marks=pytest.mark.slow)])
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4.0, dropout=0.5)])
def test_hugging_face_families(family, lora, tmp_path):
    """Their attention drops by a number in the module, not by a dropout module."""
    for name in [family] if family != "rest" else sorted(set(FAMILIES) - {"llava", "qwen2_5_vl"}):
        folder = write_tiny_vlm(name, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        for part in ("text_config", "vision_config"):
            config[part] |= DROPS
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        backbone = HFVLM(str(folder), lora=lora, freeze_tower=False, freeze_projector=False, local_files_only=True)
        if lora is not None:
            for key, value in backbone.named_parameters():
                if "lora_B" in key:
                    nn.init.normal_(value, std=0.5)
        check(backbone)


DECODERS = {
    "llama": {"attention_dropout": 0.4, "num_key_value_heads": 2, "intermediate_size": 48},
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "opt": {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neo": {
        "attention_dropout": 0.4, "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_types": [[["global"], 2]],
        "num_layers": 2, "num_heads": 2, "intermediate_size": 48,
    },
    "persimmon": {"attention_dropout": 0.4, "hidden_dropout": 0.2, "intermediate_size": 48},
    "starcoder2": {"residual_dropout": 0.3, "embedding_dropout": 0.3, "num_key_value_heads": 2, "intermediate_size": 48},
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name, world):
    """Read from a module's number, from its config in every pass, or from a dropout module."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    decoder = {"model_type": name, **sizes, **special, **DECODERS[name]}
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    torch.manual_seed(0)
    check(ClipDecoder(str(world / "tokenizer"), tower, decoder))


def test_stochastic_depth_of_a_tower(world):
    decoder = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "pad_token_id": 0,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    timm = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160,
            "timm_drop_path": 0.9}  # fmt: skip
    tower = TowerSettings(vision_cfg=timm, level=-1)
    torch.manual_seed(0)
    check(ClipDecoder(str(world / "tokenizer"), tower, decoder, freeze_tower=False))


class Everything(nn.Module):
    """Ways of dropping that no family above has."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5)
        self.alpha = nn.AlphaDropout(0.5)
        self.patches = PatchDropout(0.5, exclude_first_token=False)
        self.router_jitter_noise, self.steps_per_drop = 0.2, 3.0
        self.config = SimpleNamespace(
            to_dict=dict, inner=SimpleNamespace(to_dict=dict, attn_pdrop=0.5), layer_norm_eps=1e-5
        )

    def forward(self, x):
        x, _ = self.lstm(self.patches(x))
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.alpha(self.layer(x)) * (1 + self.router_jitter_noise * torch.rand(1) + self.config.inner.attn_pdrop)


def test_other_ways_of_dropping():
    module, x = Everything().train(), torch.randn(8, 8, 4)
    assert not torch.equal(module(x), module(x))
    switch_off_dropout(module)
    assert torch.equal(module(x), module(x))
    assert module.config.inner.attn_pdrop == 0 and module.config.layer_norm_eps == 1e-5 and module.steps_per_drop == 3.0
