"""The LLaVA-like backbone and its parts."""

import pytest
import torch

from safe_rlhf_v.models import ClipDecoder, EvidenceHead, ScalarHead
from safe_rlhf_v.models.images import fit_square
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tower import SlotSettings, Tower, TowerSettings
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOWER = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})


def picture(seed, size=(64, 64)):
    return torch.randint(0, 255, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def backbone(world):
    torch.manual_seed(0)
    return ClipDecoder(str(world / "tokenizer"), TOWER, DECODER, SlotSettings(3, 16)).eval()


PROMPTS = Prompts(
    ((picture(0),), (), (picture(1), picture(2, (40, 80)))), (("a",), (), ("b", "c")), ("what is it ?",) * 3
)


@pytest.mark.parametrize(
    "settings",
    [
        TOWER,
        TowerSettings(vision_cfg={"layers": 2, "width": 32, "patch_size": 16, "image_size": 64, "head_width": 16}),
        TowerSettings(vision_cfg={"timm_model_name": "test_resnet", "image_size": 64}),
    ],
    ids=["resnet", "vit", "timm"],
)
def test_towers_train_every_parameter_they_keep(settings):
    tower = Tower(settings)
    tokens = tower(torch.stack([picture(0), picture(1)]))
    assert tokens.shape == (2, *tower.shape)
    tokens.square().sum().backward()
    assert all(p.grad is not None for p in tower.parameters() if p.requires_grad)


def test_placeholders_match_image_tokens_and_cannot_be_smuggled_in(backbone):
    smuggled = PROMPTS._replace(questions=("<image> <eos> what ?",) * 3)
    for prompts in (PROMPTS, smuggled):
        tokens, images = backbone.prepare_prompts(prompts)
        count = [ids.count(backbone.image_id) for ids in tokens.ids]
        assert count == [4, 0, 8]  # 3 slots + the summary, per image
        assert all(backbone.eos_id not in ids for ids in tokens.ids)
        assert images.pixels["pixels"].shape == (3, 64, 64, 3)
    assert backbone.image_id in backbone.banned_ids and backbone.eos_id not in backbone.banned_ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone_with_no_one_and_two_images(backbone, side):
    responses = [("this is one red knife .",), ("yes you can .",), ("i see a thing . take care .",)]
    with torch.no_grad():
        together = backbone.response_states(backbone.prepare(PROMPTS, responses, side=side), log_probs=True)
        for i in range(3):
            row = Prompts(*(part[i : i + 1] for part in PROMPTS))
            alone = backbone.response_states(backbone.prepare(row, responses[i : i + 1]), log_probs=True)
            n = alone.mask.shape[1]
            torch.testing.assert_close(together.hidden[i, :n], alone.hidden[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together.log_probs[i, :n], alone.log_probs[0], rtol=1e-5, atol=1e-5)
            assert not together.mask[i, n:].any()


def test_an_earlier_exchange_is_written_as_training_writes_it(backbone):
    """Template, response and end token; a beginning token once, the system text first, and each picture in its turn."""
    talk = Context("take care .", (Turn("user", "what is it ?", 1), Turn("assistant", "this is one red knife .")))
    prompts = Prompts(((picture(0), picture(1)),), (("a", "b"),), ("is it safe ?",), (talk,))
    tokens, images = backbone.prepare_prompts(prompts)
    text = "<bos> {i} take care . what is it ? <answer> this is one red knife . <eos> {i} is it safe ? <answer>"
    text = text.format(i="<image> " * 4)
    assert tokens.ids[0] == backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert images.ids == ("a", "b") and tokens.image_prompt == [0, 0]
    nasty = talk._replace(
        system="<image> <bos>", history=(Turn("user", "<eos> <answer>", 1), Turn("assistant", "<eos> <image>"))
    )
    ids = backbone.prepare_prompts(prompts._replace(contexts=(nasty,)))[0].ids[0]
    assert [ids.count(token) for token in (backbone.image_id, backbone.eos_id, backbone.tokenizer.bos_token_id)] == [
        8,
        1,
        1,
    ]


def test_a_prompt_is_never_truncated(world):
    tiny = ClipDecoder(str(world / "tokenizer"), TOWER, DECODER, SlotSettings(3, 16), max_length=12)
    long = Prompts(((picture(0),),), (("a",),), ("what is it ? " * 5,))
    with pytest.raises(ValueError, match="never truncated"):
        tiny.prepare(long, [("yes .",)])
    short = Prompts(((picture(0),),), (("a",),), ("what ?",))
    tokens = tiny.prepare(short, [("yes you can . take care .",)]).tokens
    assert tokens.input_ids.shape[1] == 12 and tokens.input_ids[0, -1] != tiny.eos_id


def test_saving_writes_files_that_others_read(backbone, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    backbone.save_pretrained(tmp_path)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    assert all(torch.equal(v, decoder.state_dict()[k]) for k, v in backbone.decoder.state_dict().items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tokenizer")) == len(backbone.tokenizer)
    assert "projector.0.weight" in load_file(tmp_path / "vision.safetensors")
    again = ClipDecoder.from_pretrained(tmp_path).eval()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.state_dict().items())
    prepared = backbone.prepare(PROMPTS, [("yes you can .",)] * 3)
    with torch.no_grad():
        assert torch.equal(backbone.response_states(prepared).hidden, again.response_states(prepared).hidden)
    with pytest.raises(ValueError, match="no clip_decoder"):
        ClipDecoder.from_pretrained(tmp_path / "decoder")


def test_lora_trains_every_adapter_and_saves_merged(world, tmp_path):
    torch.manual_seed(0)
    model = ClipDecoder(
        str(world / "tokenizer"), TOWER, DECODER, SlotSettings(3, 16), freeze_decoder=True, freeze_projector=True,
        lora=LoraSettings(r=2),
    ).eval()  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    prepared = model.prepare(PROMPTS, [("yes you can .",)] * 3)
    states = model.response_states(prepared)
    states.hidden.square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    merged = ClipDecoder.from_pretrained(tmp_path).eval().response_states(prepared).hidden
    torch.testing.assert_close(merged, states.hidden, rtol=1e-3, atol=1e-4)


def test_a_frozen_tower_stays_in_evaluation_mode(backbone):
    backbone.train()
    assert not backbone.tower.training and backbone.decoder.training
    backbone.eval()


def states(n=2, r=4, d=3, p=2, di=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(r)[None] < torch.tensor([r, 2])[:n, None]
    hidden = torch.randn(n, r, d, generator=generator) * mask[..., None]
    logs = -torch.rand(n, r, generator=generator) * 24 * mask
    return ResponseStates(
        hidden, torch.randn(n, d, generator=generator), mask, logs, torch.randn(n, p, di, generator=generator)
    )


class Sizes:
    hidden_size, image_shape = 3, (2, 2)


def test_the_scalar_head_reads_the_last_valid_token():
    x, head = states(), ScalarHead(Sizes())
    expected = torch.stack([x.hidden[0, 3], x.hidden[1, 1]]) @ head.linear.weight.T
    torch.testing.assert_close(head(x), expected)
    empty = x._replace(mask=torch.zeros_like(x.mask))
    torch.testing.assert_close(head(empty), x.prompt @ head.linear.weight.T)


def test_the_evidence_head_follows_its_formula():
    x, head = states(), EvidenceHead(Sizes(), fusion=5, channels=2)
    logs = x.log_probs.clamp(min=-8) / 4
    assert (x.log_probs < -8).any()  # the floor matters
    end = torch.stack([x.hidden[0, 3], x.hidden[1, 1]])
    expected = head.end(end)
    for i in range(2):
        n = int(x.mask[i].sum())
        gated = sum((head.gate(x.hidden[i, t]) * logs[i, t] for t in range(n)), torch.zeros(1))
        channels = sum((head.channels(x.hidden[i, t]) * logs[i, t] for t in range(n)), torch.zeros(2))
        parts = [end[i], x.hidden[i, :n].mean(0), x.images[i].flatten(), channels]
        expected = torch.cat(
            [expected[:i], (expected[i] + gated + head.fusion(torch.cat(parts)))[None], expected[i + 1 :]]
        )
    torch.testing.assert_close(head(x), expected)
    with pytest.raises(ValueError, match="log-probabilities"):
        head(x._replace(log_probs=None))


def test_heads_are_never_cast():
    head = EvidenceHead(Sizes(), fusion=5).to(torch.bfloat16)
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    half = states()._replace(hidden=states().hidden.bfloat16())
    assert head(half).dtype == torch.float32


def test_pictures_are_fitted_without_cropping():
    image = picture(0, (20, 40))
    fitted = fit_square(image, 64)
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:16] == 127).all() and (fitted[48:] == 127).all() and not (fitted[16:48] == 127).all()
    assert fit_square(fitted, 64) is fitted
