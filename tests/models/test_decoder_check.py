"""Decoders that cannot read packed rows are found, and read rows of their own."""

import logging

import pytest
import torch
from transformers import AutoConfig

from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.decoder_check import decoder_abilities
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.records.batches import Prompts

TOWER = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
DECODERS = {  # config, and whether it packs
    "llama": ({**SIZE}, True),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, True),
    "opt": ({"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
             "word_embed_proj_dim": 32}, True),
    "mistral": ({**SIZE, "sliding_window": 4096}, False),  # its window counts columns
    "gpt_neo": (NEO, False),
    "mpt": ({"d_model": 32, "n_heads": 2, "n_layers": 2}, False),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 2}, False),
    "lfm2": ({**SIZE, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, False),
}  # fmt: skip
QUESTIONS = ("what is it ?", "is this thing a red knife or not ?")
RESPONSES = [("this is one red knife .", "i see a thing . take care ."), ("yes you can .", "this is one red cup .")]


def prompts():
    picture = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Prompts(((picture,), (255 - picture,)), (("a",), ("b",)), QUESTIONS)


@pytest.fixture(params=DECODERS, scope="module")
def decoder(request, world):
    options, packs = DECODERS[request.param]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    backbone = ClipDecoder(
        str(world / "tokenizer"), TOWER, {"model_type": request.param, **options, **ids}, SlotSettings(3, 16)
    )
    return backbone.eval(), packs


def test_a_decoder_is_packed_only_if_that_changes_nothing(decoder):
    backbone, packs = decoder
    assert backbone.packs is packs
    with torch.no_grad():
        together = backbone.response_states(backbone.prepare(prompts(), RESPONSES, packed=True), log_probs=True)
        for row in range(4):
            prompt = prompts().take([row // 2])
            alone = backbone.response_states(
                backbone.prepare(prompt, [(RESPONSES[row // 2][row % 2],)]), log_probs=True
            )
            n = alone.mask.shape[1]
            torch.testing.assert_close(together.log_probs[row, :n], alone.log_probs[0], rtol=1e-5, atol=1e-5)


def test_cached_decoding_equals_a_full_pass(decoder):
    backbone, _ = decoder
    drawn = sample(backbone, prompts(), SamplingOptions(6, 0.0), torch.Generator())
    with torch.no_grad():
        states = backbone.response_states(backbone.prepare(prompts(), [(text,) for text in drawn.text]))
    for row in range(2):
        ids = drawn.tokens[row][drawn.mask[row]].tolist()
        assert backbone.response_ids(drawn.text[row])[: len(ids)] == ids  # the text gives the same tokens again
        before = torch.cat([states.prompt[row, None], states.hidden[row]])[: len(ids)]
        logits = backbone.lm_head(before).detach()
        logits[:, list(backbone.banned_ids)] = -torch.inf
        assert logits.argmax(-1).tolist() == ids


def test_states_carried_from_token_to_token_are_never_packed_and_have_a_cache_of_their_own():
    options = {**SIZE, "layer_types": ["conv", "full_attention"]}
    for config in (AutoConfig.for_model("qwen3_next"), AutoConfig.for_model("lfm2", **options)):
        assert decoder_abilities(config) == (False, True)


WRONG = {  # config, and why it is refused
    "cohere": ({**SIZE}, "rescales its logits (logit_scale)"),
    "gemma2": ({**SIZE}, "rescales its logits (final_logit_softcapping)"),
    "granite": ({**SIZE, "logits_scaling": 8.0}, "rescales its logits (logits_scaling)"),
    "falcon_h1": ({**SIZE, "lm_head_multiplier": 0.5}, "rescales its logits (by"),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "with a cache"),
    "jamba": ({**SIZE}, "with a cache"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_would_be_wrong_without_an_error_is_refused(kind):
    options, reason = WRONG[kind]
    with pytest.raises(ValueError) as refusal:
        decoder_abilities(AutoConfig.for_model(kind, **options))
    assert kind in str(refusal.value) and "\n" not in str(refusal.value)
    assert reason in str(refusal.value)


def test_a_scale_of_the_logits_is_seen_under_any_name(monkeypatch):
    monkeypatch.setattr("safe_rlhf_v.models.decoder_check.rescaled_logits", lambda config: "")
    for kind in ("cohere", "gemma2", "granite"):
        with pytest.raises(ValueError, match="rescales its logits"):
            decoder_abilities(AutoConfig.for_model(kind, **WRONG[kind][0]))


def test_the_trial_is_the_same_under_another_precision():
    config = AutoConfig.for_model("qwen3", **SIZE, attention_bias=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            assert decoder_abilities(config) == (True, False)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_cannot_be_tried_is_not_packed_and_says_so(caplog):
    config = AutoConfig.for_model("gptj")  # its copy is as large as itself
    with caplog.at_level(logging.WARNING):
        assert not decoder_abilities(config).packs
    assert "gptj: rows are not packed" in caplog.text


def test_placeholders_and_tokens_of_pictures_must_match(world):
    backbone = ClipDecoder(str(world / "tokenizer"), TOWER, {"model_type": "llama", **SIZE}, SlotSettings(3, 16)).eval()
    prepared = backbone.prepare(prompts(), RESPONSES)
    ids = prepared.tokens.input_ids
    first = (ids[0] == backbone.image_id).nonzero()[0, 0]
    ids[0, first] = backbone.eos_id
    with pytest.raises(ValueError, match=r"15 placeholders for 16 tokens of pictures"):
        backbone.response_states(prepared)
