"""What a stage reads may change between a stop and the next start: then nothing is mixed, and the message says what changed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.construct.built import build, first_stages

from safe_rlhf_v.construct import AskPeople, AskQuestions, GoldResponses, QuestionFile, Respond, StoredResponses
from safe_rlhf_v.construct.models import CostJudge, GuardJudge, PolicyResponder, RewardJudge
from safe_rlhf_v.construct.stage import settings_of
from safe_rlhf_v.training.lineage import run_content

FILES = {
    QuestionFile: ("image,question\na.jpg,what is it\n", "image,question\na.jpg,is it safe\n"),
    StoredResponses: ("question,response\nwhat,a bear\n", "question,response\nwhat,a cat\n"),
    GoldResponses: ("question,response,helpfulness,safety\nwhat,a,1,1\n", "question,response,helpfulness,safety\nwhat,a,1,-1\n"),
}  # fmt: skip


@pytest.mark.parametrize("component", FILES)
def test_an_edited_file_is_another_setting(component: Any, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    settings = []
    for text in FILES[component]:
        file.write_text(text)
        settings.append(settings_of(component(str(file))))
    assert settings[0] != settings[1]
    file.write_text(FILES[component][0])
    assert settings_of(component(str(file))) == settings[0]


@pytest.mark.parametrize("component", [PolicyResponder, RewardJudge, CostJudge, GuardJudge])
def test_a_run_that_was_trained_again_is_another_setting(component: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    settings = []
    for value in (0.0, 1.0):
        torch.save({"weights": torch.full((8,), value)}, folder / "last.ckpt")
        settings.append(settings_of(component(str(tmp_path / "run"))))
    assert settings[0] != settings[1]
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run", moved)
    assert run_content(str(moved)) == settings[1]["content"] != ""


def test_a_function_that_was_edited_and_a_new_calibration_are_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run").mkdir()
    torch.save({"weights": torch.zeros(8)}, tmp_path / "run" / "last.ckpt")
    files = {
        RewardJudge("mine_to_edit.helpful"): tmp_path / "mine_to_edit.py",
        GuardJudge(str(tmp_path / "run")): tmp_path / "run" / "calibration.json",
    }
    for judge, file in files.items():
        settings = []
        for text in ("", "helpful = len\n", "helpful = max\n"):
            file.write_text(text)
            settings.append(settings_of(judge)["content"])
        assert len(set(settings)) == 3 and "" not in settings
    assert settings_of(RewardJudge("no_such_module.helpful"))["content"] == ""
    assert settings_of(RewardJudge("math.sqrt"))["content"] is not None


@pytest.mark.parametrize("run", ["nowhere", "owner/name", ""])
def test_what_is_no_run_of_ours_has_no_content(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_content(run) == ""


def test_questions_of_two_versions_of_a_file_are_not_mixed(tmp_path: Path) -> None:
    images = first_stages(images=4)[0]
    build(tmp_path / "work", [images])
    names = [row["name"] for row in _rows(tmp_path / "work", "images")]
    file = tmp_path / "questions.csv"
    file.write_text("image,question\n" + "".join(f"{name},what is it\n" for name in names))
    stage = AskQuestions(QuestionFile(str(file)), batch_size=1)
    build(tmp_path / "work", [images, stage])
    _cut(tmp_path / "work" / "questions.jsonl", lines=2)
    file.write_text(file.read_text().replace("what is it", "is it safe"))
    with pytest.raises(ValueError, match=r"other settings: source\.content"):
        build(tmp_path / "work", [images, AskQuestions(QuestionFile(str(file)), batch_size=1)])


def test_questions_about_no_usable_image_are_counted(tmp_path: Path) -> None:
    images = first_stages(images=2)[0]
    build(tmp_path / "work", [images])
    (name, *_) = (row["name"] for row in _rows(tmp_path / "work", "images"))
    file = tmp_path / "questions.csv"
    file.write_text(f"image,question\n{name},what is it\nelsewhere.jpg,what is it\nelsewhere.jpg,is it safe\n")
    stage = AskQuestions(QuestionFile(str(file)))
    assert stage.summary(build(tmp_path / "work", [images, stage]))["about no usable image"] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AskPeople(most=-1), "most is -1"),
        (lambda: AskPeople(rare=-2), "rare -2"),
        (lambda: Respond({"a": None, "b": None}, draws=0), "a pair needs two"),  # type: ignore[dict-item]
        (lambda: Respond({"a": None, "b": None, "c": None}, draws=-1), "a pair needs two"),  # type: ignore[dict-item]
        (lambda: Respond({"a": None, "b": None}, pairs_per_question=0), "pairs_per_question 0"),  # type: ignore[dict-item]
        (lambda: Respond({"a": None, "b": None}, pairs_per_question=-1), "at least 1"),  # type: ignore[dict-item]
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    from safe_rlhf_v.construct.lines import Lines

    return Lines(folder, name).rows()


def _cut(file: Path, lines: int) -> None:
    """As a kill leaves it: some lines, and a note without a hash."""
    import json

    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))
    note = file.with_suffix(".json")
    about = json.loads(note.read_text())
    del about["sha256"]
    note.write_text(json.dumps(about))
