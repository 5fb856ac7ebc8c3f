"""The constrained policy module on a tiny world: what counts, what moves, what stays, and what is refused."""

import copy
import math

import pytest
import torch
from tests.conftest import stage_command
from tests.policy.short_runs import fit, gradients, prepared

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.dual import LogSpaceDual, RectifiedDual
from safe_rlhf_v.functional.policy import kl_estimate
from safe_rlhf_v.policy.advantages import GAE, GroupRelative
from safe_rlhf_v.policy.report import iteration_curves
from safe_rlhf_v.policy.rollout import Values, generator
from safe_rlhf_v.policy.settings import ScoreSettings, UpdateSettings
from safe_rlhf_v.training.runs import load_backbone, load_run


@pytest.fixture(scope="module")
def trained(policy_stages, world, tmp_path_factory):
    """A policy after two iterations."""
    return fit(policy_stages, world, tmp_path_factory.mktemp("ppo"))


@pytest.fixture
def module(trained):
    """A copy of the trained module that may be changed."""
    kept = {name: value.clone() for name, value in trained.model.state_dict().items()}
    trained.model.score_settings = ScoreSettings()
    yield trained.model
    trained.model.load_state_dict(kept)


@pytest.fixture(scope="module")
def batch(trained):
    return next(iter(trained.datamodule.train_dataloader()))


def test_one_rollout_is_one_step_and_everything_is_logged(trained):
    assert trained.trainer.global_step == 2
    logged = trained.trainer.callback_metrics
    for name in (
        "constraint/cost", "constraint/budget", "constraint/lambda", "constraint/lambda_step", "constraint/gap",
        "constraint/violating", "policy/kl", "policy/entropy", "policy/clip_fraction", "policy/ptx_loss",
        "critic/reward_explained_variance", "critic/cost_explained_variance", "rollout/length", "rollout/refusals",
        "rollout/tokens_per_second", "validation/helpfulness", "validation/harmful", "validation/cost",
    ):  # fmt: skip
        assert math.isfinite(float(logged[name])), name
    assert float(logged["constraint/budget"]) == -0.5
    gap = float(logged["constraint/windowed_cost"]) + 0.5
    assert float(logged["constraint/gap"]) == pytest.approx(gap, abs=1e-5)


def test_several_updates_of_one_rollout_still_count_as_one_step(policy_stages, world, tmp_path):
    extra = ("--model.init_args.update.epochs=2", "--model.init_args.update.minibatch_size=2")
    cli = fit(policy_stages, world, tmp_path, *extra)
    assert cli.trainer.global_step == 2
    adam = cli.trainer.optimizers[0].state_dict()["state"]
    assert {int(state["step"]) for state in adam.values()} == {2 * 2 * 2}  # rollouts x epochs x minibatches
    assert cli.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_the_reference_is_the_start_and_nothing_frozen_moves(trained, policy_stages):
    roles = trained.model.roles
    start = load_run(policy_stages / "supervised").backbone.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in roles.reference.state_dict().items())
    for name in ("reward", "cost"):
        model = load_run(policy_stages / name)
        assert all(
            torch.equal(v, model.backbone.state_dict()[n]) for n, v in roles.get_submodule(name).state_dict().items()
        )
        head = roles.get_submodule(f"{name}_head")
        assert all(torch.equal(v, model.head.state_dict()[n]) for n, v in head.state_dict().items())
        critic = roles.get_submodule(f"{name}_critic").state_dict()
        assert any(not torch.equal(v, model.backbone.state_dict()[n]) for n, v in critic.items())
    actor = trained.model.backbone.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in actor.items())
    assert not any(parameter.requires_grad for parameter in roles.reference.parameters())


def test_the_checkpoint_holds_what_moves_and_gives_the_policy_to_later_stages(trained, policy_stages):
    from safe_rlhf_v.training.checkpoints import find_checkpoint

    file = find_checkpoint(trained.trainer.log_dir)
    stored = set(torch.load(file, weights_only=True)["state_dict"])
    assert any(name.startswith("roles.cost_critic.") for name in stored)
    assert {"dual.lam", "dual.window_costs", "scale.spread", "scale.mean"} <= stored
    frozen = ("roles.reference.", "roles.reward.", "roles.reward_head.", "roles.cost.", "roles.cost_head.")
    assert not any(name.startswith(frozen) for name in stored)
    policy = load_backbone(file).state_dict()
    assert all(torch.equal(value, policy[name]) for name, value in trained.model.backbone.state_dict().items())


