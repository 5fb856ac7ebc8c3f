"""Stages that a plain ``Trainer`` has trained are handed on as modules: supervised, then reward and cost, then the policy; DPO."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from safe_rlhf_v.data_modules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from safe_rlhf_v.dual import LogSpaceDual
from safe_rlhf_v.models import HFVLM, ClipDecoder, ScalarHead
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import CostModule, PreferenceOptimisationModule, RewardModule, SupervisedModule
from safe_rlhf_v.modules.base import BaseModule
from safe_rlhf_v.objectives import DPO, BradleyTerry, CostObjective, SignTerm
from safe_rlhf_v.policy import ConstrainedPolicyModule, Roles, SeparateRoles, SharedRoles
from safe_rlhf_v.policy.settings import StartSettings
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.runs import load_run

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=3e-3)


class Stages(NamedTuple):
    """Trained modules, the network they are made of, and a checkpoint of each."""

    backbone: Callable[[], Backbone]
    supervised: SupervisedModule
    reward: RewardModule
    cost: CostModule
    folder: Path


def train(
    module: pl.LightningModule, data: pl.LightningDataModule, file: Path, steps: int = 2, resume: Path | None = None
) -> dict[str, Any]:
    """Train with Lightning's own Trainer and nothing of ours; the content of the checkpoint in the end."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, limit_val_batches=0, enable_model_summary=False, **quiet
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(file)
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def train_stages(backbone: Callable[[], Backbone], world: Path, folder: Path) -> Stages:
    """Supervised first; reward and cost start from it."""
    supervised = SupervisedModule(backbone, adam)
    train(supervised, SupervisedDataModule(str(world), batch_size=4), folder / "supervised.ckpt")
    pairs = PreferenceDataModule(str(world), batch_size=4)
    reward = RewardModule(backbone, BradleyTerry, optimizer=adam, init_from=supervised)
    train(reward, pairs, folder / "reward.ckpt")
    cost = CostModule(backbone, cost_objective, optimizer=adam, init_from=supervised)
    train(cost, pairs, folder / "cost.ckpt")
    return Stages(backbone, supervised, reward, cost, folder)


def cost_objective() -> CostObjective:
    return CostObjective([SignTerm()])


