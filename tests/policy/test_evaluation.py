"""Means over responses to held-out prompts: a judge's values may not apply, the learned models' always do."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safe_rlhf_v.policy import ConstrainedPolicyModule
from safe_rlhf_v.policy.evaluation import PolicyEvaluation
from safe_rlhf_v.scoring.rows import join_rows


class Judged:
    """Knows two things of every record; one of them applies to few."""

    def score(self, record: Any, text: str) -> dict[str, float]:
        return {"harmful": float(record), "over_refused": math.nan if record else 1.0}


class Evaluated(PolicyEvaluation):
    """Without networks: the batch says what they would."""

    measured = ConstrainedPolicyModule.measured
    seed = 0

    def build(self) -> None:
        """Nothing to build."""

    def respond(self, batch: Any, draws: torch.Generator) -> Any:
        return join_rows(["x"] * len(batch.valid), batch.columns, batch.records, Judged())  # type: ignore[arg-type]

    def split_name(self, stage: str, loader: int) -> str:
        return "held_out"

    def admit(self, batch: Any, prepare: Any) -> Any:
        return batch, prepare(batch)


def batch(records: list[Any], **columns: list[float]) -> Any:
    valid = torch.tensor([record is not None for record in records])
    return SimpleNamespace(records=records, valid=valid, columns={k: torch.tensor(v) for k, v in columns.items()})


def means(*batches: Any) -> dict[str, float | None]:
    module = Evaluated()
    for i, one in enumerate(batches):
        module._evaluate(one, i, "validate", 0)
    values = {name: metric.compute() for name, metric in module.split_metrics["held_out"].items()}
    return {name: None if value is None else float(value) for name, value in values.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_batch_of_padding_changes_nothing_wherever_it_stands(at: int) -> None:
    batches = [batch([1, 0], cost=[1.0, 2.0]), batch([1, None], cost=[6.0, 0.0])]
    batches.insert(at, batch([None, None], cost=[9.0, 9.0]))
    assert means(*batches) == {"cost": 3.0, "harmful": pytest.approx(2 / 3), "over_refused": 1.0}


@pytest.mark.parametrize("name", sorted(ConstrainedPolicyModule.measured))
def test_a_learned_value_that_is_no_number_is_seen_and_a_judges_is_left_out(name: str) -> None:
    got = means(batch([1, 0], **{name: [1.0, math.nan]}))
    assert math.isnan(got[name]) and got["over_refused"] == 1.0  # type: ignore[arg-type]
    assert means(batch([1, None], **{name: [1.0, math.nan]}))[name] == 1.0  # padding is no response
