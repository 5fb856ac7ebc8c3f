"""Tokens that run in buffers of a fixed size, and as a CUDA graph, are those of the ordinary loop."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from safe_rlhf_v.models import decoding_graph, sampling
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.cache import decoding_cache
from safe_rlhf_v.models.decoding_graph import FixedStep, Waits, fixed_step_works
from safe_rlhf_v.models.family_check import picture
from safe_rlhf_v.models.hf_families import cache_arguments
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


DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
SHAPES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@pytest.mark.parametrize("kind", list(DECODERS))
def test_decoders_run_in_fixed_buffers_where_that_changes_nothing(kind: str) -> None:
    """Some count positions from the width of the cache, or take no mask for each query."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES | DECODERS[kind])).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    stub = SimpleNamespace(language_model=decoder.base_model, lm_head=decoder.get_output_embeddings(), packs=True)
    stub.context_length = None
    works = fixed_step_works(cast(Backbone, stub), decoding_cache(4))
    assert works == (kind in ("llama", "gpt_neox"))
    if not works:
        return

    def trunk(tokens: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, *rest: Any) -> torch.Tensor:
        options = {"position_ids": places, **cache_arguments(decoder.base_model, rest[-1])}
        states: torch.Tensor = decoder.base_model(input_ids=tokens, attention_mask=mask, **options).last_hidden_state
        return states

    stub.trunk = trunk
    tokens = torch.randint(64, (2, 11))
    seen = torch.ones(2, 11, dtype=torch.bool)
    seen[0, :3] = False
    places = (seen.long().cumsum(1) - 1).clamp(min=0)
    expected = trunk(tokens, seen.long(), places, None)[:, 7:]
    cache = decoding_cache(4)
    trunk(tokens[:, :7], seen[:, :7].long(), places[:, :7], cache)
    step = FixedStep(cast(Backbone, stub), cache, seen, places[:, 7:8], 7)
    states = torch.stack([step(tokens[:, i]).clone() for i in range(7, 11)], 1)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_heeds_no_mask_for_each_query_samples_without_fixed_buffers(
    tmp_path: Path, steps: list[int]
) -> None:
    vlm = network("llava", tmp_path)
    vlm.packs = False  # the self-test of the family found it
    ordinary = draw(vlm, cuda_graphs=False)
    assert_same(draw(vlm), ordinary)
    assert not steps


@pytest.mark.parametrize("fixed", [True, False])
def test_finished_rows_that_still_run_stay_within_the_positions(
    fixed: bool, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest prompt has room for two tokens and the shortest for more: a table of positions would be left."""
    vlm = network("llava", tmp_path)
    vlm.banned_ids = (*vlm.banned_ids, vlm.eos_id)
    lengths = [len(ids) for ids in vlm.prepare_prompts(prompts())[0].ids]
    vlm.context_length = max(lengths) + 2
    monkeypatch.setattr(sampling, "STEPS_BETWEEN_CHECKS", {"cpu": 4})
    monkeypatch.setattr(sampling._Running, "worth_dropping", lambda self, count: False)
    largest = []
    trunk = vlm.trunk

    def note(ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, *rest: Any) -> torch.Tensor:
        largest.append(int(places.max()))
        return trunk(ids, mask, places, *rest)

    monkeypatch.setattr(vlm, "trunk", note)
    responses = draw(vlm, cuda_graphs=fixed)
    assert responses.mask.sum(1).tolist() == [min(TOKENS, max(lengths) + 2 - n) for n in lengths for _ in range(3)]
    assert max(largest) == vlm.context_length - 1
    assert bool(steps) == fixed


def test_waiting_is_noted_and_other_warnings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int | str] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with Waits() as waits:
        pass
    assert not waits.seen
    with pytest.warns(UserWarning, match="another"), Waits() as waits:
        warnings.warn("another", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation (Triggered internally ...)", stacklevel=1)
    assert waits.seen
    with pytest.raises(RuntimeError, match="of the network"), Waits():
        raise RuntimeError("of the network")
    assert modes == ["warn", 0] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_that_waits_runs_without_a_graph(tmp_path: Path) -> None:
    vlm = network("llava", tmp_path, "cuda")

    def wait(*_: object) -> None:
        torch.ones(1, device="cuda").item()

    vlm.language_model.register_forward_pre_hook(wait)
    assert_same(draw(vlm), draw(vlm, cuda_graphs=False))


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
