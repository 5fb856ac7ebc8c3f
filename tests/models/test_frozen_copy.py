"""A frozen copy shares what cannot change, keeps its own of the rest, and says so in its state dict."""

from typing import Any

import pytest
import torch

from safe_rlhf_v.models import HFVLM, ClipDecoder
from safe_rlhf_v.models.frozen_copy import FrozenCopy, frozen_names
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def backbone(world):
    def make(**options: Any) -> ClipDecoder:
        torch.manual_seed(0)
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        decoder = {**DECODER, "tie_word_embeddings": options.pop("tied", False)}
        return ClipDecoder(str(world / "tokenizer"), tower, decoder, SlotSettings(3, 16), **options)

    return make


def test_frozen_tensors_are_the_same_objects_and_the_rest_are_equal(backbone):
    original = backbone()
    copy = FrozenCopy(original).network
    mine, theirs = dict(copy.named_parameters()), dict(original.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]) and not value.requires_grad
        assert (value is theirs[name]) == name.startswith(("tower.", "resampler."))
    assert any(p.requires_grad for p in original.decoder.parameters())  # the original trains on
    assert not {id(b) for b in copy.buffers()} & {id(b) for b in original.buffers()}


def test_only_own_tensors_are_in_the_state_dict(backbone):
    original = backbone()
    whole = FrozenCopy(original, shared=()).state_dict()
    assert set(whole) == {f"network.{name}" for name in original.state_dict()}
    lean = FrozenCopy(original).state_dict()
    assert set(whole) - set(lean) == {f"network.{name}" for name in frozen_names(original)}
    nested = torch.nn.ModuleDict({"reference": FrozenCopy(original)}).state_dict()
    assert set(nested) == {f"reference.{name}" for name in lean}


def test_loading_its_own_state_misses_nothing_and_less_is_noticed(backbone):
    parent = torch.nn.ModuleDict({"reference": FrozenCopy(backbone())})
    state = parent.state_dict()
    parent.load_state_dict(state, strict=True)
    lost = "reference.network.projector.0.weight"
    del state[lost]
    assert parent.load_state_dict(state, strict=False).missing_keys == [lost]


def test_tied_weights_stay_tied(backbone):
    copy = FrozenCopy(backbone(tied=True)).network
    assert copy.lm_head.weight is copy.decoder.get_input_embeddings().weight


def test_it_stays_in_evaluation_mode(backbone):
    parent = torch.nn.ModuleDict({"policy": backbone(), "reference": FrozenCopy(backbone())}).train()
    assert parent["policy"].decoder.training
    assert not any(module.training for module in parent["reference"].modules())


def test_the_feature_cache_is_shared_only_with_the_whole_tower(backbone):
    original = backbone(feature_cache=10)
    copy = FrozenCopy(original)
    assert copy.network._cache is original._cache
    copy.follow({"resampler.queries"}, original)
    assert copy.network._cache is not original._cache
    assert FrozenCopy(original, shared=()).network._cache is not original._cache


def test_follow_shares_what_was_left_out_and_nothing_else(backbone):
    original = backbone()
    copy = FrozenCopy(original)
    stored = {name for name in original.state_dict() if name.startswith("resampler.")}
    copy.follow(stored, original)
    assert copy.shared == frozen_names(original) - stored
    for name, value in copy.network.named_parameters():
        assert (value is original.get_parameter(name)) == (name in copy.shared)
    with torch.no_grad():
        original.resampler.queries.add_(1)
    assert not torch.equal(copy.network.resampler.queries, original.resampler.queries)
    copy.follow(set(), original)  # back: all frozen ones, never a trainable one
    assert copy.shared == frozen_names(original)
    assert copy.network.resampler.queries is original.resampler.queries
    assert copy.network.projector[0].weight is not original.projector[0].weight


def test_a_trainable_tensor_is_never_shared(backbone):
    with pytest.raises(AssertionError, match="trainable"):
        FrozenCopy(backbone(), shared={"projector.0.weight"})


def test_under_lora_the_copy_costs_the_adapters(tmp_path):
    write_tiny_vlm("llava", tmp_path / "llava")
    original = HFVLM(str(tmp_path / "llava"), lora=LoraSettings(r=2))
    copy = FrozenCopy(original)
    own = {id(p) for p in copy.network.parameters()} - {id(p) for p in original.parameters()}
    adapters = [p for name, p in copy.network.named_parameters() if "lora_" in name]
    assert own == {id(p) for p in adapters} and adapters
    names = set(copy.state_dict()) - {f"network.{name}" for name, _ in original.named_buffers()}
    assert names and all("lora_" in name for name in names)
