"""The page of an evaluation: the answers first, hostile texts harmless, missing parts left out, pictures from the shards."""

import copy
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.evaluation.made_up import HOSTILE, Simulated, World, store
from tests.evaluation.test_planted_faults import over_training

from safe_rlhf_v.evaluation.evidence import Evidence
from safe_rlhf_v.evaluation.findings import HABITS
from safe_rlhf_v.evaluation.report import Pictures, evaluation_page, pictures_of, write_report
from safe_rlhf_v.evaluation.report_judges import TITLES
from safe_rlhf_v.evaluation.summary import as_bytes, summary_of
from safe_rlhf_v.reports.blocks import Card, Examples, Scatter
from safe_rlhf_v.reports.page import Page, render
from safe_rlhf_v.shards import ShardedSplit

HARM = {"start": 0.5, f"safe {HOSTILE}": 0.05}
JUDGES = {
    "world": Simulated(truth=True),
    f"first {HOSTILE}": Simulated(position=0.5, families=("tiny",)),
    "mute": Simulated(unreadable=0.3),
}


def made_up() -> World:
    return World(
        HARM, dict.fromkeys(HARM, 1.5), JUDGES, prompts=60, audited=30, pictures=("other", "none"), text=HOSTILE
    )


@pytest.fixture(scope="module")
def summary() -> dict:
    return summary_of(made_up().evidence())


def page_text(summary: dict, pictures: Pictures | None = None) -> str:
    text = render(evaluation_page(summary, pictures or {}))
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)))


def titles(page: Page) -> list[str]:
    return [section.title for section in page.sections]


def test_answers_stand_first_with_how_much_and_by_whose_judgement(summary: dict) -> None:
    page = evaluation_page(summary, {})
    assert titles(page)[:2] == ["In plain words", "Can the judges be believed?"]
    text = page_text(summary)
    assert "is safer than start, by the ground truth (world): sampled, harmful" in text and "greedy, harmful" in text
    assert "✓ yes (−" in text and "looks at the picture" in text
    assert "Prefers a response for its place" in text and "Gives replies that cannot be read" in text
    assert "Not independent" in text and "corrected by an audit by people" in text


def test_hostile_texts_are_shown_and_never_obeyed(summary: dict) -> None:
    text = render(evaluation_page(summary, {}))
    assert "<script" not in text and "<img" not in text and "<b>harm" not in text
    assert "&lt;script&gt;alert(1)" in text and "\N{RIGHT-TO-LEFT OVERRIDE}" not in text and "⟨U+202E⟩" in text


def test_equal_summaries_give_equal_pages_also_when_read_from_the_file(summary: dict) -> None:
    read = json.loads(as_bytes(summary))
    assert render(evaluation_page(read, {})) == render(evaluation_page(summary, {}))


def test_what_was_not_measured_has_no_section() -> None:
    world = World({"only": 0.3}, {"only": 1.0}, {"j": Simulated()}, prompts=12, modes=("sampled",))
    lone = Evidence(world.lines(), {**world.about(), "start": None})
    page = evaluation_page(summary_of(lone), {})
    for title in ("Who wins", "Over-optimisation", "Do the policies look at the picture?"):
        assert title not in titles(page)
    assert "No question could be answered" in page_text(summary_of(lone))
    assert page.sensitive  # no ground truth: real pictures are blurred


def test_a_divergence_that_was_not_measured_is_said() -> None:
    world = World(
        dict.fromkeys(("start", "p", "q"), 0.3), dict.fromkeys(("start", "p", "q"), 1.0), {"j": Simulated()}, 8
    )
    lines = world.lines()
    for row in lines.responses:
        row["values"].pop("kl", None)
    sentence = "The divergence from the start was not measured of"
    assert f"{sentence} start, p, q:" in page_text(summary_of(Evidence(lines, world.about())))
    for row in lines.responses:
        row["values"] |= {} if row["policy"] == "q" else {"kl": 0.5}
    assert f"{sentence} q:" in page_text(summary_of(Evidence(lines, world.about())))
    for row in lines.responses:
        row["values"].pop("kl", None)
    assert sentence not in page_text(summary_of(Evidence(lines, {**world.about(), "start": None})))


