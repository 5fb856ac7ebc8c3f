"""Surrogates: hand-computed cases in float64, padding, micro-batches, and a user's own that touches nothing of ours."""

import math
from pathlib import Path

import pytest
import torch
from tests.conftest import stage_command
from torch import Tensor

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.functional.masked import masked_mean
from safe_rlhf_v.functional.policy_losses import reduce_tokens, reduction_count
from safe_rlhf_v.policy import GSPO, ClipHigher, PPOClip, Surrogate, TokenLosses
from safe_rlhf_v.policy.settings import UpdateSettings

LENGTHS = (1, 4, 0, 6, 3)  # a one-token response and a padding row among others
SURROGATES = [PPOClip(), PPOClip(0.1, dual_clip=1.5), ClipHigher(), GSPO(), GSPO(0.1, 0.2)]


def left(lengths: tuple[int, ...], width: int = 6) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def grids(seed: int, scale: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, old ones near them, and advantages."""
    new, change, advantages = (
        torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + i)) for i in range(3)
    )
    return new, new + scale * change, advantages


def loss_and_gradient(surrogate: Surrogate, *inputs: Tensor, reduction: str = "sequence") -> tuple[float, Tensor]:
    new, old, advantages, mask = inputs
    new = new.clone().requires_grad_()
    losses = surrogate(new, old, advantages, mask).losses
    loss = reduce_tokens(losses, mask, reduction=reduction)  # type: ignore[arg-type]
    return loss.item(), torch.autograd.grad(loss, new)[0]


def test_clip_higher_by_hand() -> None:
    """Good tokens may rise to 1.28, bad ones fall to 0.8; PPO's symmetric limit stops the good ones at 1.2."""
    ratios, advantages = double([1.25, 1.5, 0.75, 0.75, 1.5]), double([1, 2, 1, -1, -2])
    mask, old = torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.float64)
    result = ClipHigher(0.2, 0.28)(ratios.log(), old, advantages, mask)
    torch.testing.assert_close(result.losses, -double([1.25, 1.28 * 2, 0.75, -0.8, -3.0]))
    assert result.statistics["clip_fraction"].tolist() == [[0, 1, 0, 1, 0]]
    symmetric = PPOClip(0.2)(ratios.log(), old, advantages, mask)
    torch.testing.assert_close(symmetric.losses, -double([1.2, 1.2 * 2, 0.75, -0.8, -3.0]))
    assert symmetric.statistics["clip_fraction"].tolist() == [[1, 1, 0, 1, 0]]
    _, gradient = loss_and_gradient(ClipHigher(0.2, 0.28), ratios.log(), old, advantages, mask)
    torch.testing.assert_close(gradient, double([-1.25 / 5, 0, -0.75 / 5, 0, 3.0 / 5]))  # -ratio A / n, 0 where clipped


def test_gspo_by_hand() -> None:
    """Token ratios 4 and 1/4 cancel to 1; 2 and 8 make 4, limited to 1.2; 0.5 alone is limited to 0.8 where it is bad."""
    ratios = double([4, 0.25, 1], [2, 8, 1], [0.5, 1, 1], [0.5, 1, 1])
    mask = left((2, 2, 1, 1), 3)
    advantages = double([1, 1, 0], [2, 2, 0], [-3, 0, 0], [3, 0, 0])
    old = torch.zeros(4, 3, dtype=torch.float64)
    result = GSPO(0.2, 0.2)(ratios.log(), old, advantages, mask)
    expected = -double([1, 1, 0], [2.4, 2.4, 0], [-2.4, 0, 0], [1.5, 0, 0])
    torch.testing.assert_close(result.losses, expected)
    assert result.statistics["clip_fraction"].tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]
    loss, gradient = loss_and_gradient(GSPO(0.2, 0.2), ratios.log(), old, advantages, mask)
    assert loss == pytest.approx(-(1 + 2.4 - 2.4 + 1.5) / 4)
    # s A / (responses x tokens of the response) for each token; nothing where the response is clipped.
    torch.testing.assert_close(gradient, -double([1 / 8, 1 / 8, 0], [0, 0, 0], [0, 0, 0], [0.5 * 3 / 4, 0, 0]))


