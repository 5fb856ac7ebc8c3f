"""Images with many prompts beside images with few: certificates count images, and choose neither images nor prompts by it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.made_up import store
from tests.evaluation.unlabelled import photograph, tiny

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.commands.evaluate import evaluate
from safe_rlhf_v.construct.lines import Lines
from safe_rlhf_v.evaluation.certificate import certify_rows, make_claim, one_of_each_group
from safe_rlhf_v.evaluation.certificate_rows import ScoredRow, read_evaluation
from safe_rlhf_v.evaluation.prompts import PromptSet
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards import ShardWriter

LONELY, CROWDED, CROWD = 300, 300, 20
"""Images with one prompt, images with many, and how many."""
HARMFUL = 0.4
"""Share of harmful responses to lonely images; those to crowded ones are harmless, so that 0.2 of all images have harm."""


def uneven(seed: int) -> list[ScoredRow]:
    rng = np.random.default_rng(seed)
    lonely = [ScoredRow(f"{seed}/l{i}", f"{seed}/l{i}", float(rng.random() < HARMFUL), None) for i in range(LONELY)]
    crowded = [(f"{seed}/c{i}/{j}", f"{seed}/c{i}") for i in range(CROWDED) for j in range(CROWD)]
    return lonely + [ScoredRow(key, group, 0.0, None) for key, group in crowded]


def some(rows: list[ScoredRow], count: int, seed: int) -> set[str]:
    chosen = np.random.default_rng(seed + 1000).choice(len(rows), count, replace=False)
    return {rows[i].key for i in chosen}


def passes(rows: list[ScoredRow], folder: Path, audit: bool) -> tuple[bool, float]:
    claim = make_claim("p", "j", "violations", 0.1, 0.05, None, None)
    entry = certify_rows(rows, claim, folder / f"{rows[0].key.partition('/')[0]}.jsonl", {}, audit)
    return entry["outcome"] == "passed", entry["estimate"]


@pytest.mark.parametrize("kind", ["all", "audited", "most prompts"])
def test_no_image_counts_by_the_number_of_its_prompts(tmp_path: Path, kind: str) -> None:
    estimates = []
    for seed in range(20):
        rows = uneven(seed)
        chosen = some(rows, 1500, seed)
        first = {row.key for row in one_of_each_group(rows)}
        if kind == "audited":
            rows = [row._replace(truth=row.value, value=0.0) if row.key in chosen else row for row in rows]
        if kind == "most prompts":
            rows = [row._replace(stands=row.key in first) for row in rows if row.key in chosen]
        passed, estimate = passes(rows, tmp_path, kind == "audited")
        assert not passed
        estimates.append(estimate)
    assert np.mean(estimates) == pytest.approx(0.2, abs=0.04)


def test_no_response_that_stands_for_an_image_decides_nothing(tmp_path: Path) -> None:
    rows = [ScoredRow("a", "g", 0.0, None, False), ScoredRow("b", "g", 0.0, None, False)]
    claim = make_claim("p", "j", "violations", 0.1, 0.05, None, None)
    entry = certify_rows(rows, claim, tmp_path / "ledger", {}, False)
    assert (entry["outcome"], entry["prompts"], entry["upper"], entry["needed"]) == ("undecided", 0, 1.0, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 prompts to one picture, 20 pictures with one prompt each."""
    root = tmp_path_factory.mktemp("uneven") / "data"
    with ShardWriter(root, name="uneven", licence="CC0-1.0", taxonomy=None) as writer:
        for i in range(60):
            writer.write("test", Record(f"k{i:02d}", f"What is {i}?", (photograph(0 if i < 40 else 4 * (i - 39)),)))
    return root


def stands(prompts: PromptSet) -> set[str]:
    return {one.key for one in prompts if one.about["stands"]}


@pytest.mark.parametrize("seed", range(4))
def test_a_part_of_the_prompts_keeps_who_stands_for_an_image(data: Path, seed: int) -> None:
    every = stands(PromptSet(data, ["test"]))
    part = PromptSet(data, ["test"], most=30, seed=seed)
    assert len(every) == 21 and stands(part) == every & {one.key for one in part}


def test_an_evaluation_of_some_prompts_says_which_count(data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    evaluate(**tiny(data, out, modes=["sampled"], pictures=["real"], most_prompts=30))
    rows, _ = read_evaluation(out, "mine", "words", "violations", None, "sampled")
    counted = {row["key"] for row in Lines(out, "prompts").rows() if row["stands"]}
    assert {row.key for row in rows if row.stands} == counted
    main(["certify", "--evaluation", str(out), "--policy", "mine", "--judge", "words", "--budget", "0.5"])
    assert f"{len(counted)} independent prompts" in capsys.readouterr().out


def test_evaluations_that_do_not_say_it_are_read_as_whole(tmp_path: Path) -> None:
    """Those of earlier versions."""
    at = {"policy": "p", "split": "test", "mode": "sampled", "picture": "real", "key": "k"}
    (tmp_path / "evaluation.json").write_text("{}")
    store(
        tmp_path,
        responses=[{**at, "response": "r", "fault": "", "values": {}}],
        scores=[{**at, "judge": "j", "values": {"harmful": 0.0}, "fault": ""}],
        prompts=[{"split": "test", "key": "k", "group": "g"}],
    )
    rows, _ = read_evaluation(tmp_path, "p", "j", "violations", None, "sampled")
    assert rows == [ScoredRow("k", "g", 0.0, None, True)]


@pytest.mark.parametrize("spaced", ["img1 ", " img1", "img1"])
def test_a_space_makes_no_further_image(tmp_path: Path, spaced: str) -> None:
    lines = [
        {"key": key, "group": group, "harmful": 0} for key, group in (("a", "img1"), ("b", spaced), ("c", "other"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["certify", "--rows", str(tmp_path / "rows.jsonl"), "--policy", "p", "--judge", "j", "--budget", "0.5"])
    assert json.loads((tmp_path / "certificates.jsonl").read_text())["prompts"] == 2
