"""A policy whose network carries states: its responses stand in rows of their own, and say what sampling said."""

from pathlib import Path

import torch

from safe_rlhf_v.models.family_check import example_prompts
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.layout import layout
from safe_rlhf_v.models.sampling import SamplingOptions, generate
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.policy.rollout import Splitter


@torch.no_grad()
def test_samples_of_a_hybrid_policy_are_not_packed(tmp_path: Path) -> None:
    vlm = HFVLM(str(write_tiny_vlm("qwen3_5", tmp_path)), local_files_only=True).eval()
    prompts = example_prompts()
    tokens, images = vlm.prepare_prompts(prompts)
    features = vlm.encode_images(images)
    batch = layout(tokens, [[]] * 3, pad_id=vlm.pad_id, side="left")
    draws = torch.Generator().manual_seed(0)
    sampled = generate(vlm, batch, features, SamplingOptions(max_new_tokens=5), draws, samples=2)
    micro_batch = Splitter(vlm, prompts, tokens, images, features, sampled, samples=2).micro_batch([0, 1, 2])
    assert len(micro_batch.tokens.input_ids) == 6
    read = vlm.read(micro_batch.tokens, micro_batch.features, log_probs=True)
    assert read.log_probs is not None
    torch.testing.assert_close(read.log_probs, sampled.log_probs, rtol=1e-4, atol=1e-4)