def test_gspo_is_the_sequence_objective_value_and_gradient() -> None:
    """The paper's eq. 5 written down for whole responses, without stopped gradients, and differentiated by autograd."""
    new, old, advantages = grids(0)
    mask = left(LENGTHS)
    advantages = advantages[:, :1].expand(5, 6)
    low, high = 0.1, 0.15
    loss, gradient = loss_and_gradient(GSPO(low, high), new, old, advantages, mask)
    leaf = new.clone().requires_grad_()
    terms = []
    for i, length in enumerate(LENGTHS):
        if length:
            s = ((leaf[i, :length] - old[i, :length]).sum() / length).exp()
            a = advantages[i, 0]
            terms.append(torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a))
    whole = -torch.stack(terms).mean()
    assert loss == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, leaf)[0])
    clipped = [bool(s != s.clamp(1 - low, 1 + high)) for s in masked_mean(new - old, mask, 1).exp()]
    assert any(clipped) and not all(clipped), "both cases are there"


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: f"{type(s).__name__}{vars(s)}")
def test_at_the_sampling_policy_every_surrogate_is_the_policy_gradient(surrogate: Surrogate) -> None:
    new, _, advantages = grids(1)
    mask = left(LENGTHS)
    _, gradient = loss_and_gradient(surrogate, new, new, advantages, mask)
    lengths = mask.sum(1, keepdim=True)
    torch.testing.assert_close(gradient, -(advantages * mask) / (4 * lengths.clamp(min=1)))
    assert not any(values.any() for values in surrogate(new, new, advantages, mask).statistics.values())


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: f"{type(s).__name__}{vars(s)}")
@pytest.mark.parametrize("junk", [0.0, 1e30, -1e30, math.nan, math.inf])
def test_padding_changes_nothing(surrogate: Surrogate, junk: float) -> None:
    """Each response alone and unpadded has the losses it has beside longer ones, whatever stands in the padding."""
    inputs = grids(2)
    mask = left(LENGTHS)
    wide = [torch.full((7, 9), junk, dtype=torch.float64) for _ in inputs]
    for target, source in zip(wide, inputs, strict=True):
        target[:5, :6] = source.masked_fill(~mask, junk)
    result = surrogate(wide[0], wide[1], wide[2], left((*LENGTHS, 0, 0), 9))
    assert not result.losses[~left((*LENGTHS, 0, 0), 9)].any()
    for i, length in enumerate(LENGTHS):
        alone = surrogate(*(x[i : i + 1, :length] for x in inputs), torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(result.losses[i, :length], alone.losses[0], rtol=1e-12, atol=1e-12)
        for name, values in alone.statistics.items():
            assert torch.equal(result.statistics[name][i, :length], values[0])
    expected = loss_and_gradient(surrogate, *inputs, mask)
    found = loss_and_gradient(surrogate, wide[0], wide[1], wide[2], left((*LENGTHS, 0, 0), 9))
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1][:5, :6], expected[1])


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: f"{type(s).__name__}{vars(s)}")
@pytest.mark.parametrize("cuts", [[5], [1, 4], [2, 1, 2], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_micro_batches_add_up_to_the_whole(surrogate: Surrogate, cuts: list[int], reduction: str) -> None:
    new, old, advantages = grids(3)
    mask = left(LENGTHS)
    total = reduction_count(mask, reduction)  # type: ignore[arg-type]
    whole, expected = loss_and_gradient(surrogate, new, old, advantages, mask, reduction=reduction)
    leaf = new.clone().requires_grad_()
    shares = [
        reduce_tokens(surrogate(*piece).losses, piece[3], reduction=reduction, total=total)  # type: ignore[arg-type]
        for piece in zip(*(x.split(cuts) for x in (leaf, old, advantages, mask)), strict=True)
    ]
    assert torch.stack(shares).sum().item() == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(torch.stack(shares).sum(), leaf)[0], expected)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: f"{type(s).__name__}{vars(s)}")