def test_the_learned_scores_are_those_of_the_runs(module, batch, policy_stages):
    rollout, scores, *_ = prepared(module, batch)
    texts = [(text,) for text in rollout.generation.text]
    finished = rollout.generation.finished
    for name, raw in (("reward", scores.raw_reward), ("cost", scores.raw_cost)):
        model = load_run(policy_stages / name)
        with torch.no_grad():
            alone = model.score(batch.prompts, texts)[:, 0]
        # Text is read again without what cannot be written, so only complete responses are the same tokens.
        torch.testing.assert_close(raw[finished], alone[finished], rtol=1e-4, atol=1e-4)
    unit = (scores.raw_reward - module.scale.mean[0]) / module.scale.spread[0]
    torch.testing.assert_close(scores.reward, unit)
    torch.testing.assert_close(scores.cost, scores.raw_cost / module.scale.spread[1])


def test_recorded_log_probs_and_features_are_those_of_a_full_pass(module, batch):
    assert module.roles.same_features
    rollout, *_ = prepared(module, batch, samples=2)
    (micro_batch,) = rollout.micro_batches
    with torch.no_grad():
        again = module.roles.log_probs("actor", micro_batch)
    torch.testing.assert_close(again, rollout.generation.log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("samples", [1, 2])
def test_micro_batches_add_up_to_the_whole(module, batch, reduction, samples):
    whole, cut = (UpdateSettings(micro_batch_size=m, reduction=reduction, max_grad_norm=None) for m in (None, 1))
    one = prepared(module, batch, samples, whole)
    many = prepared(module, batch, samples, cut)
    assert len(one[0].micro_batches) == 1 and len(many[0].micro_batches) == 4
    (a,), seen = gradients(module, *one, batch, whole)
    (b,), seen_in_parts = gradients(module, *many, batch, cut)
    for name, entries in seen.losses.items():
        torch.testing.assert_close(entries, seen_in_parts.losses[name], rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(seen.values, seen_in_parts.values, rtol=1e-4, atol=1e-5)
    assert a.keys() == b.keys() and any(name.startswith("roles.reward_critic") for name in a)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-5, msg=name)


def test_padding_rows_do_not_count(module, batch):
    """Rows marked as padding change no statistic, advantage or gradient, whatever stands in them."""
    settings = UpdateSettings(max_grad_norm=None, ptx_weight=0.0)
    rollout, scores, _, lam = prepared(module, batch)
    keep = torch.tensor([True, False, True, True])
    masked = rollout._replace(
        mask=rollout.mask & keep[:, None], valid=keep, constraint_mask=rollout.constraint_mask & keep[:, None]
    )
    found = []
    for junk in (0.0, 1e6):
        spoiled = scores._replace(
            reward=scores.reward.masked_fill(~keep, junk), cost=scores.cost.masked_fill(~keep, junk)
        )
        signals = module.shape(masked, spoiled)
        values = Values(signals.reward * 0.1, signals.cost * 0.1)
        advantages = module.advantages(signals, values, lam, module.total)
        found.append((advantages, *gradients(module, masked, spoiled, signals, lam, batch, settings)[0]))
    (first, a), (second, b) = found
    assert torch.equal(first, second) and not first[1].any()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_cost_critic_learns_from_constrained_responses_only(module, batch):
    settings = UpdateSettings(max_grad_norm=None, ptx_weight=0.0)
    rollout, scores, _, lam = prepared(module, batch)
    keep = torch.tensor([True, False, True, True])
    signals = module.shape(some := rollout._replace(constraint_mask=keep[:, None]), scores)
    moved = signals._replace(cost=signals.cost + 5.0 * (~keep)[:, None])
    every = moved._replace(constrained=None)
    cases = [gradients(module, some, scores, s, lam, batch, settings)[0][0] for s in (signals, moved, every)]
    first, other, all_rows = ([one[name] for name in one if "cost_critic" in name] for one in cases)
    assert first and all(map(torch.equal, first, other)) and not all(map(torch.equal, first, all_rows))


def test_lambda_moves_by_this_rollouts_costs_before_the_update(module, batch, monkeypatch):
    order = []
    for name in ("rollout", "score", "dual_step", "shape", "update", "report"):
        method = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, method=method: (order.append(name), method(*a))[1])
    monkeypatch.setattr(module, "log_dict", lambda values, **_: None)
    before = copy.deepcopy(module.dual)
    seen = []
    monkeypatch.setattr(
        module.advantages.__class__, "__call__", lambda self, signals, values, lam, total: seen.append(lam) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        module.training_step(batch, 0)
    assert order == ["rollout", "score", "dual_step", "shape", "update"]
    draws = generator(module.seed, module.global_step, module.global_rank)
    scores = module.score(module.sample(batch, draws))  # the same stream gives the same responses again
    after = before.update(scores.cost[:, None], batch.valid)  # neither clipped nor penalised
    assert torch.equal(after, module.dual.lam) and not torch.equal(after, before.lam.new_tensor([1.0]))
    assert torch.equal(seen[0], after.expand(4, 1))


def test_each_constraint_binds_its_own_prompts(module, batch):
    data = module.trainer.datamodule
    names = data.taxonomy.categories
    rows = torch.zeros(4, len(names), dtype=torch.int64)
    rows[0, 1] = rows[1, 2] = 1
    rows[1, 3] = 1  # of both: the first constraint binds it
    rows[3] = -1  # unknown: bound by none
    module.constraints = {"first": [names[1], names[2]], "second": [names[3]]}
    try:
        constraint_mask = module.constraint_mask(batch._replace(category=rows, valid=torch.ones(4, dtype=torch.bool)))
        assert constraint_mask.tolist() == [[True, False], [True, False], [False, False], [False, False]]
        rows[2, 3] = 1
        assert module.constraint_mask(batch._replace(category=rows))[2].tolist() == [False, True]
    finally:
        module.constraints = None


def test_shaped_signals_hold_the_kl_once_whatever_lambda(module, batch):
    """(A_r - lam A_c) / (1 + lam) with values 0, gamma = lam_gae = 1: the KL term is beta / 2 times the KL to go."""
    rollout, scores, signals, _ = prepared(module, batch)
    module.advantages.centre = module.advantages.whiten = False
    module.advantages.lam = 1.0
    zero = Values(torch.zeros_like(signals.reward), torch.zeros_like(signals.cost))
    flat = scores._replace(reward=torch.zeros(4), cost=torch.zeros(4))
    rollout = all_finished(rollout)
    kl = kl_estimate(rollout.generation.log_probs, scores.reference, rollout.mask)
    to_go = kl.flip(1).cumsum(1).flip(1) * rollout.mask
    try:
        for lam in (0.0, 1.0, 7.0):
            shaped = module.shape(rollout, flat)
            advantages = module.advantages(shaped, zero, torch.full((4, 1), lam), module.total)
            torch.testing.assert_close(advantages, -0.025 * to_go, rtol=1e-4, atol=1e-6)
    finally:
        module.advantages.centre = module.advantages.whiten = True
        module.advantages.lam = 0.95


def all_finished(rollout, finished=(True,) * 4):
    return rollout._replace(generation=rollout.generation._replace(finished=torch.tensor(finished)))


def combined(module, signals, lam):
    """(N, R) (A_r - lam A_c) / (1 + lam) of the last token's signal, with critics at 0."""
    zero = Values(torch.zeros_like(signals.reward), torch.zeros_like(signals.cost))
    plain = GAE(gamma=1.0, lam=1.0, centre=False, whiten=False)
    return plain(signals, zero, torch.full((len(signals.valid), 1), float(lam)), module.total)


@pytest.mark.parametrize("lam", [0, 1, 10, 1000])
def test_an_unfinished_answer_pays_the_same_for_every_multiplier(module, batch, lam):
    """By hand: (-p/2 - lam p/2) / (1 + lam) = -p/2 = -1 at every token (gamma 1)."""
    rollout, scores, *_ = prepared(module, batch)
    assert module.score_settings.unfinished_penalty == 2.0
    cut = module.shape(all_finished(rollout, (False, True, False, True)), scores)
    whole = module.shape(all_finished(rollout), scores)
    difference = combined(module, cut, lam) - combined(module, whole, lam)
    expected = torch.tensor([-1.0, 0.0, -1.0, 0.0])[:, None] * rollout.mask
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-4)
    groups = GroupRelative(whiten=False)
    apart = [groups(s._replace(samples=2), None, torch.full((4, 1), float(lam)), module.total) for s in (cut, whole)]
    expected = torch.tensor([-0.5, 0.5, -0.5, 0.5])[:, None] * rollout.mask  # -1 and 0, less their mean
    torch.testing.assert_close(apart[0] - apart[1], expected, rtol=1e-4, atol=1e-4)