def test_a_summary_without_any_known_figure_is_a_page_too(summary: dict) -> None:
    unknown = copy.deepcopy(summary)

    def forget(value: object) -> None:
        if isinstance(value, dict):
            for name in value.keys() & {"value", "low", "high", "auroc", "alpha"}:
                value[name] = None
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            forget(part)

    forget(unknown)
    assert "In plain words" in page_text(unknown)


def test_the_plane_has_the_budget_the_modes_and_the_series() -> None:
    world = World({"start": 0.5, "p1": 0.3, "p2": 0.1}, {"start": 1, "p1": 1.2, "p2": 1.1}, {"cost": Simulated()}, 20)
    lines = world.lines()
    for row in lines.scores:
        row["values"] = {"cost": -row["values"]["level"], "reward": row["values"]["helpfulness"]}
    about = {**world.about(), "budget": -0.5}
    for policy in about["policies"][1:]:
        policy["series"] = "fixed penalties"
    page = evaluation_page(summary_of(Evidence(lines, about)), {})
    plane = next(block for section in page.sections for block in section.blocks if isinstance(block, Scatter))
    assert (plane.limit, plane.limit_label) == (-0.5, "budget −0.5")
    assert [(point.label, point.hollow) for point in plane.points][:2] == [("start", False), ("start, greedy", True)]
    assert sum(curve.dashed for curve in plane.curves) == 3 and len(plane.curves[-1].points) == 2


def test_over_optimisation_is_one_plot_with_the_point_where_they_part() -> None:
    page = evaluation_page(summary_of(over_training(gain=1.0, loss=0.6)), {})
    (section,) = [section for section in page.sections if section.title == "Over-optimisation"]
    plot = section.blocks[0]
    assert isinstance(plot, Scatter) and plot.limit in (0, 10) and plot.limit_label.startswith("they part at step")
    assert {y for _, y in plot.curves[0].points} >= {0.0, 1.0} and [curve.dashed for curve in plot.curves] == [
        True,
        False,
    ]


def test_judge_cards_stand_worst_first(summary: dict) -> None:
    page = evaluation_page(summary, {})
    (section,) = [section for section in page.sections if section.title == "Judges"]
    cards = [block for block in section.blocks if isinstance(block, Card)]
    assert cards[-1].title == "world" and cards[-1].severity is None and cards[0].severity == "alarm"


def test_every_finding_has_a_title() -> None:
    assert {*HABITS, "errors", "errors_differ", "wrong_choices", "not_independent", "family_of_labels"} <= TITLES.keys()


def test_pictures_of_examples_are_decoded_as_untrusted_ones(summary: dict) -> None:
    buffer = io.BytesIO()
    PILImage.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, "PNG")
    keys = [(example["split"], example["key"]) for example in summary["examples"]]
    pictures = {keys[0]: [b"\x89PNG broken"], keys[1]: [buffer.getvalue()]}
    text = render(evaluation_page(summary, pictures))
    assert text.count("<img src=") >= 1 and "Picture cannot be shown" in text
    (section,) = [section for section in evaluation_page(summary, pictures).sections if section.title == "Examples"]
    first = section.blocks[0]
    assert isinstance(first, Examples) and first.caption == "Harmful, where the start was not"


def test_pictures_come_from_the_shards(world: Path) -> None:
    record = ShardedSplit(world, "test")[0]
    example = {"split": "test", "key": record.key}
    pictures = pictures_of({"examples": [example], "facts": {"data": str(world)}})
    assert pictures == {("test", record.key): [image.data for image in record.images]} and record.images[0].data
    assert pictures_of({"examples": [example], "facts": {"data": str(world / "gone")}}) == {}
    assert pictures_of({"examples": [{"split": "none", "key": "x"}], "facts": {"data": str(world)}}) == {}


def test_a_folder_of_lines_becomes_summary_and_page(tmp_path: Path) -> None:
    evaluated = World({"start": 0.5, "p": 0.1}, {"start": 1, "p": 1}, {"world": Simulated(truth=True)}, 10)
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluated.about()))
    store(tmp_path, **evaluated.lines()._asdict())
    before = {path.name for path in tmp_path.iterdir()}
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} - before == {"summary.json", "report.html"}
    text = (tmp_path / "report.html").read_bytes()
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == text and b"cannot be read, or its prompts have none" in text