def test_losses_are_float32_and_finite_for_wild_ratios(surrogate: Surrogate) -> None:
    new = torch.tensor([[0.0, -500.0, 0.0]], dtype=torch.bfloat16).requires_grad_()
    old = torch.tensor([[-500.0, 0.0, -500.0]], dtype=torch.bfloat16)
    result = surrogate(new, old, torch.tensor([[1.0, -1.0, -1.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert result.losses.dtype == torch.float32 and bool(result.losses.isfinite().all())
    assert bool(torch.autograd.grad(result.losses.sum(), new)[0].isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPOClip(0.0), "surrogate.clip is 0.0, it must be above 0"),
        (lambda: PPOClip(dual_clip=1.0), "surrogate.dual_clip is 1.0, it must be above 1"),
        (lambda: ClipHigher(low=-0.1), "surrogate.low"),
        (lambda: ClipHigher(high=math.nan), "surrogate.high"),
        (lambda: GSPO(high=math.inf), "surrogate.high"),
    ],
)
def test_numbers_outside_their_range_are_refused(make, message):  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


# --- in a run


class Importance(Surrogate):
    """A user's own: the plain ratio, without any limit."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        ratio = (log_probs - old_log_probs.detach()).exp()
        return TokenLosses(-self.scale * ratio * advantages, {"largest_ratio": ratio.detach()})


class Wrong(Surrogate):
    """Gives one loss for all."""

    def __call__(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        return TokenLosses(log_probs.sum(), {})


def command(world: Path, stages: Path, out: Path, *extra: str) -> list[str]:
    """Two iterations that learn twice from every rollout."""
    return stage_command(
        "ppo_lag",
        world,
        stages,
        f"--trainer.logger.init_args.save_dir={out}",
        "--model.init_args.start.prompts=8",
        "--model.init_args.start.min_sign_accuracy=0",
        "--model.init_args.sampling.max_new_tokens=8",
        "--model.init_args.update.epochs=2",
        "--model.init_args.update.micro_batch_size=1",
        "--data.init_args.demonstrations=null",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=0",
        *extra,
    )


@pytest.mark.slow
def test_a_users_own_surrogate_needs_nothing_of_ours(world: Path, policy_stages: Path, tmp_path: Path) -> None:
    own = "--model.init_args.surrogate=tests.policy.test_surrogates.Importance"
    runs = {
        "ppo": command(world, policy_stages, tmp_path / "ppo"),
        "own": command(world, policy_stages, tmp_path / "own", own),
        "none": command(world, policy_stages, tmp_path / "none", own, "--model.init_args.surrogate.scale=0.0"),
    }
    done = {name: main(line) for name, line in runs.items()}
    logged = {name: cli.trainer.callback_metrics for name, cli in done.items()}
    assert float(logged["own"]["policy/largest_ratio"]) == pytest.approx(1.0, abs=0.05)  # its mean, near the start
    assert "policy/clip_fraction" not in logged["own"] and "policy/clip_fraction" in logged["ppo"]
    weights = {name: cli.model.backbone.decoder.lm_head.weight for name, cli in done.items()}
    assert not torch.equal(weights["own"], weights["none"])
    assert (
        float(logged["none"]["policy/gradient_norm"]) == 0.0
    )  # the scale reached it: nothing else is in the actor's loss


REFUSED = {
    "mean": (
        ("--model.init_args.surrogate=GSPO",),
        "update.reduction is 'token', but GSPO is defined with another mean",
    ),
    "range": (
        ("--model.init_args.surrogate=PPOClip", "--model.init_args.surrogate.clip=0"),
        "surrogate.clip is 0",
    ),
    "old name": (("--model.init_args.update.clip=0.2",), "clip"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    case: str, world: Path, policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, message = REFUSED[case]
    with pytest.raises(SystemExit):
        main(command(world, policy_stages, tmp_path, *extra))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_surrogate_of_another_shape_is_refused(
    world: Path, policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command(world, policy_stages, tmp_path, "--model.init_args.surrogate=tests.policy.test_surrogates.Wrong"))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        "error: surrogate Wrong: must return TokenLosses with one loss per response token, shape (1, "
    )


@pytest.mark.slow
def test_gspo_trains(world: Path, policy_stages: Path, tmp_path: Path) -> None:
    extra = ("--model.init_args.surrogate=GSPO", "--model.init_args.update.reduction=sequence")
    logged = main(command(world, policy_stages, tmp_path, *extra)).trainer.callback_metrics
    assert math.isfinite(float(logged["policy/gradient_norm"])) and 0 <= float(logged["policy/clip_fraction"]) <= 1


def test_the_default_is_ppos(world: Path) -> None:
    from safe_rlhf_v.policy import ConstrainedPolicyModule

    module = ConstrainedPolicyModule(*3 * [lambda: None])  # type: ignore[arg-type, list-item]
    assert module.make_surrogate is PPOClip and PPOClip().clip == 0.2 and PPOClip().dual_clip is None
    assert UpdateSettings().reduction in PPOClip.reductions
