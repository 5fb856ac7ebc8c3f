"""Runs and actors that do not fit shared roles are refused in one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.shared_runs import LORA, forge

from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.policy import SharedRoles
from safe_rlhf_v.training.checkpoints import CheckpointError


def test_runs_that_do_not_fit_are_refused_in_one_line(llava: Path, tmp_path: Path) -> None:
    def refused(words: str, settings: LoraSettings = LORA, model: Path | None = None, **roles: Any) -> None:
        actor = HFVLM(str(model or llava / "base"), lora=settings)
        before = set(actor.state_dict())
        runs = {"reward": str(llava / "reward"), "cost": str(llava / "cost"), **roles}
        with pytest.raises(CheckpointError, match=words) as error:
            SharedRoles(**runs).build(actor, critics=True)
        assert "\n" not in str(error.value)
        assert set(actor.state_dict()) == before, "refused before anything was added"

    refused(r"reward.*\.ckpt: its lora is 'r 2, alpha 4', the policy's is 'r 3, alpha 4'", LoraSettings(3, 4))
    refused(r"its lora is 'r 2, alpha 4', the policy's is 'r 2, alpha 8'; give both the same", LoraSettings(2, 8))
    refused(
        r"other layers than the policy \(.*down_proj.*\).*lora.target_modules",
        LoraSettings(2, 4, target_modules=("q_proj",)),
    )
    other = write_tiny_vlm("llava", tmp_path / "other", seed=1)
    refused("its base_tensor is", model=other)
    copied = shutil.copytree(llava / "base", tmp_path / "copied")
    refused("its base is '.*base', the policy's is '.*copied'", model=copied)
    refused("no readable checkpoint", cost=str(tmp_path / "nothing"))

    def without(content: dict[str, Any]) -> None:
        content["state_dict"] = {k: v for k, v in content["state_dict"].items() if "lora_" not in k}

    def projected(content: dict[str, Any]) -> None:
        name = next(name for name in content["rebuilt"] if "projector" in name)
        content["rebuilt"].remove(name)
        content["state_dict"][name] = HFVLM(str(llava / "base")).get_parameter(name.removeprefix("backbone.")) + 1e-3

    refused("was trained without adapters", cost=forge(llava / "cost", tmp_path / "1" / "x.ckpt", without))
    refused("projector.* is not the policy's", reward=forge(llava / "reward", tmp_path / "2" / "x.ckpt", projected))


def test_an_actor_that_does_not_fit_is_refused_in_one_line(llava: Path) -> None:
    roles = SharedRoles(str(llava / "reward"), str(llava / "cost"))
    with pytest.raises(ValueError, match="give the backbone lora settings, or use SeparateRoles"):
        roles.build(HFVLM(str(llava / "base")), critics=True)
    with pytest.raises(
        ValueError, match=r"trains model.*projector.* \(\+\d\) beside its adapters.*freeze_projector: true"
    ):
        roles.build(HFVLM(str(llava / "base"), lora=LORA, freeze_projector=False), critics=True)
    with pytest.raises(ValueError, match="HFVLM has no adapters"):
        HFVLM(str(llava / "base")).add_adapter("reward")
