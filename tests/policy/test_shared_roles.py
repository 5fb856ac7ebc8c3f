"""Six roles on one base: each is who it should be, none disturbs another, and nothing is stored twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from tests.shared_runs import LORA, build, forge, make, named, policy, shared, train, vlm
from torch import Tensor

from safe_rlhf_v.data_modules import PromptDataModule
from safe_rlhf_v.models import HFVLM, Backbone
from safe_rlhf_v.models.adapters import active_adapter, adapter_of
from safe_rlhf_v.policy import ConstrainedPolicyModule, SharedRoles
from safe_rlhf_v.policy.rollout import MicroBatch
from safe_rlhf_v.policy.settings import StartSettings, UpdateSettings
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.training.checkpoints import CheckpointError, read_stage
from safe_rlhf_v.training.runs import load_backbone, load_run

RESPONSES = [("Yes, you can.", "Do not touch it."), ("No.", "Ask an adult to help you with it."), ("Fine", "Sure.")]


def prompts() -> Prompts:
    pictures = torch.randint(0, 255, (2, 28, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    questions = ("Is it safe?", "What is it?", "Who?")
    return Prompts(((pictures[0],), (pictures[1],), ()), (("a",), ("b",), ()), questions)


def make_micro_batch(actor: Backbone) -> MicroBatch:
    prepared = actor.prepare(prompts(), RESPONSES, packed=True)
    rows = torch.arange(len(prepared.tokens.response_row))
    return MicroBatch(prepared.tokens, prepared.images, actor.encode_images(prepared.images), rows)


def outputs(module: ConstrainedPolicyModule, micro_batch: MicroBatch) -> dict[str, Tensor]:
    """What every role says."""
    roles = module.roles
    scores = {name: roles.score(name, micro_batch) for name in ("reward", "cost")}
    found = {role: roles.log_probs(role, micro_batch) for role in ("actor", "reference")}
    values = {f"{name}_critic": roles.value(name, micro_batch) for name in ("reward", "cost")}
    return {**found, **scores, **values}


def test_the_reference_is_the_untouched_base_bit_for_bit(home: Path) -> None:
    module = build(home, spread=0.1)
    base = HFVLM(str(home / "base")).train()  # no adapter anywhere
    micro_batch = make_micro_batch(base)
    expected = base.read(micro_batch.tokens, micro_batch.features, log_probs=True).log_probs
    found = outputs(module, micro_batch)
    assert torch.equal(found["reference"], expected)
    assert (found["actor"] - expected).abs().max() > 1e-3
    assert active_adapter(module.backbone) == "default"
    with module.roles.network("actor") as actor:
        acting = actor.read(micro_batch.tokens, micro_batch.features, log_probs=True).log_probs
    assert torch.equal(acting, found["actor"])


@torch.no_grad()
def test_scores_are_those_of_the_runs_and_the_actor_starts_as_its_reference(home: Path) -> None:
    module = build(home)
    found = outputs(module, make_micro_batch(module.backbone))
    for name in ("reward", "cost"):
        expected = load_run(home / name, base=str(home / "base")).score(prompts(), RESPONSES)
        torch.testing.assert_close(found[name].view(3, 2), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["reward"], found["cost"], atol=1e-3)
    assert torch.equal(found["actor"], found["reference"])
    assert all(adapter_of(name) is None or adapter_of(name) == "default" for name in module.backbone.state_dict())


@torch.no_grad()
def test_critics_start_as_the_scorers_read_before_each_token(home: Path) -> None:
    module = build(home)
    micro_batch = make_micro_batch(module.backbone)
    assert not outputs(module, micro_batch)["reward_critic"].any()
    mean, scale = torch.tensor([0.5, -0.25]), torch.tensor([2.0, 4.0])
    module.roles.start_critics(mean, scale)
    found = outputs(module, micro_batch)
    for i, name in enumerate(("reward", "cost")):
        run: Any = load_run(home / name, base=str(home / "base"))
        states = run.backbone.response_states(run.backbone.prepare(prompts(), RESPONSES, packed=True))
        weight = run.head.linear.weight[0]
        for n in range(6):
            length = int(states.mask[n].sum())
            before = [states.prompt[n], *states.hidden[n, : length - 1]]
            expected = torch.stack([(weight @ state - mean[i]) / scale[i] for state in before])
            torch.testing.assert_close(found[f"{name}_critic"][n, :length], expected, rtol=1e-5, atol=1e-5)
            assert not found[f"{name}_critic"][n, length:].any()


def test_roles_change_nothing_about_what_is_trained(home: Path) -> None:
    module = build(home)
    adapters = {adapter_of(name) for name, value in module.backbone.named_parameters() if value.requires_grad}
    assert adapters == {"default", "reward_critic", "cost_critic"}
    before = {name: value.requires_grad for name, value in module.named_parameters()}
    outputs(module, make_micro_batch(module.backbone))
    assert {name: value.requires_grad for name, value in module.named_parameters()} == before
    trained = module.roles.trained()
    assert set(trained) == {"actor", "reward_critic", "cost_critic"}
    every = [id(value) for values in trained.values() for value in values]
    assert len(set(every)) == len(every)
    assert set(every) == {id(value) for value in module.parameters() if value.requires_grad}
    names = {name for name, value in module.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in names} == {
        "backbone",
        "roles",
    }  # so lr_scale {roles: ...} is for the critics
    assert all(adapter_of(name) == "default" for name in names if name.startswith("backbone."))
    without = HFVLM(str(home / "base"), lora=LORA)
    SharedRoles(str(home / "reward"), str(home / "cost")).build(without, critics=False)
    assert {adapter_of(n) for n, value in without.named_parameters() if value.requires_grad} == {"default"}


def gradients(module: ConstrainedPolicyModule, micro_batch: MicroBatch, *names: str) -> dict[str, Tensor]:
    """Of one joint backward pass of these roles' outputs."""
    module.zero_grad()
    found = outputs(module, micro_batch)
    torch.stack([(found[name].square()).sum() for name in names]).sum().backward()
    named = module.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None and p.grad.any()}


