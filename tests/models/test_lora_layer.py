"""The layer with adapters gives what peft's own layer gives."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from safe_rlhf_v.models.lora import LoraSettings, apply_lora
from safe_rlhf_v.models.lora_layer import LoraLinear


def layer(dtype: torch.dtype = torch.float32, dropout: float = 0.0, bias: bool = True) -> LoraLinear:
    """With two adapters of random weights, the first of which is active."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5, bias=bias, dtype=dtype))
    for name in ("default", "other"):
        apply_lora(network, LoraSettings(r=2, alpha=3.0, dropout=dropout), name)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    assert isinstance(network[0], LoraLinear)
    return network[0]


def both(adapted: LoraLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """Ours and peft's, with the same dropout."""
    torch.manual_seed(1)
    ours = adapted(x)
    torch.manual_seed(1)
    return ours, Linear.forward(adapted, x)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 2, 3, 6), (0, 6), (2, 0, 6)])
def test_inputs_of_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = both(layer(), x)
    assert ours.shape == (*shape[:-1], 5)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_precisions(dtype: torch.dtype, autocast: bool, bias: bool) -> None:
    adapted = layer(dtype, bias=bias)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    context: AbstractContextManager[object] = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with context:
        ours, theirs = both(adapted, x)
    assert ours.dtype == theirs.dtype
    coarse = autocast or dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.03 if coarse else 1e-5, atol=0.1 if coarse else 1e-5)


def test_dropout_several_adapters_and_gradients() -> None:
    adapted = layer(dropout=0.4).train()
    adapted._active_adapter = ["default", "other", "on_other_layers_only"]
    x = torch.randn(3, 6, requires_grad=True)
    ours, theirs = both(adapted, x)
    torch.testing.assert_close(ours, theirs)
    wanted = [x, *(p for name, p in adapted.named_parameters() if "lora_" in name)]
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), wanted),
        torch.autograd.grad(theirs.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
        assert mine.abs().sum() > 0


def test_adapters_that_are_off_or_merged() -> None:
    adapted = layer()
    x = torch.randn(3, 6)
    on = adapted(x)
    adapted._disable_adapters = True
    torch.testing.assert_close(adapted(x), adapted.base_layer(x))
    adapted._disable_adapters = False
    adapted.merge()
    torch.testing.assert_close(adapted(x), on)  # not added twice
    adapted.unmerge()
    torch.testing.assert_close(adapted(x), on)
