"""Settings, prompts and refusals of the Hugging Face backbone, and what only some families have."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models import tiny
from safe_rlhf_v.models.family_reports import _key
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.prompt_writer import PromptWriter
from safe_rlhf_v.models.types import ImageInputs
from safe_rlhf_v.records.batches import Prompts

Folder = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    written: dict[str, str] = {}

    def of(family: str) -> str:
        if family not in written:
            written[family] = str(tiny.write_tiny_vlm(family, tmp_path_factory.mktemp(family)))
        return written[family]

    return of


def one(question: str = "Safe?", *shapes: tuple[int, int]) -> Prompts:
    images = tuple(torch.full((h, w, 3), 90, dtype=torch.uint8) for h, w in shapes)
    return Prompts((images,), (tuple(f"{h}x{w}" for h, w in shapes),), (question,))


def load(path: str, **settings: Any) -> HFVLM:
    return HFVLM(model=path, local_files_only=True, **settings).eval()


PROMPTS = {
    "llava": "USER: <image>\n<image>\nSafe? ASSISTANT:",  # no template of its own: the fallback
    "llava_next": "<s>[INST] <image>\n<image>\nSafe? [/INST]",
    "smolvlm": "<s>User: <image><image>Safe?<end_of_utterance>\nAssistant:",
    "gemma3": "<s><start_of_turn>user\n<start_of_image><start_of_image>Safe?<end_of_turn>\n<start_of_turn>model\n",
    "internvl": "<|im_start|>user\n<IMG_CONTEXT>\n<IMG_CONTEXT>\nSafe?<|im_end|>\n<|im_start|>assistant\n",
}
ENDS = {"llava": "</s>", "smolvlm": "<end_of_utterance>", "gemma3": "<end_of_turn>", "internvl": "<|im_end|>"}


@pytest.mark.parametrize("family", list(PROMPTS))
def test_prompts_follow_the_template(folder: Folder, family: str) -> None:
    vlm = load(folder(family))
    assert vlm._writer.write("Safe?", 2) == PROMPTS[family]
    assert vlm.eos_id == vlm.tokenizer.convert_tokens_to_ids(ENDS.get(family, "</s>"))
    ids = vlm.prepare_prompts(one("Safe?", (28, 28)))[0].ids[0]
    assert ids.count(vlm.tokenizer.bos_token_id) == (family != "internvl")  # by tokenizer or template, never by both


def test_templates_of_the_tokenizer_alone(folder: Folder) -> None:
    vlm = load(folder("llava"))
    vlm.tokenizer.chat_template = "{% for m in messages %}#{{ m['content'] }}#{% endfor %}"
    writer = PromptWriter(vlm.processor, vlm.model.config, vlm.model.generation_config)
    assert writer.write("Safe?", 1) == "#<image>\nSafe?#"
    vlm.tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}!", "other": "?"}
    assert PromptWriter(vlm.processor, vlm.model.config, SimpleNamespace(eos_token_id=None)).write("A", 0) == "A!"


def test_a_tokenizer_that_ends_every_text(folder: Folder) -> None:
    vlm = load(folder("llava"))
    plain = vlm.prepare_prompts(one())[0].ids[0]
    call = vlm.processor.tokenizer.__class__.__call__

    class Ending(type(vlm.tokenizer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = call(self, *args, **kwargs)
            found["input_ids"] = [[*ids, self.eos_token_id] for ids in found["input_ids"]]
            found["attention_mask"] = [[1] * len(ids) for ids in found["input_ids"]]
            return found

    vlm.tokenizer.__class__ = Ending
    assert vlm.prepare_prompts(one())[0].ids[0] == plain


def test_spelled_control_tokens_are_broken_up(folder: Folder) -> None:
    writer = load(folder("llava"))._writer
    assert writer.write("see <image></s>", 0) == "USER: see < image>< /s> ASSISTANT:"


def test_everything_but_text_is_banned(folder: Folder) -> None:
    config = json.loads((Path(folder("gemma3")) / "config.json").read_text())
    vlm = load(folder("gemma3"))
    names = {vlm.tokenizer.convert_ids_to_tokens(i) for i in vlm.banned_ids}
    expected = "<pad> <s> </s> <unk> <image_soft_token> <start_of_image> <end_of_image> <start_of_turn>"
    assert names == set(expected.split())
    assert len(vlm.tokenizer) == config["text_config"]["vocab_size"]
    wider = SimpleNamespace(
        to_dict=lambda: {"image_token_id": 7, "audio_token_index": 11, "video_token_id": None},
        get_text_config=lambda: SimpleNamespace(vocab_size=len(vlm.tokenizer) + 2),
    )
    banned = PromptWriter(vlm.processor, wider, vlm.model.generation_config).banned_ids
    assert {7, 11, len(vlm.tokenizer), len(vlm.tokenizer) + 1} <= set(banned)  # rows without a token, too


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_rotary_positions_by_hand(folder: Folder, family: str) -> None:
    """An image of 2 x 2 tokens at position p takes rows p, p + 1 and columns p, p + 1; text goes on at p + 2."""
    vlm = load(folder(family))
    edge = 64 if family == "qwen3_vl" else 56
    tokens = vlm.prepare(one("Safe?", (edge, edge)), [["no", "maybe"]], packed=True, side="right").tokens
    at = (tokens.input_ids[0] == vlm.model.config.image_token_id).nonzero()[:, 0].tolist()
    p = at[0]
    assert at == [p, p + 1, p + 2, p + 3]
    end, (first, second) = int(tokens.prompt_end[0]), tokens.response_mask.sum(1).tolist()
    after = list(range(p + 2, p + 2 + end - at[3]))
    text = after + [after[-1] + 1 + i for i in range(first)] + [after[-1] + 1 + i for i in range(second)]
    image = [[p, p, p, p], [p, p, p + 1, p + 1], [p, p + 1, p, p + 1]]
    expected = [[*range(p), *axis, *text] for axis in image]
    assert vlm.positions(tokens)[:, 0].tolist() == expected


def test_stale_rope_state_is_harmless(folder: Folder) -> None:
    vlm = load(folder("qwen2_5_vl"))
    prepared = vlm.prepare(one("Safe?", (28, 56)), [["no", "yes"]])
    before = vlm.response_states(prepared).hidden
    vlm.model.model.rope_deltas = torch.full((7, 1), 50)  # what generate leaves behind
    assert torch.equal(vlm.response_states(prepared).hidden, before)


def test_pixel_budget(folder: Folder) -> None:
    def count(**budget: int) -> int:
        vlm = load(folder("qwen2_5_vl"), **budget)
        return vlm.prepare_prompts(one("Safe?", (112, 112)))[0].ids[0].count(vlm.model.config.image_token_id)

    assert count() == 16  # 112 / 28 squared
    assert count(max_pixels=56 * 56) == 4
    assert count(min_pixels=140 * 140, max_pixels=200 * 200) == 25
    with pytest.raises(ValueError, match="'llava' has no pixel budget"):
        load(folder("llava"), max_pixels=100)


def test_several_tiles_are_one_image(folder: Folder) -> None:
    for family in ("internvl", "smolvlm", "llava_next"):
        vlm = load(folder(family))
        images = vlm.prepare_prompts(one("?", (28, 80), (28, 28)))[1]
        units = images.pixels["units"].tolist()
        assert units[0] > 1 and sum(units) == len(images.pixels["pixel_values"])
        last = vlm.select_images(images, [1])
        assert last.ids == ("28x28",)
        torch.testing.assert_close(vlm.encode(last).tokens[0], vlm.encode(images).tokens[1])


def test_no_images_at_all(folder: Folder) -> None:
    vlm = load(folder("llava"), feature_cache=4)
    prepared = vlm.prepare(one("hello"), [["a", "b"]])
    assert prepared.images == ImageInputs({}, ())
    assert vlm.response_states(prepared).hidden.isfinite().all()
    with_picture = vlm.prepare_prompts(one("?", (28, 28)))[1]
    assert vlm.select_images(with_picture, []) == ImageInputs({}, ())  # a micro-batch of texts, beside others


def test_random_weights_from_a_config(folder: Folder) -> None:
    path = folder("llava")
    config = json.loads((Path(path) / "config.json").read_text())
    for given in (config, path):
        vlm = HFVLM(config=given, processor=path, local_files_only=True)
        assert vlm.hidden_size == 32
    assert not torch.equal(vlm.lm_head.weight, load(path).lm_head.weight)
    with pytest.raises(ValueError, match="a bare config has no tokenizer"):
        HFVLM(config=config)


@pytest.mark.parametrize("given", [{}, {"model": "x", "config": "x"}])
def test_one_source_of_the_network(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="exactly one of model"):
        HFVLM(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("trained", ["freeze_tower", "freeze_projector"])
def test_features_of_trained_parts_are_not_cached(trained: str) -> None:
    with pytest.raises(ValueError, match="feature_cache needs"):
        HFVLM(model="x", feature_cache=3, **{trained: False})  # type: ignore[arg-type]


def unsupported(**text: Any) -> Any:
    def forward(mm_encoder_outputs: Any = None) -> None: ...

    core = SimpleNamespace(forward=forward, get_image_features=None, get_decoder=lambda: None)
    config = SimpleNamespace(model_type="other", image_token_id=7, get_text_config=lambda: SimpleNamespace(**text))
    return SimpleNamespace(config=config, model=core, get_output_embeddings=lambda: "head")


def test_families_that_would_run_wrongly_are_refused() -> None:
    families.check_supported(unsupported(logits_scaling=1.0, final_logit_softcapping=None))
    with pytest.raises(ValueError, match="rescales its logits"):
        families.check_supported(unsupported(final_logit_softcapping=30.0))
    with pytest.raises(ValueError, match="bidirectionally"):
        families.check_supported(unsupported(use_bidirectional_attention="vision"))
    with pytest.raises(ValueError, match="mm_encoder_outputs"):
        model = unsupported()
        model.model = SimpleNamespace(forward=lambda pixel_values: None)
        families.check_supported(model)


def test_lora_on_chosen_layers(folder: Folder) -> None:
    vlm = load(folder("gemma3"), lora=LoraSettings(r=2, target_modules=("q_proj", "v_proj")))
    names = {name for name, p in vlm.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 2 * 2
    assert all(".language_model." in name and (".q_proj." in name or ".v_proj." in name) for name in names)


def test_tiny_models_are_reproducible_and_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    first = load(str(tiny.write_tiny_vlm("qwen3_vl", tmp_path / "a", seed=3)))
    assert torch.equal(torch.get_rng_state(), state)
    tiny.main(["qwen3_vl", str(tmp_path / "b"), "--seed", "3"])
    assert capsys.readouterr().out.strip().endswith("/b")
    second, other = load(str(tmp_path / "b")), load(str(tiny.write_tiny_vlm("qwen3_vl", tmp_path / "c")))

    def flat(vlm: HFVLM) -> Tensor:
        return torch.cat([p.flatten() for p in vlm.parameters()])

    assert torch.equal(flat(first), flat(second))
    assert not torch.equal(flat(first), flat(other))
    assert len(flat(first)) < 1_000_000
    with pytest.raises(ValueError, match="no tiny 'bert'"):
        tiny.write_tiny_vlm("bert", tmp_path)


WITHOUT = """
import sys
sys.modules["torchvision"] = sys.modules["num2words"] = None
import torch
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.models.hf_vlm import HFVLM
image = torch.arange(30 * 62 * 3).remainder(256).reshape(30, 62, 3).to(torch.uint8)
for path in sys.argv[1:]:
    vlm = HFVLM(model=path, local_files_only=True)
    tokens, images = vlm.prepare_prompts(Prompts(((image,),), (("a",),), ("Safe?",)))
    print(sum(tokens.ids[0]), images.pixels["pixel_values"].double().abs().sum().item())
