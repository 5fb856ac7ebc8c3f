"""A decoder from a GGUF file, written here by the format's own library, responses as the model it was written from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.tower import TowerSettings

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order of rotary pairs that GGUF files of Llama models keep (llama.cpp's ``permute``)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(model: LlamaForCausalLM, path: Path, tokenizer: Callable[[gguf.GGUFWriter], Any] | None = None) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer is None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    else:
        tokenizer(writer)
    for name, value in model.state_dict().items():
        stem, last = name.removesuffix(".weight"), ""
        if stem.startswith("model.layers."):
            _, _, layer, rest = stem.split(".", 3)
            stem, last = rest, f"blk.{layer}."
        if stem in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            value = interleaved(value, heads)
        writer.add_tensor(f"{last}{NAMES[stem]}.weight", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def source(world, tmp_path_factory):
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(world / "tokenizer"))
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("gguf")
    write(model, folder / "tiny.gguf")
    return model, folder


def test_a_gguf_decoder_answers_as_its_source(source, world):
    model, folder = source
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    backbone = ClipDecoder(str(world / "tokenizer"), tower, str(folder), gguf_file="tiny.gguf").eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(backbone.decoder(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
