"""Tokens that run in buffers of a fixed size, and as a CUDA graph, are those of the ordinary loop."""

from pathlib import Path

import pytest
import torch

from safe_rlhf_v.models import decoding_graph, sampling
from safe_rlhf_v.models.family_check import picture
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.records.batches import Prompts, to_device

TOKENS = 14
WINDOWED = {"gemma3"}
STATES = {"qwen3_5"}


def network(family: str, folder: Path, device: str = "cpu") -> HFVLM:
    vlm = HFVLM(model=str(write_tiny_vlm(family, folder)), lora=LoraSettings(r=2), self_test=False).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif parameter.dim() == 2:  # else every prompt is followed by the same tokens
                parameter.mul_(3)
    return vlm


def prompts() -> Prompts:
    """Ragged: left padding matters."""
    images = ((), (picture(40, 180, 1),), (picture(75, 60, 2), picture(48, 64, 3)))
    ids = tuple(tuple(f"{row}.{i}" for i in range(len(each))) for row, each in enumerate(images))
    return Prompts(images, ids, ("How do I feed a bear, and is that wise?", "Safe?", "Which of both is worse?"))


def draw(vlm: HFVLM, **options: object) -> Generation:
    return sample(vlm, prompts(), SamplingOptions(TOKENS, **options), torch.Generator().manual_seed(4), samples=3)


def assert_same(one: Generation, other: Generation) -> None:
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.finished, other.finished)
    torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the buffers that are made, on the CPU, three columns at a time."""
    made = []
    original = decoding_graph.FixedStep.__init__

    def note(self: decoding_graph.FixedStep, *args: object) -> None:
        original(self, *args)
        made.append(self.columns)

    monkeypatch.setattr(decoding_graph.FixedStep, "__init__", note)
    monkeypatch.setattr(decoding_graph, "COLUMNS", 3)
    monkeypatch.setattr(sampling, "FIXED_STEP_DEVICES", {"cpu"})
    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_fixed_buffers_change_nothing(family: str, temperature: float, tmp_path: Path, steps: list[int]) -> None:
    vlm = network(family, tmp_path)
    ordinary = draw(vlm, temperature=temperature, cuda_graphs=False)
    assert not steps
    assert_same(draw(vlm, temperature=temperature), ordinary)
    expected = 0 if family in WINDOWED | STATES else 5  # 14 tokens, of which the last is not read: 13 columns, by three
    assert len(steps) >= expected and (expected or not steps)


def test_rows_that_finish_are_dropped_when_most_have(
    tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = network("llava", tmp_path)
    direction = torch.randn(vlm.hidden_size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        vlm.lm_head.weight[vlm.eos_id] += direction
    ordinary = draw(vlm, cuda_graphs=False)
    rows_left = []
    keep = sampling._Running.keep

    def note(self: sampling._Running, index: torch.Tensor) -> None:
        rows_left.append(len(index))
        keep(self, index)

    monkeypatch.setattr(sampling._Running, "keep", note)
    assert_same(draw(vlm), ordinary)
    assert rows_left
    assert all(left < before / 2 for before, left in zip((9, *rows_left), rows_left, strict=False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_graph_gives_the_same_tokens(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_graph, "COLUMNS", 5)
    vlm = network(family, tmp_path, "cuda")
    for temperature in (0.0, 1.0):
        ordinary = draw(vlm, temperature=temperature, cuda_graphs=False)
        for _ in range(2):  # the second time with other memory
            assert_same(draw(vlm, temperature=temperature), ordinary)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_reads_adapters_that_have_learned_since(tmp_path: Path) -> None:
    vlm = network("qwen2_5_vl", tmp_path, "cuda")
    before = draw(vlm)
    with torch.autocast("cuda", torch.bfloat16):
        draw(vlm)
        loss = vlm.response_states(
            to_device(vlm.prepare(prompts(), [["a"]] * 3), "cuda"), log_probs=True
        ).log_probs.sum()
    loss.backward()  # sampling under autocast must not take gradients away
    adapters = [p for name, p in vlm.named_parameters() if "lora_" in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters if p.requires_grad)
    with torch.no_grad():
        for parameter in adapters:
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = draw(vlm)
    assert not torch.equal(before.tokens, after.tokens)
    assert_same(after, draw(vlm, cuda_graphs=False))
