"""The reference of an offline policy: its start or another run, shared with the policy where adapters allow."""

from functools import partial

import pytest
import torch
from tests.modules.offline import build, same, save, sgd, start, train

from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.modules import PreferenceOptimisationModule, RewardModule, SupervisedModule
from safe_rlhf_v.objectives import DPO, BradleyTerry
from safe_rlhf_v.training.checkpoints import CheckpointError


def test_the_reference_is_the_start_and_later_stages_take_the_policy(backbone, world, tmp_path):
    module = start(backbone, tmp_path)
    supervised = torch.load(tmp_path / "supervised" / "x.ckpt", weights_only=True)["state_dict"]
    for name, value in module.reference.network.state_dict().items():
        assert torch.equal(value, supervised[f"backbone.{name}"])
    stored = train(module, world, tmp_path / "dpo" / "x.ckpt", 3)
    twice = [name for name in stored["state_dict"] if name.startswith("reference.network.tower")]
    assert not any("weight" in name for name in twice)  # shared tensors are stored once
    reward = RewardModule(partial(backbone, seed=5), BradleyTerry, init_from=str(tmp_path / "dpo"))
    reward.configure_model()
    assert same(reward.backbone, module.backbone)
    # the second step of SACPO: policy and reference are both the first step's policy
    second = build(partial(backbone, seed=6), init_from=str(tmp_path / "dpo"))
    assert same(second.backbone, module.backbone) and same(second.reference.network, module.backbone)


def test_another_run_as_reference(backbone, world, tmp_path):
    start(backbone, tmp_path)
    other = SupervisedModule(partial(backbone, seed=4), optimizer=sgd)
    save(other, tmp_path / "other" / "x.ckpt")
    options = {"init_from": str(tmp_path / "supervised"), "reference": str(tmp_path / "other")}
    module = build(backbone, **options)
    assert same(module.reference.network, other.backbone)
    assert same(module.backbone, start(backbone, tmp_path).backbone)
    stored = train(module, world, tmp_path / "x.ckpt", 2)
    assert stored["hyper_parameters"]["reference"] is stored["hyper_parameters"]["init_from"] is None
    whole = build(backbone, **options)
    train(whole, world, tmp_path / "whole.ckpt", 4)
    resumed = PreferenceOptimisationModule(backbone, DPO, optimizer=sgd)  # neither folder is needed any more
    train(resumed, world, tmp_path / "resumed.ckpt", 4, resume=tmp_path / "x.ckpt")
    assert same(resumed, whole) and same(resumed.reference.network, other.backbone)


def test_a_reference_that_is_not_there_is_refused_before_anything_is_built(tmp_path):
    def never():
        raise AssertionError

    module = PreferenceOptimisationModule(never, DPO, reference=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="gone: no readable checkpoint"):
        module.configure_model()


def test_a_checkpoint_without_the_reference_is_refused(backbone, world, tmp_path):
    stored = train(build(backbone), world, tmp_path / "x.ckpt", 1)
    stored["state_dict"] = {k: v for k, v in stored["state_dict"].items() if "reference.network.decoder" not in k}
    torch.save(stored, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"lacks reference\.network\.decoder"):
        train(build(backbone), world, tmp_path / "y.ckpt", 2, resume=tmp_path / "x.ckpt")


def adapted(model, **options):
    return partial(HFVLM, model, lora=LoraSettings(r=2), **options)


def test_adapters_of_an_earlier_stage_stay_in_the_reference(llava, batch, world, tmp_path):
    """With adapters switched off the reference would be the base, not the supervised policy."""
    earlier = SupervisedModule(adapted(llava), optimizer=sgd)
    save(earlier, tmp_path / "supervised" / "x.ckpt")
    module = build(adapted(llava), init_from=str(tmp_path / "supervised"))
    assert same(module.reference.network, earlier.backbone)
    with torch.no_grad():
        assert torch.equal(module.log_ratios(batch.prompts, batch.responses), torch.zeros(6, 2))
    stored = train(module, world, tmp_path / "half.ckpt", 2)
    weights = [name for name in stored["state_dict"] if "lora_" not in name]
    assert not any(name.endswith("weight") for name in weights)  # the base is in neither half
    assert same(module.reference.network, earlier.backbone) and not same(module.backbone, earlier.backbone)
    whole = build(adapted(llava), init_from=str(tmp_path / "supervised"))
    train(whole, world, tmp_path / "whole.ckpt", 4)
    resumed = PreferenceOptimisationModule(adapted(llava), DPO, optimizer=sgd)
    train(resumed, world, tmp_path / "resumed.ckpt", 4, resume=tmp_path / "half.ckpt")
    assert same(resumed, whole) and same(resumed.reference.network, earlier.backbone)


def test_another_run_as_reference_shares_what_both_leave_to_the_base(llava, world, tmp_path):
    """The policy's earlier stage trained the projector, the reference's did not: each keeps its own, now and resumed."""
    first = SupervisedModule(adapted(llava, freeze_projector=False), optimizer=sgd)
    save(first, tmp_path / "first" / "x.ckpt")
    second = SupervisedModule(adapted(llava), optimizer=sgd)
    save(second, tmp_path / "second" / "x.ckpt")
    options = {"init_from": str(tmp_path / "first"), "reference": str(tmp_path / "second")}
    module = build(adapted(llava), **options)
    train(module, world, tmp_path / "x.ckpt", 2)
    resumed = PreferenceOptimisationModule(adapted(llava), DPO, optimizer=sgd)
    train(resumed, world, tmp_path / "y.ckpt", 3, resume=tmp_path / "x.ckpt")
    for one in (module, resumed):
        assert same(one.reference.network, second.backbone)
        projector = {n: p for n, p in one.backbone.named_parameters() if "projector" in n}
        assert all(torch.equal(p, first.backbone.get_parameter(n)) for n, p in projector.items())
        assert not any(torch.equal(p, one.reference.network.get_parameter(n)) for n, p in projector.items())
        own = {id(p) for p in one.reference.parameters()} - {id(p) for p in one.backbone.parameters()}
        names = {n for n, p in one.reference.network.named_parameters() if id(p) in own}
        assert names == {n for n, _ in one.backbone.named_parameters() if "lora_" in n or n in projector}
