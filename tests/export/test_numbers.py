"""An exported folder says in a process without this library what the run's own model says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.conftest import OwnWords, strangers_words
from tests.shared_runs import train, vlm

from safe_rlhf_v.commands.export import export

FLOAT32 = {"atol": 1e-5, "rtol": 1e-5}
HALF = {"atol": 0.05, "rtol": 0.05}
"""Of random networks with values of about 1."""


def close(ours: Any, theirs: Any, **bounds: float) -> None:
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), **bounds)


def same_verdicts(ours: Any, theirs: Any, **bounds: float) -> None:
    for mine, strangers in zip(ours, theirs, strict=True):
        close([one["levels"] for one in mine], [list(one["levels"].values()) for one in strangers], **bounds)
        for name in ("harm", "prompt_risk"):
            close([one[name] for one in mine], [one[name] for one in strangers], **bounds)


@pytest.mark.slow
def test_a_family_and_the_quickstarts_models(
    family_runs: Callable[..., Path], policy_stages: Path, guard_run: Path, tmp_path: Path
) -> None:
    """Policy and cost of a Hugging Face model; a policy that responds, evidence heads and a guard of the LLaVA-like one."""
    home = family_runs("llava", "policy", "cost")
    base = str(home / "base")
    done = {kind: export(home / kind, tmp_path / f"llava-{kind}", base=base) for kind in ("policy", "cost")}
    assert all(one.difference is not None and one.difference < 1e-5 for one in done.values())
    runs = {
        "responds": policy_stages / "supervised", "reward": policy_stages / "reward",
        "cost": policy_stages / "cost", "guard": guard_run,
    }  # fmt: skip
    jobs = [
        {"folder": str(done["policy"].path), "kind": "hugging face"},
        {"folder": str(done["cost"].path), "kind": "cost"},
        *({"folder": str(export(run, tmp_path / kind, check=False).path), "kind": kind} for kind, run in runs.items()),
    ]
    tokens, scores, responses, reward, cost, guard = strangers_words(*jobs)
    own = OwnWords(home / "policy", home / "base")
    close(own.next_tokens(), tokens, **FLOAT32)
    close(OwnWords(home / "cost", home / "base").scores(), scores, **FLOAT32)
    own.backbone.load_state_dict(  # the training made a difference that these bounds see
        {name: value * (0 if "lora_B" in name else 1) for name, value in own.backbone.state_dict().items()}
    )
    with pytest.raises(AssertionError):
        close(own.next_tokens(), tokens, **FLOAT32)
    assert responses == OwnWords(runs["responds"]).responses()
    close(OwnWords(runs["reward"]).scores(), reward, **FLOAT32)
    close(OwnWords(runs["cost"]).scores(), cost, **FLOAT32)
    same_verdicts(OwnWords(guard_run).verdicts(), guard, **FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_kind_of_two_families(family: str, family_runs: Callable[..., Path], tmp_path: Path) -> None:
    kinds = ("policy", "reward", "cost", "guard")
    home = family_runs(family, *kinds)
    base = str(home / "base")
    jobs: list[dict[str, Any]] = []
    for kind in kinds:
        for dtype in (None, "bfloat16"):
            out = export(home / kind, tmp_path / f"{kind}-{dtype}", dtype=dtype, base=base, check=False).path
            jobs.append({"folder": str(out), "kind": "hugging face" if kind == "policy" else kind})
    out = export(home / "policy", tmp_path / "adapter", adapter=True, base=base, check=False).path
    jobs.append({"folder": str(out), "kind": "hugging face", "base": base})
    exact, rounded, reward, reward16, cost, cost16, guard, guard16, adapter = strangers_words(*jobs)
    own = {kind: OwnWords(home / kind, home / "base") for kind in kinds}
    tokens = own["policy"].next_tokens()
    close(tokens, exact, **FLOAT32)
    close(tokens, adapter, **FLOAT32)
    close(tokens, rounded, **HALF)
    for kind, plain, half in (("reward", reward, reward16), ("cost", cost, cost16)):
        close(own[kind].scores(), plain, **FLOAT32)
        close(own[kind].scores(), half, **HALF)
    same_verdicts(own["guard"].verdicts(), guard, **FLOAT32)
    same_verdicts(own["guard"].verdicts(), guard16, **HALF)


@pytest.mark.slow
def test_a_family_with_a_class_for_scores(family_runs: Callable[..., Path], tmp_path: Path) -> None:
    """The same numbers by ``AutoModelForSequenceClassification`` in one padded batch, and by the loader."""
    home = family_runs("gemma3", "cost")
    done = export(home / "cost", tmp_path / "cost", base=str(home / "base"), check=False)
    assert "AutoModelForSequenceClassification" in done.loads_with
    folder = str(done.path)
    classified, loaded = strangers_words({"folder": folder, "kind": "classifier"}, {"folder": folder, "kind": "cost"})
    ours = OwnWords(home / "cost", home / "base").scores()
    close(ours, loaded, **FLOAT32)
    close([[row[0], row[2]] for row in ours[: len(classified)]], classified, **FLOAT32)


@pytest.mark.slow
def test_a_policy_on_a_base_in_8_bits(family_runs: Callable[..., Path], world: Path, tmp_path: Path) -> None:
    """Merged, it is the numbers that the stored weights stand for; its adapter belongs to the base as it was stored."""
    pytest.importorskip("torchao")
    base = family_runs("llava") / "base"
    run = tmp_path / "run"
    train("SupervisedModule", world, run, vlm(base, quantization="torchao_int8"))
    merged = export(run, tmp_path / "merged", base=str(base))
    adapter = export(run, tmp_path / "adapter", adapter=True, base=str(base))
    assert merged.difference is not None and merged.difference < 1e-5
    assert adapter.difference is not None and adapter.difference < 1e-5
    assert r"torchao\_int8" in (tmp_path / "adapter" / "README.md").read_text()
