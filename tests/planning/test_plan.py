"""The plan command: shipped configurations on any machine, tables and JSON, advice, and refusals in one line."""

import json

import pytest
import torch
from tests.commands.command_lines import ROOT

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.commands.plan import size_of, split_options
from safe_rlhf_v.commands.plan_config import read_settings
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.quantization import quantized_layers
from safe_rlhf_v.planning.advice import changes_of
from safe_rlhf_v.planning.network import BackboneOptions, meta_model, read_config, sizes_of
from safe_rlhf_v.planning.passes import Passes, Rows
from safe_rlhf_v.planning.settings import RunSettings
from safe_rlhf_v.planning.sizes import KNOWN
from safe_rlhf_v.planning.stages import Planner
from safe_rlhf_v.planning.vision import vision_size

LLAVA = "llava-hf/llava-1.5-7b-hf"
SMALL = {
    **KNOWN[LLAVA],
    "text_config": {**KNOWN[LLAVA]["text_config"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
                    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 320},
    "vision_config": {**KNOWN[LLAVA]["vision_config"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                      "num_attention_heads": 4},
    "image_token_id": 300,
}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SMALL))
    return str(file)


def settings(**options):
    backbone = {"lora": LoraSettings(8), **options.pop("backbone", {})}
    config = read_config(None, SMALL)
    given = {"batch": 4, "micro_batch": 2, "shared": True, "max_length": 1024, **options}
    return RunSettings("policy", BackboneOptions(config, **backbone), vision_size(config), **given)


@pytest.mark.parametrize(("name", "billions"), [(LLAVA, 7.06), ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29)])
def test_the_sizes_written_down_are_those_of_the_models(name, billions):
    config = read_config(name, None, local_files_only=True)
    model = meta_model(BackboneOptions(config), adapters=False)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("stage", [pytest.param("ppo_lag", marks=pytest.mark.slow), "reward"])
