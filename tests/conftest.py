"""Shared fixtures: a tiny world on disk, written once per session."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TINY = {
    "supervised": 64, "train": 48, "validation": 12, "calibration": 4, "test": 12, "compositional": 6,
    "counterfactual_helpfulness": 8, "counterfactual_safety": 8, "counterfactual_verdict": 8,
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A shard folder of the embedded world with its tokenizer."""
    from safe_rlhf_v.models.corpus_tokenizer import main as tokenizer
    from safe_rlhf_v.world import write_world

    root = tmp_path_factory.mktemp("data") / "world"
    write_world(root, sizes=TINY, progress=False)
    tokenizer(["--shards", str(root), "--out", str(root / "tokenizer")])
    return root
