"""A model's folder in the place of a run: it generates, is a policy's start and reference; what is no model is one line."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.export.conftest import family_runs, refused  # noqa: F401  a fixture
from tests.shared_runs import DUAL, train, vlm

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.commands.export import export
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.models import load_model
from safe_rlhf_v.training.runs import load_backbone, load_run, open_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm("llava", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """As peft alone writes one: no processor, and nothing of this library."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(2)
    model = AutoModelForImageTextToText.from_pretrained(base)
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    with warnings.catch_warnings():  # between versions of peft and transformers
        warnings.simplefilter("ignore", FutureWarning)
        get_peft_model(model, config).save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


def damaged_weights(file: Path) -> None:
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def renamed_base(name: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))

    return change


ADAPTERS = {
    "moved base": (renamed_base("/gone/base"), "its base, /gone/base, is not here; name the base with --base"),
    "base on the hub": (renamed_base("nobody/base"), "its base, nobody/base, is not in the local hub cache"),
    "no base": (renamed_base(None), "names no base model"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "but no adapter_model.safetensors"),
    "damaged weights": (lambda folder: damaged_weights(folder / "adapter_model.safetensors"), "NaN or infinite weights"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ADAPTERS)
def test_an_adapter_that_cannot_be_used_is_one_line(fault: str, adapter: Path, tmp_path: Path) -> None:
    change, words = ADAPTERS[fault]
    folder = shutil.copytree(adapter, tmp_path / "ädapter 1")
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        open_run(str(folder), "start", ("policy",))
    message = str(caught.value)
    assert message.startswith(f"start {folder}: ") and words in message and "\n" not in message


def test_what_is_no_model_is_one_line(base: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type":')
    weights = shutil.copytree(base, tmp_path / "weights")
    damaged_weights(next(weights.glob("*.safetensors")))
    short = shutil.copytree(base, tmp_path / "short")
    file = next(short.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-5000])
    for source, words in (
        (notes, "no readable checkpoint; train that stage first, or name a .ckpt file; nor is it a model's folder (none of"),
        (tmp_path / "nowhere", "no readable checkpoint; train"),
        (notes / "notes.txt", "not a complete checkpoint"),
        (text, "cannot be read (ValueError: Unrecognized configuration class"),
        (broken, "config.json cannot be read"),
        (weights, "NaN or infinite weights in"),
        (short, "cannot be read (SafetensorError"),
        ("nobody/nothing", "not in the local hub cache; download it first"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            open_run(str(source), "reference", ("policy",))
        message = str(caught.value)
        assert message.startswith(f"reference {source}: ") and words in message and "\n" not in message
        with pytest.raises(CheckpointError):
            load_backbone(source)
    with pytest.raises(CheckpointError, match=r"no readable checkpoint; .* name a \.ckpt file$"):
        open_run(str(notes), "guard", ("guard",))  # a model would not do


def test_a_command_names_the_base_of_an_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(adapter, tmp_path / "adapter")
    renamed_base("/gone/base")(moved)
    merged = load_backbone(moved, base=str(base)).state_dict()
    plain = load_backbone(base).state_dict()
    changed = {name for name, value in merged.items() if not torch.equal(value, plain[name])}
    assert changed and all("q_proj" in name for name in changed)


def test_a_model_generates_what_its_run_generates(
    calibrated_run: Path, policy_stages: Path, adapter: Path, world: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def generated(policy: Path, name: str) -> list[str]:
        paths = [f"--policy={policy}", f"--guard={calibrated_run}", f"--data={world}", f"--output={tmp_path / name}"]
        short = ["--rounds=0", "--max_new_tokens=4", "--temperature=0", "--device=cpu"]
        assert main(["generate", *paths, *short]) == 0
        drafts = (tmp_path / name).with_suffix(".drafts.jsonl").read_text().splitlines()
        return [json.loads(line)["draft"] for line in drafts]

    exported = export(policy_stages / "supervised", tmp_path / "policy", check=False).path
    responses = generated(policy_stages / "supervised", "run.jsonl")
    assert generated(exported, "model.jsonl") == responses and any(responses)
    assert len(generated(adapter, "adapter.jsonl")) == len(responses)
    cost = export(policy_stages / "cost", tmp_path / "cost", check=False).path
    common = ["generate", f"--guard={calibrated_run}", f"--data={world}", f"--output={tmp_path / 'no.jsonl'}"]
    for policy, words in (
        (cost, "is a cost model, a policy is needed"),
        (tmp_path, "nor is it a model's folder"),
        ("nobody/nothing", "could not be downloaded"),
    ):
        assert words in refused([*common, f"--policy={policy}"], capsys)
    assert not (tmp_path / "no.jsonl").exists()


def test_roles_on_one_base_do_not_start_from_a_model(base: Path, adapter: Path) -> None:
    from safe_rlhf_v.models import HFVLM
    from safe_rlhf_v.models.lora import LoraSettings
    from safe_rlhf_v.policy.shared_roles import check_adapters
    from safe_rlhf_v.training.checkpoints import fingerprint

    actor = HFVLM(str(base), lora=LoraSettings(2, 4))
    for folder in (base, adapter):
        start = open_run(str(folder), "start", ("policy",))
        with pytest.raises(
            CheckpointError, match=r"^start .*is a model and no run.*leave start out, or use SeparateRoles"
        ):
            check_adapters(start.stage, actor, fingerprint(actor))


def plain_tensors(network: Any) -> dict[str, torch.Tensor]:
    """Without adapters, under the names that they have without adapters."""
    state = network.state_dict()
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if "lora_" not in name}


def same_tensors(network: Any, model: Path) -> None:
    actual = plain_tensors(network)
    for name, value in load_model(model, "model").state_dict().items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["base", "merged", "adapter"])
def test_a_policy_starts_from_a_models_folder_and_is_compared_with_it(
    form: str,
    family_runs: Callable[..., Path],  # noqa: F811
    world: Path,
    tmp_path: Path,
) -> None:
    """Start of a policy, and the reference of DPO; both go on, and are read again, without the folder."""
    home = family_runs("llava", "policy", "reward", "cost")
    backbone = vlm(home / "base")
    model = home / "base"
    if form != "base":
        model = export(home / "policy", tmp_path / form, adapter=form == "adapter", base=str(model), check=False).path
    model = shutil.copytree(model, tmp_path / "model")
    kept = shutil.copytree(model, tmp_path / "kept")
    named = {"reward": str(home / "reward"), "cost": str(home / "cost"), "start": str(model)}
    options = {
        "roles": {"class_path": "safe_rlhf_v.policy.SeparateRoles", "init_args": named},
        "dual": DUAL,
        "sampling": {"max_new_tokens": 4},
        "scores": {"clip": 1000.0},
        "start": {"prompts": 4, "min_sign_accuracy": 0.0},
    }
    policy: Any = train("ConstrainedPolicyModule", world, tmp_path / "ppo", backbone, **options).model
    dpo = {"reference": str(model), "objective": {"class_path": "safe_rlhf_v.objectives.DPO"}}
    optimised: Any = train("PreferenceOptimisationModule", world, tmp_path / "dpo", backbone, **dpo).model
    for network in (policy.roles.reference, policy.backbone, optimised.reference.network):
        same_tensors(network, kept)
    assert any("lora_B" in name and value.any() for name, value in policy.backbone.state_dict().items())
    again: Any = load_backbone(tmp_path / "ppo", base=str(home / "base"))
    for name, value in policy.backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    resumed = train("ConstrainedPolicyModule", world, tmp_path / "ppo", backbone, 3, tmp_path / "ppo", **options)
    assert resumed.trainer.global_step == 3
    shutil.rmtree(model)
    stored: Any = load_run(tmp_path / "dpo", base=str(home / "base"))
    same_tensors(stored.reference.network, kept)
