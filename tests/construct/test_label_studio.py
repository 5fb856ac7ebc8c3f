"""The labelling page and its tasks: everything inside, blind, reproducible, and never over what people work on."""

import base64
import json
from xml.etree import ElementTree

import pytest
from tests.construct.exports import pair

from safe_rlhf_v.construct.label_studio import QUESTIONS, labelling_config, task_data, write_tasks
from safe_rlhf_v.records import Response, Turn
from safe_rlhf_v.records.user_files import FileError
from safe_rlhf_v.shards import probe

NASTY = """<img src=x onerror="alert('1')"> & </View> {{x}} $left ]]> 'q' "q" ಠ_ಠ\n\ttab"""


def tasks(paths):
    return [task["data"] for path in paths for task in json.loads(path.read_text())]


def test_the_page_asks_every_question_of_texts_that_a_task_has():
    page = ElementTree.fromstring(labelling_config())
    choices = {tag.get("name"): [choice.get("alias") for choice in tag] for tag in page.iter("Choices")}
    assert choices == {question.name: list(question.values) for question in QUESTIONS}
    assert all(tag.get("required") == "true" for tag in page.iter("Choices"))
    values = {tag.get("value") for tag in page.iter("Text")} | {tag.get("valueList") for tag in page.iter("Image")}
    names = {tag.get("name") for tag in page.iter() if tag.tag in ("Text", "Image")}
    assert values == {"$pictures", "$conversation", "$left", "$right"}
    assert {value.removeprefix("$") for value in values} <= set(task_data(pair(0), [0, 1]))
    assert {tag.get("toName") for tag in page.iter("Choices")} <= names


def test_texts_of_the_rubric_are_escaped():
    levels = dict.fromkeys(range(-3, 4), NASTY)
    page = ElementTree.fromstring(labelling_config(NASTY, levels, dict.fromkeys(range(4), NASTY)))
    whole_texts = [tag.get("value") for tag in page.iter() if tag.get("value")]
    assert sum("onerror" in text for text in whole_texts) == 1 + 2 * (7 + 4)
    assert not list(page.iter("img"))


def test_a_task_holds_the_whole_conversation_and_the_pictures_as_they_are(tmp_path):
    history = (Turn("user", "look", 1), Turn("assistant", "I see"))
    record = pair(1, images=2, system="be careful", history=history)
    (task,) = tasks(write_tasks([record], tmp_path / "out"))
    assert task["conversation"] == (
        "System: be careful\n\nUser: [picture 1] look\n\nAssistant: I see\n\nUser: [picture 2] what is this, 1 ?"
    )
    pictures = [base64.b64decode(url.partition(",")[2]) for url in task["pictures"]]
    assert pictures == [image.data for image in record.images]
    assert "one" not in task.values() and not {"source", "truth"} & set(task), "the page would not be blind"
    (text_only,) = tasks(write_tasks([pair(2, images=0)], tmp_path / "text"))
    assert probe(base64.b64decode(text_only["pictures"][0].partition(",")[2])).width == 1, (
        "an empty list is never opened"
    )
    assert text_only["conversation"] == "(There is no picture.)\n\nUser: what is this, 2 ?"


def test_texts_are_neither_cut_nor_changed(tmp_path):
    record = pair(3, responses=(Response(NASTY), Response("")))
    (task,) = tasks(write_tasks([record], tmp_path))
    assert {task["left"], task["right"]} == {NASTY, ""}


def test_sides_are_drawn_per_record_and_recorded(tmp_path):
    records = [pair(i, images=0) for i in range(200)]
    drawn_tasks = tasks(write_tasks(records, tmp_path / "a", seed=1))
    for record, task in zip(records, drawn_tasks, strict=True):
        assert [task["left"], task["right"]] == [record.responses[i].text for i in task["order"]]
    assert 70 <= sum(task["order"] == [0, 1] for task in drawn_tasks) <= 130
    some = tasks(write_tasks(records[50:60], tmp_path / "b", seed=1))
    assert some == drawn_tasks[50:60], "a record's sides depend on the others"
    assert tasks(write_tasks(records, tmp_path / "c", seed=2)) != drawn_tasks


def test_the_same_tasks_are_the_same_bytes_and_others_are_refused(tmp_path):
    records = [pair(i) for i in range(6)]
    size = len(write_tasks(records[:1], tmp_path / "one")[0].read_bytes())
    paths = write_tasks(records, tmp_path / "out", max_bytes=5 * size // 2)
    assert len(paths) == 3, "two fit into a file"
    assert [task["key"] for task in tasks(paths)] == [record.key for record in records]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert write_tasks(records, tmp_path / "out", max_bytes=5 * size // 2) == paths
    for others, seed in ((records[:1], 0), (records, 5), (records[:2], 0)):
        with pytest.raises(FileError, match="name another folder"):
            write_tasks(others, tmp_path / "out", seed, max_bytes=5 * size // 2)
    with pytest.raises(FileError, match=r"labelling_config.xml: holds something else"):
        write_tasks(records, tmp_path / "out", config=labelling_config("otherwise"), max_bytes=5 * size // 2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_link_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tasks-0000.json").symlink_to(elsewhere)
    with pytest.raises(FileError, match=r"tasks-0000.json: holds something else"):
        write_tasks([pair(0)], tmp_path / "out")
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([pair(0, responses=(Response("a"),))], "has 1 responses"),
        ([pair(0, responses=(Response("a"),) * 3)], "has 3 responses"),
        ([pair(0), pair(0)], "two records have the key 'pair-0'"),
    ],
)
def test_what_is_no_pair_is_refused(records, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        write_tasks(records, tmp_path)


def test_nothing_to_label_is_no_file_of_tasks(tmp_path):
    assert write_tasks([], tmp_path / "out") == []
