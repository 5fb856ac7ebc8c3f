"""The measurement of a policy step on a GPU, in small on the CPU, and its count of necessary work by hand."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.benchmarks.scripts import BENCHMARKS, importable


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    with importable(BENCHMARKS) as load:
        yield load("gpu")


def test_linear_weights_are_those_the_makers_state(gpu: Any) -> None:
    """Qwen2.5-7B: 6.53 B parameters without embeddings (arXiv 2412.15115, model card). Llama-7B: 6.74 B, less 0.26 B of them."""
    qwen = gpu.KNOWN[gpu.NAMES["qwen2_5_vl"]]["text_config"]
    assert gpu.linear_weights(SimpleNamespace(**qwen), 128) == pytest.approx(6.53e9, rel=2e-3)
    llama = gpu.KNOWN[gpu.NAMES["llava"]]["text_config"]
    assert gpu.linear_weights(SimpleNamespace(**llama), 128) == pytest.approx(6.74e9 - 2 * 32000 * 4096, rel=2e-3)


def test_phases_within_phases_are_counted_once(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = gpu.Phases(SimpleNamespace(type="cpu"))
    ticks = iter([0.0, 1.0, 4.0, 10.0])  # outer starts, inner starts, inner ends, outer ends
    monkeypatch.setattr(phases, "now", lambda: next(ticks))
    with phases.phase("outer"), phases.phase("inner"):
        pass
    assert dict(phases.seconds) == {"outer": 7.0, "inner": 3.0}


@pytest.mark.slow
def test_a_tiny_case_of_each_kind(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    cases = ("qwen2_5_vl_k4", "llava_k1")
    line = [
        sys.executable,
        str(BENCHMARKS / "gpu.py"),
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--cases",
    ]
    subprocess.run([*line, *cases], check=True, capture_output=True)
    report = json.loads(out.read_text())
    assert set(report["cases"]) == set(cases)
    assert set(report["attention_ms"]) == {"masked", "rows"}
    for name, found in report["cases"].items():
        critics = name.endswith("k1")
        assert ("critics" in found["seconds"]) == ("critics" in found["operations"]) == critics
        assert min(found["seconds"].values()) >= 0
        assert found["seconds_per_response"] == pytest.approx(sum(found["seconds"].values()) / 4, abs=1e-3)
        assert found["operations"]["actor"] > 2 * found["operations"]["reference"]
