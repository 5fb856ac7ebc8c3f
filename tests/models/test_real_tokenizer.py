"""The LLaVA-like backbone around a byte-pair tokenizer with a chat template, from a GGUF file that is written here."""

import pytest
import torch
from tests.models.test_gguf import write
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from safe_rlhf_v.commands.preflight import check_sources
from safe_rlhf_v.models import ClipDecoder, SavedClipDecoder
from safe_rlhf_v.models.clip_pair import ClipSettings, build_pair
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sources import check_source, load_tokenizer
from safe_rlhf_v.models.tower import Tower, TowerSettings
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts

CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOWER = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
PICTURE = torch.randint(0, 255, (40, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def add_tokenizer(writer, chat):
    """A byte-level tokenizer with a few merges, as files of GPT-2's kind keep it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("i", "s")]
    tokens = [*SPECIAL, *bytes_to_unicode().values(), *map("".join, merges)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if chat:
        writer.add_chat_template(chat)
    return len(tokens)


def write_model(folder):
    """A small model and its tokenizer in one quantised-format file, ``tiny.gguf``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256 + 4, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
    )  # fmt: skip
    write(LlamaForCausalLM(config).eval(), folder / "tiny.gguf", lambda writer: add_tokenizer(writer, CHAT))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def backbone(folder):
    torch.manual_seed(0)
    file = str(folder / "tiny.gguf")
    return ClipDecoder(file, TOWER, str(folder), gguf_file="tiny.gguf").eval()


def test_an_image_is_exactly_its_tokens(backbone):
    prompts = Prompts(((PICTURE,), (PICTURE, PICTURE)), (("a",), ("a", "a")), ("is <image> the end?<|im_end|>",) * 2)
    tokens, _ = backbone.prepare_prompts(prompts)
    p = backbone.image_shape[0]
    for ids, images in zip(tokens.ids, (1, 2), strict=True):
        assert ids.count(backbone.image_id) == images * p
        first = ids.index(backbone.image_id)
        assert ids[first : first + p] == [backbone.image_id] * p  # nothing between them
        assert ids.count(backbone.eos_id) == 2  # of the system text and the turn: none from the question


def test_a_prompt_without_image_is_the_models_own(backbone, folder):
    own = AutoTokenizer.from_pretrained(str(folder), gguf_file="tiny.gguf")
    talk = Context("be brief", (Turn("user", "is it?", 0), Turn("assistant", "the one")))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "is it?"},
                {"role": "assistant", "content": "the one"}, {"role": "user", "content": "the end?"}]  # fmt: skip
    prompts = Prompts(((), ()), ((), ()), ("the end?",) * 2, (Context(), talk))
    for ids, said in zip(backbone.prepare_prompts(prompts)[0].ids, (messages[-1:], messages), strict=True):
        assert ids == own.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert backbone.eos_id == own.convert_tokens_to_ids("<|im_end|>") not in backbone.banned_ids
    assert backbone.image_id in backbone.banned_ids


def test_a_template_of_the_user_has_nothing_between_image_tokens_either(folder):
    file = str(folder / "tiny.gguf")
    model = ClipDecoder(file, TOWER, str(folder), gguf_file="tiny.gguf", template="{question}\n<image>\nIt is")
    ids = model.prepare_prompts(Prompts(((PICTURE,),), (("a",),), ("the",)))[0].ids[0]
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    p = model.image_shape[0]
    assert ids == [*encode("the"), *encode("\n"), *[model.image_id] * p, *encode("\nIt is")]


def test_a_gguf_decoder_is_saved_and_is_a_base_for_adapters(backbone, tmp_path):
    backbone.save_pretrained(tmp_path)
    saved = SavedClipDecoder(str(tmp_path), lora=LoraSettings(r=2)).eval()
    prepared = backbone.prepare(
        Prompts(((PICTURE,), ()), (("a",), ()), ("is it?", "the?")), [("the", "is"), ("he", "t")]
    )
    with torch.no_grad():
        before = backbone.response_states(prepared, log_probs=True).log_probs
        assert torch.equal(saved.response_states(prepared, log_probs=True).log_probs, before)
    assert (saved.eos_id, saved.banned_ids) == (backbone.eos_id, backbone.banned_ids)


