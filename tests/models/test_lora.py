"""Adapters in place: nothing changes before training, only adapters train, merging is exact."""

import pytest
import torch
from torch import nn

from safe_rlhf_v.models.lora import LoraSettings, apply_lora, linear_names, merged_state


def small(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Sequential(nn.Linear(6, 3))).to(dtype)


def test_starts_as_the_module_it_adapts() -> None:
    module, x = small(), torch.randn(2, 4)
    before = module(x)
    apply_lora(module, LoraSettings(r=2))
    assert torch.equal(module(x), before)


def test_update_is_alpha_over_r_times_b_a() -> None:
    module, x = small(), torch.randn(5, 4)
    plain = small()
    apply_lora(module, LoraSettings(r=2, alpha=3.0, target_modules=("2.0",)))
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    a, b = module[2][0].lora_A["default"].weight, module[2][0].lora_B["default"].weight
    inner = plain[1](plain[0](x))
    expected = plain[2](inner) + 1.5 * inner @ a.T @ b.T
    torch.testing.assert_close(module(x), expected)
    plain.load_state_dict(merged_state(module))
    torch.testing.assert_close(plain(x), module(x))
    assert not torch.equal(small()(x), module(x))


def test_only_adapters_train_and_every_one_of_them() -> None:
    module = small()
    apply_lora(module, LoraSettings(r=2))
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)  # A gets no gradient through a zero B
    module(torch.randn(2, 4)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


def test_adapters_of_bfloat16_weights_are_float32() -> None:
    module = small(torch.bfloat16)
    apply_lora(module, LoraSettings(r=2))
    assert {p.dtype for n, p in module.named_parameters() if "lora_" in n} == {torch.float32}
    assert module(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_two_adapters_share_the_layers() -> None:
    module = small()
    apply_lora(module, LoraSettings(r=2), "actor")
    apply_lora(module, LoraSettings(r=3), "critic")
    assert sorted(linear_names(module)) == ["0", "2.0"]
    assert module[0].lora_A["actor"].weight.shape == (2, 4)
    assert module[0].lora_A["critic"].weight.shape == (3, 4)
    assert all(p.requires_grad for n, p in module.named_parameters() if "lora_" in n)
    with pytest.raises(ValueError, match="'actor' exists"):
        apply_lora(module, LoraSettings(r=2), "actor")


def test_unmatched_targets_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['q_proj'\] match no linear layer; available: \['0'\]"):
        apply_lora(small(), LoraSettings(target_modules=("q_proj",)))


def test_a_target_is_a_name_or_its_end() -> None:
    module = small()
    apply_lora(module, LoraSettings(r=2, target_modules=("2.0",)))
    assert [name for name, _ in module.named_modules() if name.endswith("lora_A")] == ["2.0.lora_A"]
    module = small()
    apply_lora(module, LoraSettings(r=2, target_modules=("0",)))
    assert [name for name, _ in module.named_modules() if name.endswith("lora_A")] == ["0.lora_A", "2.0.lora_A"]
