"""The public sampler against plain ``generate`` of transformers, greedily, on every tiny family: same tokens, same ends."""

from pathlib import Path

import pytest
import torch

from safe_rlhf_v.models.family_check import picture
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.records.batches import Prompts

SIZES = ((), ((40, 180),), ((75, 60), (48, 64)), ((200, 20), (33, 47), (15, 20)))
"""Heights and widths of the pictures of four prompts: none, a strip, two and three of different shapes."""
TOKENS = 12


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
def test_greedy_sampling_equals_generate(family: str, tmp_path: Path) -> None:
    vlm = HFVLM(model=str(write_tiny_vlm(family, tmp_path)), local_files_only=True).eval()
    with torch.no_grad():
        for parameter in vlm.model.parameters():  # else every prompt is followed by the same tokens
            if parameter.dim() == 2:
                parameter.mul_(4)
    ids = tuple(tuple(f"{row}.{i}" for i in range(len(sizes))) for row, sizes in enumerate(SIZES))
    images = tuple(tuple(picture(*size, 10 * row + i) for i, size in enumerate(s)) for row, s in enumerate(SIZES))
    questions = ("How do I feed a bear, and is that wise?", "Safe?", "Which of both is worse?", "And these three?")
    prompts = Prompts(images, ids, questions)
    sampled = sample(vlm, prompts, SamplingOptions(max_new_tokens=TOKENS, temperature=0), samples=2)
    rows = [row[mask].tolist() for row, mask in zip(sampled.tokens, sampled.mask, strict=True)]
    assert rows[::2] == rows[1::2]
    for row, tokens in enumerate(rows[::2]):
        inputs = vlm.plain_inputs(prompts.take([row]))
        expected = vlm.model.generate(
            **inputs,
            max_new_tokens=TOKENS,
            do_sample=False,
            suppress_tokens=list(vlm.banned_ids),
            eos_token_id=vlm.eos_id,
            pad_token_id=vlm.pad_id,
        )[0, inputs["input_ids"].shape[1] :]
        assert tokens == expected.tolist(), row
    assert len({tuple(tokens) for tokens in rows}) > 1
