"""A base stored in 4 or 8 bits: adapters learn on it in float32, and what is saved is what was computed with."""

import copy
import importlib.util

import pytest
import torch

from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.quantization import quantization_config, quantized_layers
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.models.sharding import shard
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.policy.shared_roles import check_adapters
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.training.checkpoints import CheckpointError, fingerprint

LIBRARIES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao_int8": "torchao"}
KINDS = [
    pytest.param(
        kind, marks=pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")
    )
    for kind, library in LIBRARIES.items()
]
IMAGE = torch.randint(256, (28, 28, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PROMPTS = Prompts(((IMAGE,), ()), (("a",), ()), ("What is this?", "Is it safe to touch?"))
RESPONSES = (("a picture",), ("it is safe, and who could get hurt",))


@pytest.fixture(scope="module", params=["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory):
    return str(write_tiny_vlm(request.param, tmp_path_factory.mktemp("tiny") / request.param))


def build(folder, kind, **options):
    return HFVLM(folder, quantization=kind, lora=LoraSettings(r=4), **options)


def trained(backbone):
    """Adapters away from zero, by the gradient of a response's log-probability."""
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # A learns once B is no longer zero
        states = backbone.response_states(backbone.prepare(PROMPTS, RESPONSES), log_probs=True)
        optimizer.zero_grad()
        (-states.log_probs.mean()).backward()
        optimizer.step()
    return backbone


@torch.no_grad()
def log_probs(backbone):
    return backbone.eval().response_states(backbone.prepare(PROMPTS, RESPONSES), log_probs=True).log_probs


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_blocks_of_the_language_model_are_stored_in_few_bits(folder, kind):
    backbone = build(folder, kind)
    layers = quantized_layers(backbone)
    assert len(layers) == 2 * 7  # layers x projections
    assert all("language_model" in name for name in layers)
    assert isinstance(backbone.lm_head, torch.nn.Linear)
    assert backbone.lm_head.weight.dtype == torch.float32
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_learns_and_the_base_stays(folder, kind):
    backbone = build(folder, kind)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained(backbone)
    for name, value in backbone.state_dict().items():
        changed = not torch.equal(_numbers(value), _numbers(before[name]))
        assert changed == ("lora_" in name), name


def _numbers(value):
    return value.dequantize() if type(value).__module__.startswith("torchao.") else value


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_computes_the_same(folder, kind, tmp_path):
    backbone = trained(build(folder, kind))
    sample(backbone, PROMPTS, SamplingOptions(4))  # evaluation must not change how weights are stored
    expected = log_probs(backbone)
    backbone.save_pretrained(tmp_path)
    plain = HFVLM(str(tmp_path))
    assert not quantized_layers(plain)
    error = 0.05 if kind == "int8" else 1e-5  # int8 of bitsandbytes also rounds the layers' inputs
    torch.testing.assert_close(log_probs(plain), expected, rtol=0, atol=error)
    assert (log_probs(HFVLM(folder)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_its_row_in_a_batch(folder, kind):
    backbone = trained(build(folder, kind))
    both = log_probs(backbone)
    with torch.no_grad():
        for i in range(2):
            alone = backbone.response_states(backbone.prepare(PROMPTS.take([i]), RESPONSES[i : i + 1]), log_probs=True)
            width = alone.log_probs.shape[1]
            torch.testing.assert_close(
                alone.log_probs[0], both[i, :width], rtol=1e-4, atol=2e-3 if kind == "int8" else 1e-5
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_names_parameters_only_and_loads_again(folder, kind):
    backbone = trained(build(folder, kind))
    expected = log_probs(backbone)
    names = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in backbone.named_buffers()}
    adapters = {name: value for name, value in backbone.state_dict().items() if "lora_" in name}
    assert set(backbone.state_dict()) <= names | buffers
    again = build(folder, kind)
    again.load_state_dict(adapters, strict=False)
    torch.testing.assert_close(log_probs(again), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_probs(copy.deepcopy(backbone)), expected, rtol=0, atol=1e-6)  # as a frozen reference


@pytest.mark.parametrize("kind", KINDS)
def test_roles_share_a_base_only_if_it_is_stored_alike(folder, kind):
    stored, plain = build(folder, kind), HFVLM(folder, lora=LoraSettings(r=4))
    assert fingerprint(stored)["lora"] == f"r 4, alpha 32, on {kind}"
    assert fingerprint(plain)["lora"] == "r 4, alpha 32"
    stage = {"file": "a run", "state_dict": {f"backbone.{k}": v for k, v in stored.state_dict().items()}, "rebuilt": []}
    with pytest.raises(CheckpointError, match=f"a run: its lora is .* on {kind}"):
        check_adapters({**stage, "fingerprint": fingerprint(stored)}, plain, fingerprint(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_sharding_is_refused(folder, kind):
    class Mesh(dict):
        def size(self):
            return 1

    with pytest.raises(ValueError, match="quantised weights are not sharded"):
        shard(build(folder, kind), Mesh(tensor_parallel=Mesh(), data_parallel=Mesh()))


def test_without_adapters_it_is_refused(folder):
    with pytest.raises(ValueError, match=r"quantization nf4 .* give lora settings"):
        HFVLM(folder, quantization="nf4")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind, library in LIBRARIES.items():
        with pytest.raises(ValueError, match=rf"needs {library}: pip install '\.\[quantization\]'"):
            quantization_config(kind, [], torch.float32)
