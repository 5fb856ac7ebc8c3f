"""Where a run can be named, a model's folder can be, too: to evaluate, to generate, and to start from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.conftest import OwnWords, family_runs, refused  # noqa: F401  a fixture
from tests.shared_runs import DUAL, train, vlm
from tests.stored_runs import at, copy_run, with_config

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.commands.export import export
from safe_rlhf_v.demo.runs import component
from safe_rlhf_v.evaluation.read import response_rows
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.training.checkpoints import CheckpointError, find_checkpoint
from safe_rlhf_v.training.models import load_model
from safe_rlhf_v.training.runs import load_backbone, load_run


def evaluated(policy: Path, world: Path, out: Path, start: Path, **scorers: object) -> list[dict[str, Any]]:
    classes = {"reward": "RewardJudge", "cost": "CostJudge"}
    judges = {name: component(f"safe_rlhf_v.construct.{classes[name]}", run=run) for name, run in scorers.items()}
    args = [
        "evaluate",
        f"--policies.mine={policy}",
        f"--start={json.dumps(component('safe_rlhf_v.evaluation.ModelPolicy', run=start))}",
        f"--judges={json.dumps(judges)}",
        f"--data={world}",
        f"--output={out}",
        "--max_new_tokens=4",
        "--device=cpu",
        "--modes=sampled",
        "--pictures=real",
    ]
    assert main(args) == 0
    return response_rows(out, "mine")


def helpful(rows: list[Any]) -> list[float]:
    """A function as a reward model: short responses."""
    return [-float(len(row.messages[-1]["content"])) for row in rows]


def test_a_base_and_an_exported_policy_are_compared(
    policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exported one says what the run says; scored by an exported cost model and by a function."""
    common = ["evaluate", f"--data={world}", f"--output={tmp_path / 'c'}"]
    exported = export(policy_stages / "supervised", tmp_path / "policy", check=False).path
    cost = export(policy_stages / "cost", tmp_path / "cost", check=False).path
    refusal = refused([*common, f"--policies.mine={cost}"], capsys)
    assert "policies.mine: " in refusal and "is a cost model, a policy is needed" in refusal
    function = f"{__name__}.helpful"
    run = policy_stages / "supervised"
    ours = evaluated(run, world, tmp_path / "a", run, cost=policy_stages / "cost")
    theirs = evaluated(exported, world, tmp_path / "b", exported, cost=cost, reward=function)
    assert [row["response"] for row in ours] == [row["response"] for row in theirs]
    assert [row["cost"] for row in theirs] == pytest.approx([row["cost"] for row in ours], abs=1e-3)
    assert [row["reward"] for row in theirs] == [-len(row["response"]) for row in theirs]
    assert [row["kl"] for row in theirs] == pytest.approx([0.0] * len(theirs), abs=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_a_models_folder_and_keeps_it_whole(
    family_runs: Callable[..., Path],  # noqa: F811
    world: Path,
    tmp_path: Path,
) -> None:
    """With adapters on another base: its checkpoint holds what that base does not give."""
    home = family_runs("llava", "policy")
    model = export(home / "policy", tmp_path / "model", base=str(home / "base"), check=False).path
    expected = OwnWords(home / "policy", home / "base").next_tokens()
    train("SupervisedModule", world, tmp_path / "run", vlm(home / "base"), init_from=str(model), steps=1)
    run = load_run(tmp_path / "run", base=str(home / "base"))
    trained: Any = run.backbone
    merged = load_model(model, "start")
    state = merged.state_dict()
    for name, value in trained.state_dict().items():
        if "lora_" not in name:
            torch.testing.assert_close(value, state[name.replace(".base_layer.", ".")], msg=name)
    own = OwnWords(home / "policy", home / "base")
    own.backbone = merged
    torch.testing.assert_close(torch.tensor(own.next_tokens()), torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_an_adapters_folder_is_its_policy(family_runs: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    home = family_runs("llava", "policy")
    expected = torch.tensor(OwnWords(home / "policy", home / "base").next_tokens())
    folder = export(home / "policy", tmp_path / "adapter", adapter=True, base=str(home / "base"), check=False).path
    own = OwnWords(home / "policy", home / "base")
    own.backbone = load_backbone(folder)
    torch.testing.assert_close(torch.tensor(own.next_tokens()), expected, atol=1e-5, rtol=1e-5)
    own.backbone = load_backbone(home / "base")
    assert not torch.allclose(torch.tensor(own.next_tokens()), expected, atol=1e-5, rtol=1e-5)
    other = write_tiny_vlm("qwen2_5_vl", tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"policy .*adapter: "):
        load_backbone(folder, base=str(other))
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"adapter_config.json cannot be read"):
        load_backbone(folder)


def test_a_name_that_is_nowhere_is_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["evaluate", f"--data={world}", "--output=out"]
    assert "could not be downloaded" in refused([*common, "--policies.mine=nobody/nothing"], capsys)
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    (classifier / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    assert "LlamaForSequenceClassification, a policy is needed" in refused(
        [*common, f"--policies.mine={classifier}"], capsys
    )
    with pytest.raises(CheckpointError, match="not in the local hub cache; download it first"):
        load_model("nobody/nothing", "start")  # as a configuration names it: never fetched


@pytest.mark.slow
@pytest.mark.parametrize("roles", ["SeparateRoles", "SharedRoles"])
def test_external_models_are_a_policys_reward_and_cost(
    roles: str,
    family_runs: Callable[..., Path],  # noqa: F811
    world: Path,
    tmp_path: Path,
) -> None:
    """PPO with critics on a function and an exported cost model; it is read again, and goes on."""
    home = family_runs("llava", "cost")
    cost = export(home / "cost", tmp_path / "cost", base=str(home / "base"), check=False).path
    scored = {"reward": f"{__name__}.helpful", "cost": str(cost)}
    options = {
        "roles": {"class_path": f"safe_rlhf_v.policy.{roles}", "init_args": scored},
        "dual": DUAL,
        "sampling": {"max_new_tokens": 6},
        "scores": {"clip": 1000.0},
        "start": {"prompts": 4, "min_sign_accuracy": 0.0},
    }
    backbone = vlm(home / "base")
    run = train("ConstrainedPolicyModule", world, tmp_path / "run", backbone, **options)
    policy: Any = run.model
    assert any("lora_B" in name and value.any() for name, value in policy.backbone.state_dict().items())
    stored = torch.load(find_checkpoint(tmp_path / "run"), weights_only=True)["state_dict"]
    assert not [name for name in stored if name.startswith(("roles.cost.", "roles.reward."))]
    assert [name for name in stored if name.startswith("roles.reward_value")]
    again = train(
        "ConstrainedPolicyModule", world, tmp_path / "run", backbone, steps=3, resume=tmp_path / "run", **options
    )
    assert again.trainer.global_step == 3
    place = "model.init_args.roles.init_args"
    for function in ("os.getpid", "safe_rlhf_v.commands.shards.main"):  # a stranger's run names what it likes
        roles_of = {"reward": function, "cost": "runs/cost"}
        forged = copy_run(tmp_path / "run", tmp_path / function, with_config(at(place, roles_of)))
        with pytest.raises(CheckpointError, match="which is not imported from a run folder"):
            load_run(forged, base=str(home / "base"))


@pytest.mark.parametrize("revision", ["a" * 40, "v2"])
def test_a_revision_in_the_local_hub_cache_is_not_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    from huggingface_hub import constants

    from safe_rlhf_v.models.sources import in_hub_cache

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--me--model"
    (stored / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (stored / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    (stored / "refs").mkdir()
    (stored / "refs" / "v2").write_text("a" * 40)
    assert in_hub_cache(f"me/model@{revision}")
    assert not in_hub_cache("me/model") and not in_hub_cache("me/model@v3")


def test_float16_weights_lose_no_digits(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText

    folder = write_tiny_vlm("llava", tmp_path / "model")
    for dtype, loaded in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
        weight: Any = load_backbone(folder).lm_head.weight  # type: ignore[union-attr]
        assert weight.dtype == loaded
        stored = load_file(folder / "model.safetensors")
        (name,) = (name for name in stored if name.endswith("lm_head.weight"))
        assert torch.equal(weight.float(), stored[name].float())
