"""A plan is within 15 % of the largest number of bytes that a real training holds, for every stage and form of roles."""

from functools import partial

import pytest
from tests.planning import measured

from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import write_tiny_vlm

LORA = {"lora": LoraSettings(r=8)}
slow = pytest.mark.slow
STAGES = ("reward", "cost", "guard", "preference_optimisation")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {family: write_tiny_vlm(family, root / family) for family in ("llava", "qwen2_5_vl")}


def near(plan, peak):
    assert 0.85 * peak < plan.peak < 1.15 * peak, (
        f"planned {plan.peak / 1e6:.2f} MB, measured {peak / 1e6:.2f} MB: {plan.roles} {plan.phases}"
    )


@pytest.mark.parametrize(
    ("stage", "family", "options", "more"),
    [
        ("supervised", "llava", LORA, {}),
        *(pytest.param(stage, "llava", LORA, {}, marks=slow) for stage in STAGES),
        pytest.param("supervised", "llava", {}, {}, marks=slow),
        pytest.param("reward", "llava", LORA, {"reads_tokens": True}, marks=slow),
        pytest.param("guard", "qwen2_5_vl", LORA, {"reads_tokens": True}, marks=slow),
        pytest.param("reward", "llava", {**LORA, "gradient_checkpointing": True}, {"accumulated": 2}, marks=slow),
        pytest.param("reward", "qwen2_5_vl", {**LORA, "dtype": "bfloat16"}, {"mixed": True}, marks=slow),
        pytest.param("supervised", "qwen2_5_vl", {"freeze_projector": False}, {"mixed": True}, marks=slow),
        pytest.param("cost", "llava", {}, {"packed": False}, marks=slow),
        pytest.param("supervised", "llava", {"freeze_tower": False, "freeze_projector": False}, {}, marks=slow),
        pytest.param("preference_optimisation", "qwen2_5_vl", {}, {}, marks=slow),
    ],
)
def test_a_stage_needs_what_was_planned(stage, family, options, more, folders, world, monkeypatch):
    words = 5000 if more.get("reads_tokens") else None  # an LM head that counts
    config = measured.config_of(folders[family], words=words)
    make = measured.backbone(folders[family], config, **options)
    module = partial(measured.stage_module, stage, make, more.get("reads_tokens", False))
    if more.get("packed") is False:
        module = partial(measured.CostModule, make, measured.COSTS, packed=False, optimizer=measured.ADAMW)
    precision = "bf16-mixed" if more.get("mixed") else "32-true"
    data = measured.stage_data(stage, world, 6)
    peak, shape = measured.run(module, data, monkeypatch, precision=precision, accumulate=more.get("accumulated", 1))
    pairs = stage != "supervised"
    given = measured.settings(stage, config, shape, options, batch=6, responses=2 if pairs else 1, **more)
    near(measured.planned(given), peak)


@pytest.mark.parametrize(
    ("shared", "samples", "micro", "critics", "options", "mixed"),
    [
        pytest.param(True, 1, 2, True, LORA, False, marks=slow),
        pytest.param(False, 1, None, True, LORA, False, marks=slow),
        pytest.param(True, 4, 1, False, {**LORA, "gradient_checkpointing": True}, False, marks=slow),
        pytest.param(False, 1, 2, True, {}, False, marks=slow),
        pytest.param(True, 2, None, True, {**LORA, "dtype": "bfloat16"}, True, marks=slow),
    ],
)
def test_a_policy_needs_what_was_planned(shared, samples, micro, critics, options, mixed, folders, world, monkeypatch):
    config = measured.config_of(folders["llava"])
    make = measured.backbone(folders["llava"], config, **options)
    roles, sources = measured.role_sources(make, shared)
    module = partial(measured.policy_module, make, roles, samples, micro, critics)
    precision = "bf16-mixed" if mixed else "32-true"
    data = measured.policy_data(world, 4)
    peak, shape = measured.run(module, data, monkeypatch, precision=precision, others=sources)
    given = measured.settings(
        "policy", config, shape, options, batch=4, responses=samples, micro_batch=micro, critics=critics,
        shared=shared, mixed=mixed, evaluated=4,
    )  # fmt: skip
    near(measured.planned(given), peak)