def test_the_multiplier_does_not_see_the_penalty(module, batch):
    rollout, scores, *_ = prepared(module, batch)
    seen = []
    for finished in ((True,) * 4, (False,) * 4):
        dual = copy.deepcopy(module.dual)
        module.dual, kept = dual, module.dual
        seen.append(module.dual_step(all_finished(rollout, finished), scores))
        module.dual = kept
    assert torch.equal(*seen)


@pytest.mark.parametrize("where", [-300.0, -6.8, 0.0, 7.0, 1e4])
def test_costs_have_a_signal_wherever_they_lie_and_the_multiplier_sees_them_unclipped(module, batch, where):
    """Cut off at +-5 about 0, costs about -6.8 were -5 for ever: no signal, and a multiplier that climbs to its cap."""
    rollout, scores, *_ = prepared(module, batch)
    rollout = all_finished(rollout)
    deviation = torch.tensor([-1.0, 0.5, 1.0, -0.5])
    moved = scores._replace(cost=where + deviation, reward=where - deviation)
    signals = module.shape(rollout, moved)
    assert torch.equal(signals.cost_score, moved.cost) and torch.equal(signals.reward_score, moved.reward)
    relative = GroupRelative(whiten=False)(
        signals._replace(samples=4), None, torch.full((4, 1), 1e6), module.total
    )  # pure cost
    torch.testing.assert_close(relative[:, 0], -deviation, rtol=1e-3, atol=2e-3)
    dual = LogSpaceDual(budget=where - 0.5, window=4)
    module.dual, kept = dual, module.dual
    try:
        module.dual_step(rollout, moved)
    finally:
        module.dual = kept
    assert dual.mean_cost.item() == pytest.approx(where, abs=1e-3)
    assert dual.lam.item() == pytest.approx(math.exp(0.1 * 0.5), rel=1e-3)


