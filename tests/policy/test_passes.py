"""How often each network runs in one policy iteration: the minimum of the method, and not a pass more.

Of the passes of the released step that are left out here: log-probabilities and values of the "old" networks (recorded while
sampling; the critics' training pass gives them), images for every role (once for all), the LM head of scorers and critics.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from tests.conftest import stage_command

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.models import ClipDecoder, ScalarHead
from safe_rlhf_v.models import sampling as sampling_file
from safe_rlhf_v.policy import SeparateRoles
from safe_rlhf_v.policy.settings import UpdateSettings

ROLES = ("reference", "reward", "cost", "reward_critic", "cost_critic")
PROMPTS, NEW_TOKENS = 4, 8
OPTIONS = (
    f"--data.init_args.batch_size={PROMPTS}",
    "--data.init_args.demonstrations=null",
    "--model.init_args.start.prompts=8",
    "--model.init_args.start.min_sign_accuracy=0",
    f"--model.init_args.sampling.max_new_tokens={NEW_TOKENS}",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=0",
)


def fit(stages, world, out, *extra):
    """One iteration."""
    save = f"--trainer.logger.init_args.save_dir={out}"
    return main(stage_command("ppo_lag", world, stages, save, *OPTIONS, *extra, steps=1))


@pytest.fixture(scope="module")
def trained(policy_stages, world, tmp_path_factory):
    return fit(policy_stages, world, tmp_path_factory.mktemp("passes"))


@pytest.fixture(scope="module")
def batch(trained):
    return next(iter(trained.datamodule.train_dataloader()))


class Passes:
    """Runs one training step and counts, by role, what its networks do.

    Attributes:
        trunks: Calls by (role, kind): ``prefill`` and ``decode`` with a cache, ``train`` with a graph, ``read`` without.
        rows: Token rows of these calls, likewise.
        tokens: Real tokens of these calls, likewise.
        images: Images encoded, by role.
        head: Positions that meet the LM head, by role.
        backwards: Backward passes.
        steps: Optimizer steps.
        rollout: What was sampled.
    """

    def __init__(self, module: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trunks: Counter[tuple[str, str]] = Counter()
        self.rows: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.images: Counter[str] = Counter()
        self.head: Counter[str] = Counter()
        self.backwards = self.steps = 0
        networks = {"actor": module.backbone} | {name: module.roles.get_submodule(name) for name in ROLES}
        self.names = {id(network): name for name, network in networks.items()}
        for network in networks.values():
            network._cache.clear()
        handles = [
            network.lm_head.register_forward_hook(lambda m, a, out, n=name: self.count_head(n, out))
            for name, network in networks.items()
        ]
        handles.append(module.trainer.optimizers[0].register_step_post_hook(self.count_step))
        trunk, encode, backward, rollout = ClipDecoder.trunk, ClipDecoder.encode, module.manual_backward, module.rollout

        def counted_trunk(
            network: Any, ids: Any, mask: Any, positions: Any, features: Any, extras: Any, cache: Any = None
        ):
            self.count_trunk(network, ids, mask, cache)
            return trunk(network, ids, mask, positions, features, extras, cache)

        def counted_encode(network: Any, images: Any):
            self.images[self.names[id(network)]] += len(set(images.ids))  # a group is filled up with one of its own
            return encode(network, images)

        def counted_backward(loss: Any):
            self.backwards += 1
            backward(loss)

        def kept_rollout(batch: Any):
            self.rollout = rollout(batch)
            return self.rollout

        with monkeypatch.context() as patch:
            patch.setattr(ClipDecoder, "trunk", counted_trunk)
            patch.setattr(ClipDecoder, "encode", counted_encode)
            patch.setattr(module, "manual_backward", counted_backward)
            patch.setattr(module, "rollout", kept_rollout)
            patch.setattr(module, "log_dict", lambda *_, **__: None)
            module.training_step(batch, 0)
        for handle in handles:
            handle.remove()

    def count_trunk(self, network: Any, ids: Any, mask: Any, cache: Any) -> None:
        if cache is None:
            kind = "train" if torch.is_grad_enabled() else "read"
        else:
            kind = "decode" if cache.get_seq_length() else "prefill"
        key = (self.names[id(network)], kind)
        self.trunks[key] += 1
        self.rows[key] += len(ids)
        if cache is None:  # a packed mask says who reads whom; padding only reads itself and is read by nobody else
            real = mask if mask.dim() == 2 else mask[:, 0].sum(-1) + mask[:, 0].sum(-2) > 2
            self.tokens[key] += int(real.sum())

    def count_head(self, name: str, out: Any) -> None:
        self.head[name] += out[..., 0].numel()

    def count_step(self, *_: Any) -> None:
        self.steps += 1


@pytest.fixture
def passes(trained, batch, monkeypatch):
    """Counts one iteration under given settings."""

    def run(samples: int = 1, epochs: int = 1, micro: int | None = None) -> Passes:
        module = trained.model.train()
        monkeypatch.setattr(module, "samples", samples)
        monkeypatch.setattr(module, "update_settings", UpdateSettings(epochs=epochs, micro_batch_size=micro))
        return Passes(module, batch, monkeypatch)

    return run


@pytest.mark.parametrize("samples", [1, 2])
def test_one_iteration_makes_every_pass_once(samples, passes, batch):
    found = passes(samples)
    longest = found.rollout.mask.shape[1]
    assert longest > 2
    once = {("actor", "prefill"), ("actor", "train"), ("reference", "read"), ("reward", "read"), ("cost", "read")}
    once |= {("reward_critic", "train"), ("cost_critic", "train")}  # their training pass gives the values, too
    assert found.trunks == dict.fromkeys(once, 1) | {("actor", "decode"): longest - 1}
    assert found.backwards == 3  # both critics and the actor, one after the other
    assert found.steps == 1


def test_micro_batches_repeat_no_pass(passes):
    found = passes(micro=1)
    trained, read = ("actor", "reward_critic", "cost_critic"), ("reference", "reward", "cost")
    kinds = {(name, "train") for name in trained} | {(name, "read") for name in read}
    assert {key: calls for key, calls in found.trunks.items() if key[1] in ("train", "read")} == dict.fromkeys(
        kinds, PROMPTS
    )
    assert found.backwards == 3 * PROMPTS
    assert found.steps == 1


@pytest.mark.parametrize("samples", [1, 2])
def test_a_prompt_runs_once_for_all_its_responses(samples, passes, trained, batch):
    found = passes(samples)
    said = int(found.rollout.mask.sum())
    asked = sum(map(len, trained.model.backbone.prepare_prompts(batch.prompts)[0].ids))
    for key, rows in found.rows.items():
        if key[1] == "decode":  # every token but a row's last is read again, and finished rows are dropped
            assert rows == said - PROMPTS * samples
        else:
            assert rows == PROMPTS, key
        if key[1] in ("train", "read"):
            assert found.tokens[key] == asked + said, key


@pytest.mark.parametrize(("samples", "epochs"), [(1, 1), (2, 1), (1, 2)])
def test_every_picture_is_encoded_once_for_all_roles(samples, epochs, passes, batch):
    different = {name for row in batch.prompts.image_ids for name in row}
    assert len(different) > 1
    assert passes(samples, epochs).images == {"actor": len(different)}


@pytest.mark.parametrize("samples", [1, 2])
def test_only_those_who_need_words_meet_the_lm_head(samples, passes, trained):
    """At response positions only; each sampled token is one position, and so is each scored token."""
    found = passes(samples)
    said = int(found.rollout.mask.sum())
    assert trained.model.roles.reward_head.needs_log_probs and trained.model.roles.cost_head.needs_log_probs
    assert found.head == {"actor": 2 * said, "reference": said, "reward": said, "cost": said}


def test_a_plain_head_spares_the_scorers_the_lm_head(passes, trained, monkeypatch):
    roles = trained.model.roles
    for name in ("reward", "cost"):
        monkeypatch.setitem(roles._modules, f"{name}_head", ScalarHead(roles.get_submodule(name)))
    found = passes()
    said = int(found.rollout.mask.sum())
    assert found.head == {"actor": 2 * said, "reference": said}


def test_a_second_epoch_adds_training_passes_and_the_values_it_compares_with(passes):
    found = passes(epochs=2)
    said, longest = int(found.rollout.mask.sum()), found.rollout.mask.shape[1]
    assert found.trunks == {
        ("actor", "prefill"): 1,
        ("actor", "decode"): longest - 1,
        ("actor", "train"): 2,
        ("reference", "read"): 1,
        ("reward", "read"): 1,
        ("cost", "read"): 1,
        ("reward_critic", "read"): 1,
        ("reward_critic", "train"): 2,
        ("cost_critic", "read"): 1,
        ("cost_critic", "train"): 2,
    }
    assert found.head["actor"] == 3 * said
    assert found.backwards == 6
    assert found.steps == 2


def test_the_first_iteration_starts_at_the_reference(trained):
    """Before the first update actor and reference are one, and in a rollout's only update the ratio is 1."""
    logged = trained.trainer.callback_metrics
    assert abs(float(logged["policy/kl"])) < 1e-4
    assert float(logged["policy/clip_fraction"]) == 0.0


def another_start(monkeypatch):
    build = SeparateRoles.build

    def disturbed(self, actor, critics):
        build(self, actor, critics)
        with torch.no_grad():
            actor.lm_head.weight.add_(torch.randn_like(actor.lm_head.weight))

    monkeypatch.setattr(SeparateRoles, "build", disturbed)


def a_silent_tensor(monkeypatch):
    monkeypatch.setattr(ClipDecoder, "freeze_unused_lm_head", lambda self: self.lm_head.requires_grad_(True))


def a_placeholder(monkeypatch):
    def wrong(logits, uniforms, options, banned):
        return torch.full((len(logits),), int(banned.min())), torch.tensor(True)

    monkeypatch.setattr(sampling_file, "_choose", wrong)


FAULTS = {
    another_start: "KL(actor || reference) is",
    a_silent_tensor: "no gradient reaches roles.reward_critic",
    a_placeholder: "a placeholder token was sampled",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_start_is_noticed_before_anything_is_learned(
    fault, policy_stages, world, tmp_path, monkeypatch, capsys
):
    fault(monkeypatch)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises((SystemExit, RuntimeError)) as error:
        fit(policy_stages, world, tmp_path)
    assert FAULTS[fault] in f"{error.value} {capsys.readouterr().err}"
