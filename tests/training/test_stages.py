"""A stage passes on its backbone, and refuses what does not fit."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.training.stages import Stub, hand_on, one_line, save, tokenizer

from safe_rlhf_v.training.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    fingerprint,
    read_stage,
    tokenizer_hash,
)


class Other(Stub):
    """Another class with equal tensors."""


class Larger(Stub):
    """One tensor more."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["backbone.linear.weight", "head.weight"])
def test_a_stage_with_broken_weights_is_refused(tmp_path: Path, name: str, value: float) -> None:
    file = save(tmp_path / "x.ckpt", Stub())
    content = torch.load(file, weights_only=True)
    content["state_dict"][name].view(-1)[0] = value
    content["state_dict"]["dual.previous"] = torch.tensor(math.inf)  # means something there
    AtomicCheckpointIO().save_checkpoint(content, file)
    with pytest.raises(CheckpointError) as error:
        read_stage(str(file))
    assert one_line(error, "x.ckpt", name, "earlier checkpoint") and "dual" not in str(error.value)


def test_a_stage_hands_on_its_backbone_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    old, new = Stub(), Stub()
    assert not torch.equal(old.linear.weight, new.linear.weight)
    hand_on(save(tmp_path / "x.ckpt", old), new)
    assert torch.equal(old.linear.weight, new.linear.weight)
    assert torch.equal(old.linear.bias, new.linear.bias)
    with torch.no_grad():
        new.linear.weight.zero_()  # the file is mapped: training must not write to it
    again = Stub()
    hand_on(tmp_path, again)  # a run's folder will do
    assert torch.equal(old.linear.weight, again.linear.weight)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (lambda: Other(), ("backbone is", "Stub", "Other")),
        (lambda: Stub(vocabulary="ba"), ("tokenizer is", "name the tokenizer")),
        (lambda: Stub(width=5), ("'linear.weight' has shape (4, 3), expected (5, 3)",)),
    ],
)
def test_a_stage_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, new: Any, words: tuple[str, ...]) -> None:
    file, backbone = save(tmp_path / "x.ckpt", Stub()), new()
    before = backbone.linear.weight.clone()
    with pytest.raises(CheckpointError) as error:
        hand_on(file, backbone)
    assert one_line(error, str(file), *words)
    assert torch.equal(before, backbone.linear.weight)


def test_missing_and_surplus_tensors_are_refused_in_one_line(tmp_path: Path) -> None:
    larger = fingerprint(Larger())
    with pytest.raises(CheckpointError) as error:
        hand_on(save(tmp_path / "less.ckpt", Stub(), fingerprint=larger), Larger())
    assert one_line(error, "less.ckpt", "lacks", "extra")
    with pytest.raises(CheckpointError) as error:
        hand_on(save(tmp_path / "more.ckpt", Larger(), fingerprint=fingerprint(Stub())), Stub())
    assert one_line(error, "more.ckpt", "extra")


def test_foreign_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    torch.save({"state_dict": {}}, file)
    with pytest.raises(CheckpointError) as error:
        read_stage(str(file))
    assert one_line(error, "x.ckpt", "fingerprint")


def test_equal_tokenizers_have_equal_hashes() -> None:
    def turned() -> Any:
        return SimpleNamespace(get_vocab=lambda: {"b": 1, "a": 0}, special_tokens_map={})

    assert tokenizer_hash(tokenizer("ab")) == tokenizer_hash(turned())  # order of the dictionary does not matter
    hashes = {tokenizer_hash(t) for t in (tokenizer("ab"), tokenizer("ba"), tokenizer("abc"), tokenizer("ab", pad="a"))}
    assert len(hashes) == 4