def test_outliers_are_limited_about_the_median_of_their_constraint(module, batch):
    rollout, scores, *_ = prepared(module, batch)
    rollout = all_finished(rollout)
    wild = scores._replace(reward=torch.tensor([50.0, 1.0, 2.0, 3.0]), cost=torch.tensor([-9.0, 1.0, 2.0, -30.0]))
    limited = module.shape(rollout, wild)
    assert limited.reward_score.tolist() == [7.5, 1.0, 2.0, 3.0]  # median 2.5
    assert limited.cost_score.tolist() == [-9.0, 1.0, 1.0, -9.0]  # median -4
    # Two constraints: -9 and -30 (median -19.5) belong to one, 1 to the other, 2 to none.
    constraint_mask = torch.tensor([[True, False], [False, True], [False, False], [True, False]])
    module.dual, kept = LogSpaceDual(budget=[-20.0, 0.0]), module.dual
    try:
        apart = module.shape(rollout._replace(constraint_mask=constraint_mask), wild)
    finally:
        module.dual = kept
    assert apart.cost_score.tolist() == [-14.5, 1.0, 0.0, -24.5]
    module.dual, kept = RectifiedDual(budget=0.0), module.dual
    try:
        charged = module.shape(rollout, wild)
    finally:
        module.dual = kept
    assert charged.cost_score.tolist() == [0.0, 1.0, 2.0, 0.0]  # what is charged is limited, not the cost


def test_without_a_limit_scores_are_trained_on_as_they_are(module, batch, monkeypatch):
    rollout, scores, *_ = prepared(module, batch)
    monkeypatch.setattr(module, "score_settings", ScoreSettings(clip=None))
    wild = scores._replace(reward=torch.tensor([1e6, 0.0, 0.0, 0.0]), cost=torch.tensor([-1e6, 0.0, 0.0, 0.0]))
    signals = module.shape(all_finished(rollout), wild)
    assert torch.equal(signals.reward_score, wild.reward) and torch.equal(signals.cost_score, wild.cost)


