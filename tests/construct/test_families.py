"""Families of models, read from names."""

import pytest

from safe_rlhf_v.construct.families import model_families


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("gpt-4o-2024-08-06", {"gpt"}), ("chatgpt-4o-latest", {"gpt"}), ("o3-mini", {"gpt"}), ("openai/o1", {"gpt"}),
        ("Qwen/Qwen2.5-VL-7B-Instruct", {"qwen"}), ("qwen2_vl", {"qwen"}), ("QVQ-72B-Preview", {"qwen"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", {"deepseek", "qwen"}), ("llava-v1.6-mistral-7b-hf", {"llava", "mistral"}),
        ("claude-sonnet-4-5", {"claude"}), ("models/gemini-2.5-pro", {"gemini"}), ("google/paligemma2-3b", {"gemini"}),
        ("meta-llama/Llama-3.2-11B-Vision", {"llama"}), ("OpenGVLab/InternVL3-8B", {"internvl"}), ("my-judge", {"my-judge"}),
        ("philosophy-1", {"philosophy-1"}), ("microsoft/Phi-3.5-vision", {"phi"}), ("SmolLM2-135M-Instruct", {"idefics"}),
        ("", {""}), ("Модель", {"модель"}),
    ],
)  # fmt: skip
def test_families_of_known_names(name, families):
    assert model_families(name) == families
