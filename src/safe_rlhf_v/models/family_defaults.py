"""What the configs of some families leave open: without it their classes make no network.

Only what decides shapes is here, to look at a family's structure on the meta device; a real model's config has its own values.
"""

from typing import Any

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

DEFAULTS: dict[str, dict[str, Any]] = {
    # the tower's width is not divisible by the default number of its heads
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 16}},
    # the id of the image placeholder stands in a map of the vocabulary
    "chameleon": {"vocabulary_map": {"<image>": 8711}},
    "emu3": {"vocabulary_map": {"<image>": 151_851}},
    # rotary parameters by kind of layer
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}},
    # which layers are sparse, and how many experts they have
    "deepseek_ocr2": {"text_config": {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}},
    # which layers of the tower are handed to which of the language model, and the pooling between them
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]]},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    # the timm tower
    "perception_lm": {
        "vision_config": {"architecture": "vit_pe_core_large_patch14_336", "model_args": {"embed_dim": 1024}}
    },
    # attention to a budget of tokens, chosen by an indexer
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 256,
            "indexer_budget": 2048,
            "indexer_compress_ratio": 64,
        }
    },
}
"""By model type: options of its config, nested as in ``config.json``."""