def test_the_critic_free_sibling_trains_without_critics(policy_stages, world, tmp_path):
    cli = fit(policy_stages, world, tmp_path, "--data.init_args.batch_size=2", stage="grpo_lag")
    assert cli.trainer.global_step == 2
    names = {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert names and all(name.startswith("backbone.") for name in names)
    assert not any("critic" in name for name, _ in cli.model.named_parameters())
    assert not any(name.startswith("critic/") for name in cli.trainer.callback_metrics)


def test_a_resume_with_another_cost_model_is_refused(trained, policy_stages, world, tmp_path, capsys):
    main(
        stage_command(
            "cost", world, policy_stages, f"--trainer.logger.init_args.save_dir={tmp_path}", "--seed_everything=5"
        )
    )
    resume = (f"--ckpt_path={trained.trainer.log_dir}", f"--model.init_args.roles.init_args.cost={tmp_path / 'cost'}")
    with pytest.raises(SystemExit):
        fit(policy_stages, world, tmp_path, *resume, steps=3)
    assert "another cost model" in capsys.readouterr().err
    cli = fit(policy_stages, world, tmp_path, resume[0], steps=3)
    assert cli.trainer.global_step == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_trains_in_half_precision_with_its_state_in_float32(precision, policy_stages, world, tmp_path):
    cli = fit(policy_stages, world, tmp_path, f"--trainer.precision={precision}", steps=1)
    state = cli.model.state_dict()
    exact = (
        "dual.lam",
        "dual.window_costs",
        "scale.spread",
        "roles.cost_value.linear.weight",
        "roles.cost_head.end.weight",
    )
    assert {state[name].dtype for name in exact} == {torch.float32}
    trunk = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert state["backbone.decoder.lm_head.weight"].dtype == trunk
    assert math.isfinite(float(cli.trainer.callback_metrics["policy/gradient_norm"]))


def test_an_engine_that_agrees_and_weights_that_are_off_change_nothing_to_the_bit(module, batch):
    settings = UpdateSettings(max_grad_norm=None)
    off = UpdateSettings(max_grad_norm=None, importance_cap=None)
    rollout, *rest = prepared(module, batch)
    own = rollout.generation.log_probs

    def sampled_by(engine):
        return rollout._replace(generation=rollout.generation._replace(engine_log_probs=engine))

    (expected,), learned = gradients(module, rollout, *rest, batch, settings)
    assert "truncated_weights" not in learned.losses
    for engine, how in ((own, settings), (own - 1.0, off)):
        (same,), _ = gradients(module, sampled_by(engine), *rest, batch, how)
        assert all(torch.equal(same[name], value) for name, value in expected.items())
    (other,), _ = gradients(module, sampled_by(own - 1.0), *rest, batch, settings)
    moved = {name for name, value in expected.items() if not torch.equal(other[name], value)}
    assert moved and all(name.startswith("backbone.") for name in moved)  # critics learn as before


def test_importance_weights_multiply_the_loss_of_each_token_and_are_logged(module, batch):
    settings = UpdateSettings(max_grad_norm=None, ptx_weight=0.0, importance_cap=1.5)
    rollout, scores, signals, lam = prepared(module, batch)
    generation = rollout.generation
    difference = torch.linspace(-1.0, 1.0, generation.log_probs.numel()).view_as(generation.log_probs)
    engine = generation.log_probs - difference
    rollout = rollout._replace(generation=generation._replace(engine_log_probs=engine))
    _, learned = gradients(module, rollout, scores, signals, lam, batch, settings)
    advantages = module.advantages(signals, learned.values, lam, module.total)
    weights = difference.exp().clamp(max=1.5)
    mask = rollout.mask
    # In the only update of a rollout the ratio is 1: the loss of a token is minus its advantage.
    assert float(learned.losses["policy"][0]) == pytest.approx(float(-(weights * advantages)[mask].mean()), abs=1e-5)
    truncated = (difference > math.log(1.5))[mask].float().mean()
    assert 0 < truncated < 1
    assert float(learned.losses["truncated_weights"][0]) == pytest.approx(float(truncated), abs=1e-6)
    curves = iteration_curves(rollout, scores, learned, module.total, 1, None)
    assert curves["policy/truncated_weights"] == pytest.approx(float(truncated), abs=1e-6)
    assert curves["rollout/engine_difference"] == pytest.approx(float(difference.abs()[mask].mean()), abs=1e-5)
    k3 = (difference.exp() - 1 - difference)[mask].mean()
    assert curves["rollout/engine_kl"] == pytest.approx(float(k3), abs=1e-5)