TRAINED = ("actor", "reward_critic", "cost_critic")


def test_learning_stays_within_a_role(home: Path) -> None:
    module = build(home, spread=0.1)
    micro_batch = make_micro_batch(module.backbone)
    trained = {role: {id(v) for v in values} for role, values in module.roles.trained().items()}
    before = outputs(module, micro_batch)
    for role in TRAINED:
        moved = {id(module.get_parameter(name)) for name in gradients(module, micro_batch, role)}
        assert moved == trained[role]
        with torch.no_grad():
            for value in module.roles.trained()[role]:
                value += 0.1
        after = outputs(module, micro_batch)
        assert {name for name in before if not torch.equal(before[name], after[name])} == {role}
        before = after


def test_joint_gradients_are_those_of_each_role_alone_with_and_without_checkpointing(home: Path) -> None:
    module = build(home, spread=0.1)
    micro_batch = make_micro_batch(module.backbone)
    alone = {k: v for role in TRAINED for k, v in gradients(module, micro_batch, role).items()}
    assert len(alone) == sum(value.requires_grad for value in module.parameters())
    recomputing = build(home, spread=0.1, checkpointing=True)
    for other in (module, recomputing):
        joint = gradients(other, micro_batch, *TRAINED)
        assert joint.keys() == alone.keys()
        for name, value in joint.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)


def test_pictures_are_encoded_once_for_all_roles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build(home)
    micro_batch = make_micro_batch(module.backbone)
    assert not module.roles.same_features
    module.roles.compare_towers(micro_batch)
    assert module.roles.same_features
    before = outputs(module, micro_batch)
    monkeypatch.setattr(module.backbone, "encode", lambda images: pytest.fail("encoded again"))
    assert all(torch.equal(before[name], value) for name, value in outputs(module, micro_batch).items())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_trained_policy_comes_back_whole_and_alone(home: Path, world: Path, tmp_path: Path) -> None:
    options = policy(shared(home), lr_scale={"roles": 2.0})
    done: Any = train("ConstrainedPolicyModule", world, tmp_path, vlm(home / "base"), **options)
    module = done.model
    micro_batch = make_micro_batch(module.backbone)
    stored = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    assert trained <= set(stored["state_dict"])
    assert not frozen & set(stored["state_dict"])
    assert [group["lr"] for group in done.trainer.optimizers[0].param_groups] == [6e-3, 3e-3]

    base = str(home / "base")
    alone = load_backbone(tmp_path, base=base)
    assert {adapter_of(name) for name in alone.state_dict()} == {None, "default"}
    with torch.no_grad():
        found = outputs(module, micro_batch)
        assert torch.equal(
            alone.read(micro_batch.tokens, micro_batch.features, log_probs=True).log_probs, found["actor"]
        )
        assert (found["actor"] - found["reference"]).abs().max() > 1e-4
        again: Any = load_run(tmp_path, base=base, named=named(home))
        assert same(again.state_dict(), module.state_dict())
        assert same(outputs(again, micro_batch), found)
    with pytest.raises(CheckpointError, match="is a cost model"):
        build(home, reward=str(home / "cost"))

    def moved(content: dict[str, Any]) -> None:
        for name in content["state_dict"]:
            content["state_dict"][name] += name.startswith("head.")

    other = forge(home / "reward", tmp_path / "other" / "x.ckpt", moved)
    with pytest.raises(CheckpointError, match="another reward model"):
        build(home, reward=other).on_load_checkpoint(read_stage(str(next(tmp_path.glob("*.ckpt")))))


