"""Batches of prompts carry the whole conversation of each row."""

import pickle

import torch

from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import PolicyBatch, Prompts, Records, to_device, without_rows

TALK = Context("Be kind.", (Turn("user", "here", 2), Turn("assistant", "yes")))
PICTURES = tuple(torch.full((2, 2, 3), i, dtype=torch.uint8) for i in range(4))
PROMPTS = Prompts(
    (PICTURES[:3], PICTURES[3:], ()), (("a", "b", "c"), ("d",), ()), ("q0", "q1", "q2"), (TALK, Context(), Context("s"))
)


def test_the_question_is_the_last_turn_and_holds_the_other_images():
    assert PROMPTS.turns(0) == (*TALK.history, Turn("user", "q0", 1))
    assert PROMPTS.turns(1) == (Turn("user", "q1", 1),) and PROMPTS.turns(2) == (Turn("user", "q2"),)
    assert Prompts(((),), ((),), ("q",)).contexts == (Context(),)


def test_rows_keep_their_conversations():
    taken = PROMPTS.take([2, 0, 0])
    assert taken.contexts == (Context("s"), TALK, TALK) and taken.questions == ("q2", "q0", "q0")
    masked = without_rows(
        PolicyBatch(PROMPTS, torch.zeros(3, 0), Records([None] * 3), torch.ones(3) > 0, ("a", "b", "c")), [0]
    )
    assert masked.prompts.contexts == (Context(), *PROMPTS.contexts[1:]) and masked.prompts.turns(0) == (
        Turn("user", ""),
    )
    for same in (pickle.loads(pickle.dumps(PROMPTS)), to_device(PROMPTS, torch.device("cpu")), PROMPTS._replace()):
        assert isinstance(same, Prompts) and same.contexts == PROMPTS.contexts and same.turns(0) == PROMPTS.turns(0)


def test_pictures_of_other_rows_fill_the_same_places():
    shuffled = PROMPTS.with_images("shuffled")
    assert shuffled.image_ids == ((), ("a", "b", "c"), ("d",))
    assert [[turn.images for turn in shuffled.turns(row)] for row in range(3)] == [[0, 0, 0], [3], [1]]
    back = shuffled._replace(contexts=(Context(), TALK, TALK))
    assert [[turn.images for turn in back.with_images("shuffled").turns(row)] for row in range(3)] == [
        [1],
        [0, 0, 0],
        [2, 0, 1],
    ]
    assert PROMPTS.with_images("blank").contexts == PROMPTS.contexts
    assert [text for turns in map(shuffled.turns, range(3)) for _, text, _ in turns] == [
        "here",
        "yes",
        "q0",
        "q1",
        "q2",
    ]


def test_masked_rows_neither_give_nor_take_pictures():
    for valid, ids in (
        ([True, True, False], (("d",), ("a", "b", "c"), ())),
        ([True, False, True], ((), ("d",), ("a", "b", "c"))),
        ([True, False, False], PROMPTS.image_ids),
        ([False, False, False], PROMPTS.image_ids),
    ):
        shuffled = PROMPTS.with_images("shuffled", torch.tensor(valid))
        assert shuffled.image_ids == ids and shuffled.questions == PROMPTS.questions
        assert all(shuffled.turns(row)[-1].images >= 0 for row in range(3))
