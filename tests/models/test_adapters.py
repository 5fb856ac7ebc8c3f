"""Switching adapters: exact, nested, and without touching what is trained."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from safe_rlhf_v.models.adapters import (
    Adapter,
    RememberAdapter,
    active_adapter,
    adapter,
    adapter_of,
    adapter_tensors,
    keep_to_default,
)
from safe_rlhf_v.models.lora import LoraSettings, apply_lora


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Sequential(nn.Linear(6, 3)))


def adapted(*names: str) -> nn.Sequential:
    module = plain()
    for name in names:
        apply_lora(module, LoraSettings(r=2, alpha=3.0), name)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return module


def by_hand(module: nn.Sequential, name: str, x: Tensor) -> Tensor:
    """W x + b + alpha / r B A x, twice, in float64."""
    for i, layer in enumerate((module[0], module[2][0])):
        base, a, b = layer.base_layer, layer.lora_A[name].weight.double(), layer.lora_B[name].weight.double()
        x = x @ base.weight.double().T + base.bias.double() + 1.5 * x @ a.T @ b.T
        x = nn.functional.gelu(x) if i == 0 else x
    return x


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_each_adapter_adds_its_own_update_and_none_is_the_base_bit_for_bit() -> None:
    module, x = adapted("default", "reward"), torch.randn(5, 4)
    assert active_adapter(module) == "default", "the first stays at work when others are added"
    for name in ("default", "reward"):
        with adapter(module, name):
            near(module(x), by_hand(module, name, x.double()))
    with adapter(module, None):
        assert active_adapter(module) is None
        assert torch.equal(module(x), plain()(x))
    near(module(x), by_hand(module, "default", x.double()))


def test_contexts_nest_repeat_and_end_with_an_error() -> None:
    module = adapted("default", "reward", "cost")
    again = adapter(module, "cost")
    with adapter(module, "reward"):
        with again, adapter(module, None), again:
            assert active_adapter(module) == "cost"
        assert active_adapter(module) == "reward"
    with pytest.raises(KeyError), again:
        raise KeyError
    assert active_adapter(module) == "default"
    with again:
        assert active_adapter(module) == "cost"
    with pytest.raises(ValueError, match="no adapter is named 'critic'"):
        adapter(module, "critic")


def test_what_is_trained_stays_as_it_is() -> None:
    module = adapted("default", "reward")
    Adapter(module, "reward").requires_grad_(False)
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    for name in ("default", "reward", None):
        with adapter(module, name):
            assert {n: p.requires_grad for n, p in module.named_parameters()} == before
    assert {n: p.requires_grad for n, p in module.named_parameters()} == before


def test_recomputing_uses_the_adapter_of_the_forward_pass() -> None:
    module, x = adapted("default", "reward"), torch.randn(5, 4)

    def gradients(remember: bool, module: nn.Module = module) -> list[Tensor]:
        options = {"context_fn": RememberAdapter(module)} if remember else {}
        module.zero_grad()
        with adapter(module, "reward"):
            loss = checkpoint(module, x, use_reentrant=False, **options).square().sum()
        loss.backward(retain_graph=True)  # "default" is at work again
        loss.backward()
        return [
            p.grad.clone() for n, p in module.named_parameters() if adapter_of(n) == "reward" and p.grad is not None
        ]

    module.zero_grad()
    with adapter(module, "reward"):
        (2 * module(x).square().sum()).backward()
    expected = [p.grad.clone() for n, p in module.named_parameters() if adapter_of(n) == "reward"]
    assert len(expected) == 4
    for got, want in zip(gradients(remember=True), expected, strict=True):
        torch.testing.assert_close(got, want)
    wrong = gradients(remember=False)
    assert not all(torch.allclose(got, want) for got, want in zip(wrong, expected, strict=True))
    twin = copy.deepcopy(module)
    remembering = copy.deepcopy(RememberAdapter(module))
    assert remembering.module is not module
    for got, want in zip(gradients(remember=True, module=twin), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_an_adapter_is_a_module_of_its_own_made_of_the_layers_matrices() -> None:
    module, x = adapted("default", "reward"), torch.randn(5, 4)
    reward = Adapter(module, "reward")
    assert list(reward.state_dict()) == ["0.lora_A.weight", "0.lora_B.weight", "2.0.lora_A.weight", "2.0.lora_B.weight"]
    own = adapter_tensors(module.state_dict())
    assert own.keys() == reward.state_dict().keys()
    assert torch.equal(own["2.0.lora_A.weight"], module[2][0].lora_A["default"].weight)
    with torch.no_grad():
        reward.get_submodule("0.lora_A").weight.mul_(2)
    with adapter(module, "reward"):
        near(module(x), by_hand(module, "reward", x.double()))
    assert module[0].lora_A["reward"].weight is reward.get_submodule("0.lora_A").weight


def test_a_state_dict_can_keep_to_the_backbones_own_adapter() -> None:
    both = nn.ModuleDict({"net": adapted("default", "reward")})
    own = set(nn.ModuleDict({"net": adapted("default")}).state_dict())
    assert set(both.state_dict()) > own
    keep_to_default(both["net"])
    both["reward"] = Adapter(both["net"], "reward")
    stored = {name: torch.ones_like(value) for name, value in both.state_dict().items()}
    assert {name for name in stored if name.startswith("net.")} == own
    both.load_state_dict(stored)  # strictly: nothing is missing, nothing is too much
    assert all((value == 1).all() for value in both.parameters())
    del stored["reward.0.lora_A.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*reward\.0\.lora_A"):
        both.load_state_dict(stored)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.q_proj.lora_A.default.weight", "default"),
        ("lora_B.reward_critic.weight", "reward_critic"),
        ("model.q_proj.base_layer.weight", None),
        ("adapters.cost.q_proj.lora_A.weight", None),
    ],
)
def test_names_say_whose_tensor_it_is(name: str, found: str | None) -> None:
    assert adapter_of(name) == found