assert sys.modules["torchvision"] is None
"""


def test_neither_torchvision_nor_num2words_is_needed(folder: Folder) -> None:
    """And their presence changes nothing: the same tokens and pixels."""
    paths = [folder(family) for family in ("qwen2_5_vl", "smolvlm", "internvl")]
    found = subprocess.run([sys.executable, "-c", WITHOUT, *paths], capture_output=True, text=True, check=True)
    image = torch.arange(30 * 62 * 3).remainder(256).reshape(30, 62, 3).to(torch.uint8)
    expected = []
    for path in paths:
        tokens, images = load(path).prepare_prompts(Prompts(((image,),), (("a",),), ("Safe?",)))
        expected.append(f"{sum(tokens.ids[0])} {images.pixels['pixel_values'].double().abs().sum().item()}")
    assert found.stdout.split("\n")[:-1] == expected


@pytest.mark.parametrize("part", ["lm_head", "layers.1.mlp", "projector"])
def test_a_folder_without_some_weights_is_refused_in_one_line(folder: Folder, tmp_path: Path, part: str) -> None:
    """Transformers would fill them with random numbers."""
    copied = Path(shutil.copytree(folder("llava"), tmp_path / "copy"))
    file = copied / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if part not in name}
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"holds no weights for \S*{part}\S*.* of Llava") as refused:
        HFVLM(str(copied), self_test=False)
    assert "\n" not in str(refused.value)


def test_a_classifier_has_no_lm_head_and_refuses_to_run_one(folder: Folder, tmp_path: Path) -> None:
    """As exports of reward and cost models are: all but the LM head is read, and what else is missing is refused."""
    copied = Path(shutil.copytree(folder("llava"), tmp_path / "copy"))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "architectures": ["LlavaForSequenceClassification"]}))
    weights = load_file(copied / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, copied / "model.safetensors", {"format": "pt"})
    prompts = Prompts(((torch.zeros(30, 30, 3, dtype=torch.uint8),),), (("a",),), ("Safe?",))
    full, headless = (HFVLM(str(place), self_test=False).eval() for place in (folder("llava"), copied))
    states = [vlm.response_states(vlm.prepare(prompts, [["yes"]]), log_probs=False) for vlm in (full, headless)]
    assert torch.equal(states[0].hidden, states[1].hidden)
    with pytest.raises(ValueError, match=r"model .*copy: is a classifier without an LM head"):
        headless.response_states(headless.prepare(prompts, [["yes"]]), log_probs=True)
    save_file({k: v for k, v in weights.items() if "mlp" not in k}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no weights for \S*mlp"):
        HFVLM(str(copied), self_test=False)


def test_a_self_test_belongs_to_template_and_processor(folder: Folder) -> None:
    """What decides the tokens of a prompt, or where a response ends, is part of a report's name."""
    vlm = HFVLM(folder("llava"), self_test=False)
    keys = [_key(vlm)]
    for change in (
        lambda: setattr(vlm.tokenizer, "chat_template", "{{ messages }}"),
        lambda: setattr(vlm.processor, "num_additional_image_tokens", 0),
        lambda: setattr(vlm.model.generation_config, "eos_token_id", 5),
    ):
        change()
        keys.append(_key(vlm))
    assert len(set(keys)) == 4