@pytest.fixture(scope="module")
def stages(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    make = partial(ClipDecoder, str(world / "tokenizer"), tower, DECODER, SlotSettings(3, 16))
    return train_stages(make, world, tmp_path_factory.mktemp("chained"))


@pytest.fixture(scope="module")
def lora_stages(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    folder = tmp_path_factory.mktemp("lora")
    write_tiny_vlm("llava", folder / "base")
    return train_stages(partial(HFVLM, str(folder / "base"), lora=LoraSettings(2, 4)), world, folder)


def policy(stages: Stages, roles: Callable[[], Roles] | None = None) -> ConstrainedPolicyModule:
    given = partial(SeparateRoles, reward=stages.reward, cost=stages.cost, start=stages.supervised)
    return ConstrainedPolicyModule(
        stages.backbone,
        roles or given,
        partial(LogSpaceDual, -0.5),
        sampling=SamplingOptions(max_new_tokens=6),
        start=StartSettings(prompts=4, min_sign_accuracy=0.0),
        optimizer=adam,
    )


def prompts(world: Path) -> PromptDataModule:
    return PromptDataModule(str(world), batch_size=2, demonstrations="supervised", demonstration_batch_size=2)


def same(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> bool:
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("cls", [SupervisedModule, RewardModule, CostModule])
def test_a_stage_starts_from_a_modules_weights(cls: Any, stages: Stages) -> None:
    objective = {RewardModule: (BradleyTerry,), CostModule: (cost_objective,)}.get(cls, ())
    module = cls(stages.backbone, *objective, init_from=stages.supervised)
    fresh = cls(stages.backbone, *objective)
    for built in (module, fresh):
        built.configure_model()
    assert same(module.backbone, stages.supervised.backbone) and not same(fresh.backbone, stages.supervised.backbone)
    own = {value.data_ptr() for value in module.parameters()}
    assert not own & {value.data_ptr() for value in stages.supervised.parameters()}, "copied, not shared"
    assert not any(name.startswith("sources") for name, _ in module.named_modules())


def test_the_policy_starts_from_the_modules_and_leaves_them_alone(stages: Stages, world: Path, tmp_path: Path) -> None:
    given = (stages.supervised, stages.reward, stages.cost)
    before = [(state(module), {n: p.requires_grad for n, p in module.named_parameters()}) for module in given]
    module = policy(stages)
    module.configure_model()
    assert same(module.backbone, stages.supervised.backbone)
    assert same(module.roles.get_submodule("reference"), stages.supervised.backbone)
    for name, scorer in (("reward", stages.reward), ("cost", stages.cost)):
        assert same(module.roles.get_submodule(name), scorer.backbone)
        assert same(module.roles.get_submodule(f"{name}_head"), scorer.head)
        assert same(module.roles.get_submodule(f"{name}_critic"), scorer.backbone)
        assert not same(scorer.backbone, stages.supervised.backbone), "it was trained"
    content = train(module, prompts(world), tmp_path / "policy.ckpt")
    assert not same(module.backbone, stages.supervised.backbone), "the policy moved"
    for stage, (weights, trainable) in zip(given, before, strict=True):
        assert same(stage, weights)
        assert {n: p.requires_grad for n, p in stage.named_parameters()} == trainable
    frozen = ("roles.reference.", "roles.reward.", "roles.reward_head.", "roles.cost.", "roles.cost_head.")
    assert not any(name.startswith(frozen) for name in content["state_dict"])
    # A policy is the start of a next one.
    second = SupervisedModule(stages.backbone, init_from=module)
    second.configure_model()
    assert same(second.backbone, module.backbone)


def test_no_copy_of_an_earlier_stage_hides_in_the_hyper_parameters(stages: Stages) -> None:
    for module in (policy(stages), SupervisedModule(stages.backbone, init_from=stages.supervised)):
        for values in (module.hparams, module.hparams_initial):
            assert not any(isinstance(value, nn.Module) for value in values.values())
        assert "roles" not in module.hparams_initial and module.hparams_initial.get("init_from") is None
        assert not list(module.parameters())


def test_a_resumed_policy_equals_the_uninterrupted_one(stages: Stages, world: Path, tmp_path: Path) -> None:
    """In the same process with the same modules, and later with modules that their checkpoints give back."""
    whole = policy(stages)
    train(whole, prompts(world), tmp_path / "whole.ckpt")
    train(policy(stages), prompts(world), tmp_path / "half.ckpt", steps=1)
    resumed = policy(stages)
    train(resumed, prompts(world), tmp_path / "resumed.ckpt", resume=tmp_path / "half.ckpt")
    assert same(resumed, whole)
    options: dict[str, Any] = {"backbone": stages.backbone, "weights_only": True}
    again = stages._replace(
        supervised=SupervisedModule.load_from_checkpoint(stages.folder / "supervised.ckpt", **options),
        reward=RewardModule.load_from_checkpoint(stages.folder / "reward.ckpt", objective=BradleyTerry, **options),
        cost=CostModule.load_from_checkpoint(stages.folder / "cost.ckpt", objective=cost_objective, **options),
    )
    reloaded = policy(again)
    train(reloaded, prompts(world), tmp_path / "reloaded.ckpt", resume=tmp_path / "half.ckpt")
    assert same(reloaded, whole)

    other = copy.deepcopy(stages.cost)
    with torch.no_grad():
        other.head.linear.weight += 0.1
    with pytest.raises(
        CheckpointError, match=r"another cost model; .*in Python, give the module it was made with"
    ) as error:
        train(policy(stages._replace(cost=other)), prompts(world), tmp_path / "x.ckpt", resume=tmp_path / "half.ckpt")
    assert "\n" not in str(error.value)


def test_files_of_a_plain_trainer_name_the_way_when_they_are_given_as_runs(stages: Stages) -> None:
    for path in (stages.folder / "reward.ckpt", stages.folder / "cost.ckpt"):
        with pytest.raises(
            CheckpointError, match=r"load_from_checkpoint and give the module in place of the run"
        ) as error:
            load_run(path)
        assert "\n" not in str(error.value)


def test_preference_optimisation_takes_modules_as_start_and_reference(
    stages: Stages, world: Path, tmp_path: Path
) -> None:
    other = copy.deepcopy(stages.supervised)
    with torch.no_grad():
        for value in other.backbone.parameters():
            value += 0.01
    given = {"init_from": stages.supervised, "reference": other}

    def make(**options: Any) -> PreferenceOptimisationModule:
        return PreferenceOptimisationModule(stages.backbone, DPO, optimizer=adam, **options)

    pairs = partial(PreferenceDataModule, str(world), batch_size=4)
    module = make(**given)
    module.configure_model()
    assert same(module.backbone, stages.supervised.backbone)
    assert same(module.reference.network, other.backbone)
    train(module, pairs(), tmp_path / "whole.ckpt")
    assert same(module.reference.network, other.backbone)
    content = train(make(**given), pairs(), tmp_path / "half.ckpt", steps=1)
    assert not any("reference" in name or "init_from" in name for name in content["hyper_parameters"])
    for options in (given, {}):  # the checkpoint holds the reference, so that nothing has to be given
        resumed = make(**options)
        train(resumed, pairs(), tmp_path / "resumed.ckpt", resume=tmp_path / "half.ckpt")
        assert same(resumed, module) and same(resumed.reference.network, other.backbone)
    alone = make(init_from=stages.supervised)
    alone.configure_model()
    assert same(alone.reference.network, stages.supervised.backbone)


@pytest.mark.slow
def test_roles_on_one_base_take_modules(lora_stages: Stages, world: Path, tmp_path: Path) -> None:
    stages = lora_stages
    for start in (None, stages.supervised):
        # Reward and cost began at the supervised adapter; without a start the actor begins at the base.
        roles = partial(SharedRoles, reward=stages.reward, cost=stages.cost, start=start)
        module = policy(stages, roles)
        module.configure_model()
        batch = next(iter(prompts(world).train_dataloader()))
        rollout = module.sample(batch._replace(valid=batch.valid), torch.Generator().manual_seed(0))
        (micro_batch,) = rollout.micro_batches
        with torch.no_grad():
            for name, scorer in (("reward", stages.reward), ("cost", stages.cost)):
                scorer.eval()
                states = scorer.backbone.read(micro_batch.tokens, scorer.backbone.encode_images(micro_batch.images))
                torch.testing.assert_close(module.roles.score(name, micro_batch), scorer.head(states)[:, 0])
            first = module.roles.log_probs("actor", micro_batch)
            assert torch.equal(first, module.roles.log_probs("reference", micro_batch))
            own = stages.supervised.eval().backbone
            expected = own.read(micro_batch.tokens, own.encode_images(micro_batch.images), log_probs=True).log_probs
            assert torch.equal(first, expected) == (start is not None)
    train(module, prompts(world), tmp_path / "whole.ckpt")
    train(policy(stages, roles), prompts(world), tmp_path / "half.ckpt", steps=1)
    resumed = policy(stages, roles)
    train(resumed, prompts(world), tmp_path / "resumed.ckpt", resume=tmp_path / "half.ckpt")
    assert same(resumed, module)


class Foreign(pl.LightningModule):
    """A module of somebody else."""


class Stub(BaseModule):
    """Trains nothing that anybody could start from."""

    def build(self) -> None: ...


def test_what_cannot_be_a_stage_is_refused_in_one_line(stages: Stages) -> None:
    def refused(make: Callable[[], pl.LightningModule], words: str) -> None:
        with pytest.raises(CheckpointError, match=words) as error:
            make().configure_model()
        assert "\n" not in str(error.value)

    make, bare = stages.backbone, RewardModule(stages.backbone, BradleyTerry)
    refused(
        lambda: SupervisedModule(make, init_from=bare), "the given RewardModule: has no networks yet; train it first"
    )
    refused(lambda: SupervisedModule(make, init_from=Stub()), "the given Stub: has no networks yet")
    foreign: Any = Foreign()
    refused(lambda: SupervisedModule(make, init_from=foreign), "init_from: a Foreign was given; give a run folder")
    dpo = partial(PreferenceOptimisationModule, make, DPO)
    refused(
        lambda: dpo(reference=stages.reward),
        "reference: the given RewardModule is a reward model .* a policy is needed",
    )
    kinds = {
        "cost model: the given RewardModule is a reward model": {"cost": stages.reward},
        "reward model: the given CostModule is a cost model": {"reward": stages.cost},
        "start: the given RewardModule is a reward model": {"start": stages.reward},
    }
    given = {"reward": stages.reward, "cost": stages.cost, "start": stages.supervised}
    for words, wrong in kinds.items():
        refused(lambda wrong=wrong: policy(stages, partial(SeparateRoles, **{**given, **wrong})), words)  # type: ignore[misc]
    broken = copy.deepcopy(stages.supervised)
    with torch.no_grad():
        next(broken.backbone.parameters()).fill_(torch.nan)
    refused(
        lambda: SupervisedModule(make, init_from=broken),
        "the given SupervisedModule: NaN or infinite weights in backbone",
    )


def test_a_configuration_names_runs_only(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Roles, "roles")
    named = {"reward": "runs/reward", "cost": "runs/cost"}
    assert parser.parse_object({"roles": {"class_path": "safe_rlhf_v.policy.SeparateRoles", "init_args": named}})
    for wrong in ({"class_path": "safe_rlhf_v.modules.RewardModule"}, {"a": 1}, [1]):
        options = {"class_path": "safe_rlhf_v.policy.SeparateRoles", "init_args": {**named, "reward": wrong}}
        with pytest.raises(ArgumentError, match="a module itself can be given in Python only"):
            parser.parse_object({"roles": options})
    with pytest.raises(SystemExit):
        parser.parse_args(["--roles.help=safe_rlhf_v.policy.SeparateRoles"])
    text = " ".join(capsys.readouterr().out.split())
    assert "str | TrainedModule" in text and "RewardModule" not in text


def test_the_head_is_a_copy_of_its_kind(stages: Stages) -> None:
    module = policy(stages)
    module.configure_model()
    head = module.roles.get_submodule("reward_head")
    assert type(head) is type(stages.reward.head) is ScalarHead and head is not stages.reward.head
