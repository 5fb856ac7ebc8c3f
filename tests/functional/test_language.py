"""Token log-probabilities: chunked, one shot and log_softmax agree in value and gradient; memory stays bounded."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from safe_rlhf_v.functional.language import log_probs_of, token_log_probs

N, R, D, V = 3, 5, 8, 11


@pytest.fixture
def case() -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mask = torch.arange(R)[None] < torch.tensor([[5], [1], [3]])
    hidden = torch.randn(N, R, D, generator=generator)
    return hidden, nn.Linear(D, V, bias=False), torch.randint(0, V, (N, R), generator=generator), mask


def reference(hidden: Tensor, lm_head: nn.Linear, targets: Tensor, mask: Tensor) -> Tensor:
    log_probs = lm_head.weight.double()
    return (hidden.double() @ log_probs.T).log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1) * mask


def value_and_gradients(
    function: Callable[..., Tensor], case: tuple[Tensor, nn.Linear, Tensor, Tensor]
) -> list[Tensor]:
    hidden, lm_head, targets, mask = case
    leaf = hidden.clone().requires_grad_()
    lm_head.zero_grad()
    out = function(leaf, lm_head, targets, mask)
    (out * torch.arange(1.0, R + 1)).sum().backward()
    assert leaf.grad is not None and lm_head.weight.grad is not None
    return [x.detach().float() for x in (out, leaf.grad, lm_head.weight.grad.clone())]


@pytest.mark.parametrize("chunk", [1, 2, 9, 1024])
def test_values_and_gradients(chunk: int, case: tuple[Tensor, nn.Linear, Tensor, Tensor]) -> None:
    expected = value_and_gradients(reference, case)
    got = value_and_gradients(lambda *args: token_log_probs(*args, chunk=chunk), case)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_only_real_positions_meet_the_lm_head(case: tuple[Tensor, nn.Linear, Tensor, Tensor]) -> None:
    hidden, lm_head, targets, mask = case
    sizes: list[int] = []

    def spy(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return lm_head(states)  # type: ignore[no-any-return]

    with torch.no_grad():
        token_log_probs(hidden, spy, targets, mask, chunk=4)
    assert sizes == [4, 4, 1]


def test_junk_behind_the_mask_changes_nothing(case: tuple[Tensor, nn.Linear, Tensor, Tensor]) -> None:
    hidden, lm_head, targets, mask = case
    dirty = (hidden.masked_fill(~mask[..., None], torch.nan), lm_head, targets.masked_fill(~mask, -100), mask)
    clean = value_and_gradients(token_log_probs, case)
    for a, b in zip(value_and_gradients(token_log_probs, dirty), clean, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert bool((clean[0][~mask] == 0).all()) and bool((clean[1][~mask] == 0).all())


def test_padded_batch_equals_rows_alone(case: tuple[Tensor, nn.Linear, Tensor, Tensor]) -> None:
    hidden, lm_head, targets, mask = case
    whole = token_log_probs(hidden, lm_head, targets, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        row = slice(i, i + 1), slice(0, length)
        alone = token_log_probs(hidden[row], lm_head, targets[row], mask[row])
        torch.testing.assert_close(whole[row], alone, rtol=1e-5, atol=1e-6)


def test_nothing_real_is_zero_with_a_graph(case: tuple[Tensor, nn.Linear, Tensor, Tensor]) -> None:
    hidden, lm_head, targets, mask = case
    hidden.requires_grad_()
    out = token_log_probs(hidden, lm_head, targets, torch.zeros_like(mask))
    assert out.shape == (N, R) and bool((out == 0).all())
    out.sum().backward()
    assert hidden.grad is not None and bool((hidden.grad == 0).all())


def test_half_precision_logits_are_normalised_in_float32() -> None:
    """A confident token in bf16: log-probabilities still sum to one over the vocabulary."""
    lm_head = nn.Linear(D, V, bias=False, dtype=torch.bfloat16)
    hidden = (torch.randn(1, 1, D, generator=torch.Generator().manual_seed(1)) * 20).bfloat16().expand(1, V, D)
    scores = token_log_probs(hidden, lm_head, torch.arange(V)[None], torch.ones(1, V, dtype=torch.bool))
    assert scores.dtype == torch.float32
    assert scores.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("size", [11, 32_000])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 1e6])
def test_large_logits_lose_no_digits(shift: float, size: int) -> None:
    """Against float64 on the same float32 logits. Subtracting logsumexp from a logit of 1e4 is off by up to 1e-3."""
    noise = 3 * torch.randn(6, size, generator=torch.Generator().manual_seed(0))
    logits, targets = noise + shift, torch.arange(6)
    exact = logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_probs_of(logits, targets).double(), exact, rtol=2e-6, atol=2e-6)
    everywhere = torch.ones(1, 6, dtype=torch.bool)
    chunked = token_log_probs(logits[None], lambda x: x, targets[None], everywhere, chunk=2)[0]
    torch.testing.assert_close(chunked.double(), exact, rtol=2e-6, atol=2e-6)


def test_gradients_at_large_logits() -> None:
    """One-hot minus softmax, from the same digits."""
    logits = (torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) + 1e4).requires_grad_()
    targets = torch.tensor([0, 7, 49, 3])
    (got,) = torch.autograd.grad(log_probs_of(logits, targets).sum(), logits)
    expected = torch.nn.functional.one_hot(targets, 50) - logits.detach().double().softmax(-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_one_copy_of_the_logits_is_kept_for_the_backward_pass() -> None:
    """As many numbers as with logsumexp; the peak in between was measured, and is lower."""
    kept: dict[int, int] = {}  # by storage

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel() if x.is_floating_point() else 0
        return x

    logits = torch.randn(8, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        log_probs_of(logits, torch.zeros(8, dtype=torch.long))
    assert sum(kept.values()) <= logits.numel() + 8
