"""Rows that a model's processor refuses are named by number; cut responses and pairs that became equal are marked."""

import pytest
import torch

from safe_rlhf_v.models import HFVLM, ClipDecoder, ClipTowers
from safe_rlhf_v.models.clip_pair import ClipSettings
from safe_rlhf_v.models.reader import RefusedRows
from safe_rlhf_v.models.sampling import sample
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import TowerSettings
from safe_rlhf_v.records.batches import Prompts

LONG = "keep away from it " * 400
SURROGATE = "what is \ud800 it ?"


def prompts(*questions, sizes=None):
    """One picture each, of (height, width); ``None`` for no picture."""
    sizes = sizes or [(20, 24)] * len(questions)
    images = tuple(() if size is None else (torch.full((*size, 3), 9, dtype=torch.uint8),) for size in sizes)
    ids = tuple(() if size is None else (f"{size}",) for size in sizes)
    return Prompts(images, ids, questions)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = write_tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("models") / "qwen")
    return HFVLM(str(folder), max_length=120, local_files_only=True)


@pytest.fixture(scope="module")
def decoder(world):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    return ClipDecoder(str(world / "tokenizer"), tower, {"model_type": "llama", **sizes, **special}, max_length=27)


@pytest.fixture(scope="module")
def towers(world):
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}
    text = {"context_length": 16, "width": 32, "heads": 2, "layers": 1, "pool_type": "eos", "no_causal_mask": True}
    return ClipTowers(str(world / "tokenizer"), ClipSettings(vision_cfg=vision, text_cfg=text, embed_dim=16), windows=2)


CASES = {
    "a strip of pixels": (prompts("a", "b", "c", sizes=[(20, 24), (1, 300), (20, 24)]), "aspect ratio"),
    "a long question": (prompts("a", LONG, "c"), "max_length is 120: prompts are never truncated"),
    "half a character": (prompts("a", SURROGATE, "c"), ""),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("answering", [False, True])
def test_the_row_at_fault_is_named(qwen, name, answering):
    batch, said = CASES[name]
    with pytest.raises(RefusedRows, match=r"^row 1 of the batch: ") as caught:
        qwen.prepare(batch, None if answering else [["yes", "no"]] * 3, packed=True)
    assert list(caught.value.problems) == [1] and said in caught.value.problems[1]
    with pytest.raises(RefusedRows):
        qwen.checked_prompts(batch)
    with pytest.raises(RefusedRows):
        sample(qwen, batch)
    fine = batch.take([0, 2])
    assert len(qwen.prepare(fine, [["yes", "no"]] * 2).tokens.response_row) == 4


def test_a_response_that_is_no_text_is_its_row_s_fault(qwen, decoder):
    for backbone in (qwen, decoder):
        with pytest.raises(RefusedRows) as caught:
            backbone.prepare(prompts("a", "b", "c"), [["x", "y"], ["x", "\udfff"], ["\ud800", "y"]])
        assert list(caught.value.problems) == [1, 2]


def test_a_light_reader_names_its_rows_too(towers):
    batch = prompts("a", "b", "c")
    two = batch._replace(images=(*batch.images[:2], batch.images[2] * 2), image_ids=(*batch.image_ids[:2], ("x", "y")))
    with pytest.raises(RefusedRows, match=r"row 2 of the batch: a prompt has 2 images"):
        towers.prepare(two, [["yes"]] * 3)
    cut = towers.prepare(batch, [["yes", LONG], [LONG, ""], ["no", ""]]).truncated
    assert cut.tolist() == [False, True, True, False, False, False]


def test_what_is_no_row_s_fault_stays_as_it_is(qwen, monkeypatch):
    def broken(self, batch):
        if len(batch.questions) > 1:
            raise KeyError("a bug")
        return original(self, batch)

    original = HFVLM.prepare_prompts
    monkeypatch.setattr(HFVLM, "prepare_prompts", broken)
    with pytest.raises(KeyError, match="a bug"):
        qwen.prepare(prompts("a", "b"), [["yes"]] * 2)


@pytest.mark.parametrize("packed", [False, True])
def test_cut_responses_and_equal_pairs_are_marked(decoder, packed):
    head = "keep it away from children and pets now"
    pairs = [
        ["a knife", "a ladder"],
        [f"{head} a knife", f"{head} a ladder"],  # equal after the cut
        [f"knife {head}", f"ladder {head}"],  # cut, and still different
        ["a knife", "a knife"],
        ["a knife", f"a knife {head}"],
    ]
    prepared = decoder.prepare(prompts(*["is it safe ?"] * 5), pairs, packed=packed)
    assert prepared.truncated.view(5, 2).tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2, [False, True]]
    assert prepared.same.tolist() == [False, True, False, True, False]
    room = decoder.room(len(decoder.prepare_prompts(prompts("is it safe ?"))[0].ids[0]))
    assert prepared.tokens.response_mask.sum(1).max() == room
    single = decoder.prepare(prompts("a"), [["a knife"]])
    assert not single.same.any() and not single.truncated.any()
    assert decoder.prepare(prompts("a", "b")).same.tolist() == [False, False]
