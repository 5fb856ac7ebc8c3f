"""Shapes of the models that the shipped configurations name, for a machine that cannot reach the hub.

Written down from the published architectures; a hub or a local ``config.json`` is read first.
"""

from types import MappingProxyType
from typing import Any

KNOWN: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "llava-hf/llava-1.5-7b-hf": {  # arXiv 2310.03744: Vicuna-7B and CLIP ViT-L/14 at 336 pixels; 7.06 B parameters
            "model_type": "llava",
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 32064,
                "max_position_embeddings": 4096,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
            "image_token_id": 32000,
        },
        "Qwen/Qwen2.5-VL-7B-Instruct": {  # arXiv 2502.13923, table 1; 8.29 B parameters
            "model_type": "qwen2_5_vl",
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "max_position_embeddings": 128000,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            "image_token_id": 151655,
            "tie_word_embeddings": False,
        },
    }
)
"""By hub name, what ``config`` of :class:`~safe_rlhf_v.models.HFVLM` takes."""
