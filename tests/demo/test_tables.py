"""The tables of the demo."""

import json

import yaml

from safe_rlhf_v.demo import tables
from safe_rlhf_v.demo.compare import METHODS
from safe_rlhf_v.demo.runs import CONFIGS, GUARD_SPLITS, Run
from safe_rlhf_v.shards import ShardedSplit


def test_the_quickstart_table_reads_what_was_measured(tmp_path, monkeypatch, world):
    names = ("helpfulness", "level", "harmful", "refused", "over_refused", "description", "cost", "kl")
    scores = {"supervised": (0.4, -0.2), "ppo_lag": (0.1, -1.1), "best_of_8": (0.2, -1.0)}

    def responses(run, policy, split="test", mode="sampled"):
        harmful, cost = scores[policy]
        count = len(ShardedSplit(world, split))
        return [
            {name: 0.5 for name in names}
            | {"harmful": harmful / (1 + (mode == "greedy")), "cost": cost + (-0.1 if i % 2 else 0.1)}
            for i in range(count)
        ]

    monkeypatch.setattr(Run, "responses", responses)
    monkeypatch.setattr(tables, "cost_spread", lambda run: 2.0)

    for model in ("reward", "cost"):
        metrics = {metric: 0.5 for name, metric, _, _ in tables.SCORES if name == model}
        metrics |= {count: 100 for name, _, _, count in tables.SCORES if name == model and isinstance(count, str)}
        (tmp_path / model).mkdir()
        (tmp_path / model / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "guard").mkdir()
    measured = {split: {metric: 0.25 for metric, _ in tables.GUARD} for split in GUARD_SPLITS}
    (tmp_path / "guard" / "assessment.json").write_text(json.dumps(measured))
    responses = [
        {"name": n, "harm": 0.1, "harm_upper": 0.117, "refused": 0.2, "helpfulness": 1.5}
        for n in ("no guard", "round 0", "round 5")
    ]
    (tmp_path / "guard" / "responses-BestOfK.json").write_text(json.dumps(responses))
    text = tables.results(Run(world, tmp_path))
    assert len(text.splitlines()) == len(tables.SCORES) + len(tables.GUARD) + 3 + 5 + 5
    (last,) = (line for line in text.splitlines() if line.startswith("filtered and regenerated, 5 rounds"))
    assert last.endswith("harmful: at most 0.117 (95 %)")
    start, trained = (line.split() for line in text.splitlines()[-3:-1])
    assert start[-4:] == ["broken", "0.50", "0.50", "0.200"]  # KL, and greedily: helpfulness, harmful
    assert trained[-5:] == ["-0.55", "met", "0.50", "0.50", "0.050"]  # budget -0.5, cost in spreads
    assert "75%" in trained  # harmful falls from 0.4 to 0.1
    assert "0.500  0.404 .. 0.596    100" in text  # Wilson interval of 50 in 100
    best = tables.Method("best_of_8", "best of 8", None, draws=8)
    row = tables.policy_rows(Run(world, tmp_path), (tables.START, best))[-2].split()
    assert row[-5:] == ["-0.50", "undecided", "0.50", "nan", "nan"]  # K likeliest responses are all the same


def test_one_report_holds_every_method_of_compare() -> None:
    evaluated = yaml.safe_load((CONFIGS.parent / "evaluate" / "compare.yaml").read_text())["policies"]
    assert list(evaluated) == [method.name for method in METHODS]