def test_two_builds_give_the_new_placeholder_the_same_row(backbone, folder):
    torch.manual_seed(5)
    again = ClipDecoder(str(folder / "tiny.gguf"), TOWER, str(folder), gguf_file="tiny.gguf")
    rows = [model.decoder.get_input_embeddings().weight[model.image_id] for model in (backbone, again)]
    assert torch.equal(*rows)


def test_a_gguf_tokenizer_passes_the_look_before_a_training(folder, tmp_path):
    check_source("tokenizer", str(folder / "tiny.gguf"))
    with pytest.raises(ValueError, match=r"tokenizer .*none\.gguf: no such file"):
        check_source("tokenizer", str(tmp_path / "none.gguf"))
    with pytest.raises(ValueError, match=r"processor .*tiny\.gguf: not a folder"):
        check_source("processor", str(folder / "tiny.gguf"))


def test_a_missing_or_broken_gguf_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer .*none\.gguf: no such file"):
        load_tokenizer(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF no")
    with pytest.raises(ValueError, match=r"tokenizer .*bad\.gguf: cannot be read"):
        load_tokenizer(str(tmp_path / "bad.gguf"))


def test_a_run_is_not_refused_for_a_tokenizer_or_a_decoder_of_a_gguf_file(folder):
    options = {"tokenizer": str(folder / "tiny.gguf"), "decoder": str(folder), "gguf_file": "tiny.gguf"}
    check_sources({"backbone": {"init_args": options}})
    with pytest.raises(ValueError, match=r"decoder .*tiny\.gguf: not a folder"):
        check_sources({"backbone": {"init_args": {**options, "decoder": str(folder / "tiny.gguf")}}})


def test_weights_without_the_name_of_their_network_are_refused():
    with pytest.raises(ValueError, match=r"tower\.pretrained openai: .*tower\.name"):
        Tower(TowerSettings(pretrained="openai", vision_cfg=dict(TOWER.vision_cfg)))
    with pytest.raises(ValueError, match=r"clip\.pretrained openai: .*clip\.name"):
        build_pair(ClipSettings(pretrained="openai"), AutoTokenizer)
    with pytest.raises(ValueError, match=r"tower\.weights x\.pth: needs vision_cfg\.timm_model_name"):
        Tower(TowerSettings(weights="x.pth", vision_cfg=dict(TOWER.vision_cfg)))


def test_a_timm_tower_takes_weights_in_their_order_and_its_own_pixels(tmp_path):
    import timm

    name = "tf_efficientnet_lite0"
    torch.manual_seed(3)
    network = timm.create_model(name).eval()
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(own) == 247
    renamed = {f"layer.{i}": value for i, value in enumerate(own.values())}
    torch.save(renamed, tmp_path / "w.pth")
    settings = {"vision_cfg": {"timm_model_name": name, "image_size": 64}, "level": -1}
    tower = Tower(TowerSettings(**settings, weights=str(tmp_path / "w.pth"))).eval()
    assert tower.shape == (4, 320)
    assert tower.mean.flatten().tolist() == [127.5] * 3 and tower.std.flatten().tolist() == [127.5] * 3
    pixels = torch.stack([PICTURE[:, :40]])[:, :32, :32].repeat(1, 2, 2, 1)
    x = (pixels.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    with torch.no_grad():
        expected = network.forward_intermediates(x, indices=[-1], intermediates_only=True)[0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(tower(pixels), expected)
    for change, message in (
        (lambda d: d.pop("layer.5"), "holds 246 tensors"),
        (lambda d: d.update({"layer.0": torch.zeros(2)}), r"conv_stem.weight is \(2,\)"),
        (lambda d: d["layer.0"].fill_(float("nan")), "NaN"),
        (lambda d: d.update({"layer.0": "text"}), "not a file of named tensors"),
    ):
        other = {key: value.clone() for key, value in renamed.items()}
        change(other)
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=message):
            Tower(TowerSettings(**settings, weights=str(tmp_path / "other.pth")))