def test_a_resumed_run_equals_the_uninterrupted_one_in_several_parts(llava: Path, world: Path, tmp_path: Path) -> None:
    def go(name: str, steps: int, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
        options = policy(shared(llava), update={"micro_batch_size": 1}, **changes)
        train("ConstrainedPolicyModule", world, tmp_path / name, vlm(llava / "base"), steps, resume, **options)
        found: dict[str, Any] = torch.load(next((tmp_path / name).glob("*.ckpt")), weights_only=True)
        return found

    first, whole = go("first", 1), go("whole", 2)
    assert same(go("resumed", 2, tmp_path / "first")["state_dict"], whole["state_dict"])
    assert not same(first["state_dict"], whole["state_dict"])


class Write(Callback):
    """Every rank writes what it has after two steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            seen = {"seen": module.dual.window_valid.sum(), "weights": module.state_dict()}
            torch.save(seen, self.folder / f"{module.global_rank}.pt")


def test_two_ranks_stay_equal(llava: Path, world: Path, tmp_path: Path) -> None:
    update = UpdateSettings(micro_batch_size=1)
    module = make(llava, {}, checkpointing=True, start=StartSettings(prompts=4), update=update)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", start_method="fork"),
        use_distributed_sampler=False,
        max_steps=2,
        limit_val_batches=0,
        callbacks=[Write(tmp_path)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PromptDataModule(str(world), batch_size=2, demonstrations="supervised"))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert int(first["seen"]) == 8  # two prompts on each of two ranks, twice
    assert same(first["weights"], second["weights"])
    start = build(llava).state_dict()
    for name_part in ("lora_B.default", "adapters.reward_critic", "adapters.cost_critic", "reward_value", "cost_value"):
        moved = [name for name in start if name_part in name and not torch.equal(start[name], first["weights"][name])]
        assert moved, name_part


def test_a_trained_start_is_the_reference_and_what_it_trained_is_carried_on(
    llava: Path, world: Path, tmp_path: Path
) -> None:
    """The start trained projector and adapter; reward and cost began there, and so does the policy."""
    base = llava / "base"
    started: Any = train("SupervisedModule", world, tmp_path / "start", vlm(base, freeze_projector=False))
    for name in ("reward", "cost"):
        train(f"{name.title()}Module", world, tmp_path / name, vlm(base), 1, init_from=str(tmp_path / "start"))
    roles = shared(tmp_path, start="start")
    done: Any = train("ConstrainedPolicyModule", world, tmp_path / "policy", vlm(base), 1, **policy(roles))
    module = done.model
    micro_batch = make_micro_batch(module.backbone)
    with torch.no_grad():
        found = outputs(module, micro_batch)
        expected = (
            started.model.backbone.eval().read(micro_batch.tokens, micro_batch.features, log_probs=True).log_probs
        )
        assert torch.equal(found["reference"], expected)
        assert not torch.equal(found["actor"], expected)
        for name in ("reward", "cost"):
            run: Any = load_run(tmp_path / name, base=str(base))
            torch.testing.assert_close(found[name].view(3, 2), run.score(prompts(), RESPONSES), rtol=1e-5, atol=1e-5)
        alone = load_backbone(tmp_path / "policy", base=str(base))
        micro_batch = make_micro_batch(alone)  # its own projector encodes the pictures
        assert torch.equal(
            alone.read(micro_batch.tokens, micro_batch.features, log_probs=True).log_probs, found["actor"]
        )
    again = load_run(tmp_path / "policy", base=str(base), named=named(tmp_path, "start"))
    assert same(again.state_dict(), module.state_dict())
    stored = torch.load(next((tmp_path / "policy").glob("*.ckpt")), weights_only=True)["state_dict"]
    assert any("multi_modal_projector" in name for name in stored)
    assert not any("reference" in name for name in stored)
    with pytest.raises(CheckpointError, match=r"reward.*multi_modal_projector.* is not the policy's.*another base"):
        build(llava, start=str(tmp_path / "start"))
