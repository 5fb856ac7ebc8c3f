"""A guard as a judge reads the whole conversation, on a stand-in for the guard."""

import dataclasses
from types import SimpleNamespace

import pytest
from tests.construct.built import build, first_stages

from safe_rlhf_v.construct.models import GuardJudge
from safe_rlhf_v.construct.questions import read_items
from safe_rlhf_v.guard import Input
from safe_rlhf_v.records import Turn
from safe_rlhf_v.scoring.judge import Asked


class Listener:
    """Keeps what it is asked; its level is the number of the texts that stand before the question."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []

    def moderate_batch(self, inputs):
        self.inputs += inputs
        levels = [float(bool(one.system) + len(one.history)) for one in inputs]
        return [SimpleNamespace(level=x, expected_level=x, harm=0.5, reasons=()) for x in levels]


@pytest.mark.parametrize(("system", "turns"), [("", 0), ("Be kind.", 0), ("", 2), ("Be kind.", 2)])
def test_every_part_of_the_conversation_reaches_the_guard(tmp_path, system, turns) -> None:
    work = build(tmp_path, first_stages(2)[:2])
    history = (Turn("user", "What is this?", 1), Turn("assistant", "A thing."))[:turns]
    record = dataclasses.replace(next(iter(read_items(work).values())).record(work), system=system, history=history)
    judge = GuardJudge("nowhere")
    judge._model = listener = Listener()
    opinion, other = judge.ask([Asked(record, ("Yes.",), "safety"), Asked(record, ("Yes.",), "helpfulness")])
    images = [image.data for image in record.images]
    assert listener.inputs == [Input(images, record.question, "Yes.", system, history)]
    assert opinion.value == bool(system) + turns and other.fault == "unknown"
    assert judge.tie == 0.5 and GuardJudge("nowhere", tie=0.0).tie == 0.0
