"""Which of several responses is the best one, by hand."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from safe_rlhf_v.evaluation import BestOf, Policy
from safe_rlhf_v.evaluation.responses import response_tasks
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.policy.answers import Answer
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge

VALUES: Mapping[str, tuple[float, float]] = {  # reward and cost
    "helpful": (3.0, 2.0),
    "balanced": (1.5, -0.5),
    "safe": (0.5, -1.0),
    "unknown": (math.nan, -9.0),
}


class Tells(Policy):
    """Gives the texts one draw after the other; "" is a fault."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def respond(
        self, records: Sequence[Record], sampling: Any, seed: int, reference: Policy | None = None
    ) -> list[Answer]:
        text = self.texts.pop(0)
        return [Answer(text, "" if text else "failed", {"length": 3.0, "entropy": 1.0}) for _ in records]


class Known(Judge):
    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, record: Record, text: str) -> dict[str, float]:
        return {self.name: VALUES[text][self.name == "cost"]}


def best(*texts: str, temperature: float = 1.0, **options: Any) -> Answer:
    policy = BestOf(Tells(*texts), Known("reward"), Known("cost"), draws=len(texts), **options)
    (answer,) = policy.respond([Record("k", "a question ?")], SamplingOptions(8, temperature), 0)
    return answer


@pytest.mark.parametrize(
    ("texts", "options", "text"),
    [
        (("helpful", "balanced", "safe"), {"lam": 0.0}, "helpful"),
        (("helpful", "balanced", "safe"), {"lam": 1.0}, "balanced"),  # 1.0, 2.0, 1.5
        (("helpful", "balanced", "safe"), {"lam": 9.0}, "safe"),
        (
            ("helpful", "balanced", "safe"),
            {"lam": 0.0, "most_cost": 0.0},
            "balanced",
        ),  # the more helpful of the safe ones
        (("helpful", "safe"), {"lam": 0.0, "most_cost": -2.0}, "safe"),  # none is: the least cost
        (("", "unknown", "helpful"), {"lam": 9.0}, "helpful"),  # what cannot be scored is never the best
        (("safe", "safe"), {}, "safe"),
    ],
)
def test_the_best_one(texts: tuple[str, ...], options: dict[str, float], text: str) -> None:
    answer = best(*texts, **options)
    count = len(texts)
    assert answer.text == text and "entropy" not in answer.values
    assert (answer.values["reward"], answer.values["cost"]) == VALUES[text]
    assert answer.values["kl_bound"] == pytest.approx(math.log(count) - (count - 1) / count)


def test_nothing_to_choose_from() -> None:
    assert best("", "").fault == "failed"
    assert best("unknown", "unknown").fault == "failed"
    greedy = best("safe", "helpful", temperature=0.0)  # all draws would be the same
    assert greedy.text == "safe" and greedy.values["kl_bound"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "name at least one judge"), ({"reward": Known("reward"), "most_cost": 0.0}, "no judge gives a cost")],
)
def test_what_cannot_choose_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BestOf(Tells(), **options)


def test_selection_among_samples_has_no_greedy_form() -> None:
    prompts = [SimpleNamespace(split="test", key="a", content="")]
    work = SimpleNamespace(
        policies={"one": Tells(), "best": BestOf(Tells(), cost=Known("cost"))},
        modes=("sampled", "greedy"),
        pictures=("real",),
        start=None,
        prompts=SimpleNamespace(under=lambda picture: prompts),
    )
    tasks = response_tasks(cast(Any, work))
    assert [(task["policy"], task["mode"]) for task in tasks] == [
        ("one", "sampled"),
        ("one", "greedy"),
        ("best", "sampled"),
    ]