def test_a_shipped_configuration_is_planned_without_a_hub(stage, small, capsys):
    config = str(ROOT / "configs" / "llava_1_5_7b" / f"{stage}.yaml")
    assert main(["plan", "--config", config, "--model_config", small, "--memory", "1GB", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fits"] and data["memory"] == 10**9 and data["peak"] < 10**9
    assert data["prompt_tokens"] == 128 + 576 and data["response_tokens"] == 512
    names = [role["role"] for role in data["roles"]]
    six = ["base of all roles", "actor", "reward", "cost", "reward critic", "cost critic"]
    assert names == (six if stage == "ppo_lag" else ["reward model"])


@pytest.mark.parametrize(
    ("stage", "option", "expected"),
    [
        ("reward", "--model.init_args.head=safe_rlhf_v.models.EvidenceHead", {"reads_tokens": True}),
        ("reward", "--model.init_args.head=safe_rlhf_v.models.ScalarHead", {"reads_tokens": False}),
        ("guard", "--model.init_args.head=safe_rlhf_v.models.EvidenceHead", {"reads_tokens": True}),
        ("ppo_lag", "--model.init_args.sampling.top_p=0.9", {"sorts": True, "reads_tokens": False}),
        ("ppo_lag", "--model.init_args.sampling.top_p=1.0", {"sorts": False}),
    ],
)
def test_what_a_head_and_sampling_ask_for_is_read(stage, option, expected, small):
    config = str(ROOT / "configs" / "llava_1_5_7b" / f"{stage}.yaml")
    known = read_settings(["--config", config, option], 128, None, None, None, small)._asdict()
    assert {name: known[name] for name in expected} == expected


@pytest.mark.slow
def test_what_does_not_fit_says_what_to_change(small, capsys):
    config = str(ROOT / "configs" / "llava_1_5_7b" / "ppo_lag.yaml")
    assert main(["plan", f"--config={config}", f"--model_config={small}", "--memory=1MB"]) == 1
    text = capsys.readouterr().out
    assert "does not fit into" in text
    assert "--data.init_args.batch_size 8 --data.init_args.eval_batch_size 8" in text
    assert "all that go together" in text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--memory=much"], "--memory much: is no size; write it as 24GB"),
        (["--model_config=/nowhere/config.json"], "--model_config /nowhere/config.json: no such file"),
        (["--trainer.precision=64-true"], "trainer.precision 64-true is not planned for"),
        (["--model.init_args.backbone.init_args.max_length=300"], "max_length is 300: raise max_length"),
    ],
)
def test_it_refuses_in_one_line(extra, words, small, capsys):
    config = str(ROOT / "configs" / "llava_1_5_7b" / "supervised.yaml")
    assert main(["plan", "--config", config, "--model_config", small, *extra]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and error.startswith("error: ") and len(error.splitlines()) == 1


def test_other_backbones_and_no_configuration_are_refused(capsys):
    assert main(["plan", "--memory", "24GB"]) == 2
    assert "name the configuration of a training by --config FILE" in capsys.readouterr().err
    assert main(["plan", "--config", str(ROOT / "configs" / "quickstart" / "reward.yaml")]) == 2
    assert "Hugging Face backbones (HFVLM) only, not ClipDecoder" in capsys.readouterr().err


def test_options_go_to_whom_they_belong():
    own, training = split_options(
        ["--memory", "24GB", "--config", "a.yaml", "--json", "--ranks=2", "--trainer.devices", "2"]
    )
    assert own == ["--memory", "24GB", "--json", "--ranks=2"]
    assert training == ["--config", "a.yaml", "--trainer.devices", "2"]
    assert [size_of(text) for text in ("24GB", "1.5 gib", "80mb")] == [24 * 10**9, 3 * 2**29, 80 * 10**6]


@pytest.mark.slow
def test_further_blocks_add_what_the_third_did():
    text = {**SMALL["text_config"], "num_hidden_layers": 5}
    options = BackboneOptions(read_config(None, {**SMALL, "text_config": text}), lora=LoraSettings(8))
    passes = Passes(options, False)
    rows = Rows(2, 40, 8, 1, 4)
    assert passes.peak(rows, "log_probs", learns=True) == passes.traced(5, rows, "log_probs", True, False)


@pytest.mark.slow
def test_ranks_sharding_and_roles_change_what_they_should():
    planner = Planner()
    alone, ddp, fsdp = (planner.plan(settings(**o)) for o in ({}, {"ranks": 4}, {"ranks": 4, "sharded": True}))
    assert ddp.resident == alone.resident and ddp.peak > alone.peak  # buckets
    assert fsdp.resident < alone.resident
    separate = planner.plan(settings(shared=False))
    assert len(separate.roles) == 6 and separate.resident > 4 * alone.resident
    assert len(planner.plan(settings(critics=False)).roles) == 4
    cached = planner.plan(settings(feature_cache=64))
    assert cached.largest.features - alone.largest.features == 64 * 576 * 64 * 4


def test_stored_weights_are_as_large_as_they_really_are(tmp_path):
    pytest.importorskip("torchao")
    from safe_rlhf_v.models import HFVLM
    from safe_rlhf_v.models.tiny import write_tiny_vlm

    folder = str(write_tiny_vlm("llava", tmp_path / "llava"))
    network = HFVLM(folder, lora=LoraSettings(4), quantization="torchao_int8")
    layers = quantized_layers(network.language_model)
    real = sum(layer.weight.numel() for layer in layers.values())
    plain = sizes_of(BackboneOptions(network.model.config, lora=LoraSettings(4)))
    config = read_config(folder, None)
    stored = sizes_of(BackboneOptions(config, lora=LoraSettings(4), quantization="torchao_int8"))
    assert plain.blocks - stored.blocks == 3 * real  # float32 to int8
    assert plain.rest == stored.rest and plain.adapter == stored.adapter


@pytest.mark.slow
def test_advice_is_in_order_and_adds_up():
    planner = Planner()
    plan = planner.plan(settings(backbone={"dtype": torch.bfloat16}, evaluated=8))
    changes = list(changes_of(planner, plan))
    single, together = changes[:-1], changes[-1]
    assert [c.saved for c in single] == sorted((c.saved for c in single), reverse=True)
    assert all(c.saved > 0 and c.peak == plan.peak - c.saved for c in changes)
    assert together.saved >= single[0].saved


def test_pictures_of_tiles_ask_for_their_tokens() -> None:
    """The number of tiles stands in the processor, which a plan does not read."""
    from transformers import AutoConfig

    config = AutoConfig.for_model("internvl")
    with pytest.raises(ValueError, match="give --image_tokens"):
        vision_size(config)
    one, several = (vision_size(config, tokens=256 * tiles) for tiles in (1, 13))
    assert (several.tokens, several.patches) == (13 * one.tokens, 13 * one.patches)
    assert several.tower == 13 * one.tower
