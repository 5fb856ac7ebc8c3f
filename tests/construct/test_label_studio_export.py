"""Exports come back as votes in the order of the record; whatever is not plainly a vote is named."""

import json
import random

import pytest
from tests.construct.exports import entry, exported, pair, result

from safe_rlhf_v.construct.label_studio import write_tasks
from safe_rlhf_v.construct.label_studio_export import NOTE_KINDS, Annotation, read_exports
from safe_rlhf_v.records.user_files import FileError

RECORDS = {record.key: record for record in (pair(i, images=i % 2) for i in range(4))}
FULL = Annotation("pair-0", "7", more_helpful=0, safer=1, safety=(-3, 2), helpfulness=(3, 0))


@pytest.fixture
def task_files(tmp_path):
    return write_tasks(RECORDS.values(), tmp_path / "tasks", seed=3)


@pytest.fixture
def changed(tmp_path, task_files):
    """Reads an export after a change of its first task, which holds FULL."""

    def read(change):
        path = exported(tmp_path / "export.json", task_files, [FULL])
        tasks = json.loads(path.read_text())
        change(tasks[0])
        path.write_text(json.dumps(tasks))
        export = read_exports([path], RECORDS)
        assert {note.kind for note in export.notes} <= set(NOTE_KINDS)
        assert all(note.where.startswith(f"{path}, task") for note in export.notes)
        return export

    return read


def kinds(export):
    return [note.kind for note in export.notes]


def test_both_orders_are_in_the_tests(task_files):
    orders = [task["data"]["order"] for task in json.loads(task_files[0].read_text())]
    assert [0, 1] in orders and [1, 0] in orders


def test_every_vote_comes_back_in_the_order_of_the_record(tmp_path, task_files):
    draw = random.Random(0)
    annotations = [
        Annotation(
            key, str(person), draw.choice((0, 1, -1)), draw.choice((0, 1, -1)),
            (draw.randint(-3, 3), draw.randint(-3, 3)), (draw.randint(0, 3), draw.randint(0, 3)),
        )
        for key in RECORDS
        for person in (1, 2, 10)
    ]  # fmt: skip
    export = read_exports([exported(tmp_path / "e.json", task_files, annotations)], RECORDS)
    assert sorted(export.annotations, key=repr) == sorted(annotations, key=repr)
    assert export.notes == ()
    assert export.summary == "12 annotations of 4 records by 3 people; nothing to note"


def test_a_task_without_annotations_is_nothing_to_note(tmp_path, task_files):
    assert read_exports([exported(tmp_path / "e.json", task_files, [])], RECORDS) == ((), ())


def test_what_a_person_skipped_is_no_vote(changed):
    export = changed(lambda task: task["annotations"][0].update(was_cancelled=True))
    assert export.annotations == ()
    assert kinds(export) == ["skipped"]


@pytest.mark.parametrize("found_results", [[], [result("safer", [])], [result("safer", ["nonsense"])]])
def test_an_annotation_without_a_value_is_no_vote(changed, found_results):
    export = changed(lambda task: task["annotations"][0].update(result=found_results))
    assert export.annotations == ()
    assert kinds(export)[-1] == "empty"


def test_a_partial_annotation_counts_as_far_as_it_goes(changed):
    def keep_one(task):
        task["annotations"][0]["result"] = [
            one for one in task["annotations"][0]["result"] if one["from_name"] == "safer"
        ]

    export = changed(keep_one)
    assert export.annotations == (Annotation("pair-0", "7", safer=1),)
    assert kinds(export) == ["partial"]
    assert "left open: left_safety, right_safety, left_helpfulness" in export.notes[0].message


@pytest.mark.parametrize(
    "wrong",
    [
        result("safer", ["left", "right"]), result("safer", ["up"]), result("safer", "left"), result("safer", [0]),
        result("safer", None), {"from_name": "safer", "value": None}, {"from_name": "safer"}, result("safer", [["left"]]),
    ],
)  # fmt: skip
def test_a_value_that_is_none_of_the_choices_does_not_count(changed, wrong):
    def spoil(task):
        entries = task["annotations"][0]["result"]
        entries[[one["from_name"] for one in entries].index("safer")] = wrong

    export = changed(spoil)
    assert export.annotations[0].safer is None
    assert export.annotations[0].safety == FULL.safety
    assert kinds(export) == ["invalid", "partial"]


@pytest.mark.parametrize("wrong", [result("mood", ["good"]), None, 7, {"type": "choices"}, result(["safer"], ["left"])])
def test_what_was_not_asked_is_named(changed, wrong):
    export = changed(lambda task: task["annotations"][0]["result"].append(wrong))
    assert export.annotations == (FULL,)
    assert kinds(export) == ["invalid"]


def test_two_different_values_for_one_question_do_not_count(changed):
    def contradict(task):
        task["annotations"][0]["result"] += [result("left_safety", ["1"])]

    export = changed(contradict)
    assert None in export.annotations[0].safety
    assert kinds(export) == ["invalid", "partial"]


@pytest.mark.parametrize("wrong", [None, 3, "text", {}, {"result": None}, {"result": "x"}])
def test_an_annotation_of_another_form_is_named(changed, wrong):
    export = changed(lambda task: task["annotations"].append(wrong))
    assert export.annotations == (FULL,)
    assert kinds(export) == ["invalid"]


@pytest.mark.parametrize("key", ["elsewhere", None, 3, ["pair-0"], ""])
def test_a_task_of_other_records_is_named(changed, key):
    export = changed(lambda task: task["data"].update(key=key))
    assert export.annotations == ()
    assert kinds(export) == ["foreign"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("left", "other"), ("right", ""), ("conversation", "User: other"), ("pictures", ["data:image/png;base64,AAAA"]),
        ("order", [0, 0]), ("order", None), ("order", [1]), ("order", "01"), ("key", "pair-1"),
    ],
)  # fmt: skip
def test_a_task_that_shows_something_else_than_the_record_does_not_count(changed, field, value):
    export = changed(lambda task: task["data"].update({field: value}))
    assert export.annotations == ()
    assert kinds(export) == ["edited"]


def test_a_turned_order_is_seen(changed):
    export = changed(lambda task: task["data"]["order"].reverse())
    assert kinds(export) == ["edited"]
    assert "left, right" in export.notes[0].message


def test_columns_that_a_project_adds_do_no_harm(changed):
    export = changed(lambda task: task["data"].update(note="seen by the lead"))
    assert export == ((FULL,), ())


@pytest.mark.parametrize(
    ("who", "name"),
    [({"id": 7, "email": "a@b.c"}, "7"), (None, "annotation 0"), ({}, "annotation 0"), (True, "annotation 0")],
)
def test_who_made_it_is_a_number_and_no_address(changed, who, name):
    export = changed(lambda task: task["annotations"][0].update(completed_by=who))
    assert [annotation.annotator for annotation in export.annotations] == [name]
    assert kinds(export) == ([] if name == "7" else ["unknown_annotator"])
    assert "a@b.c" not in repr(export)


@pytest.mark.parametrize("when", ["2026-11-27T06:59:59Z", "2026-11-27T06:00:00", None, "yesterday", 5])
def test_the_newest_annotation_of_a_person_counts(changed, when):
    def add(task):
        older = Annotation("pair-0", "7", safer=0, more_helpful=-1)
        task["annotations"].append(entry(older, task["data"]["order"], 8, updated_at=when, created_at=when))

    export = changed(add)
    assert export.annotations == (FULL,)
    assert sorted(kinds(export)) == ["partial", "repeated"]


def withdrawn(how):
    """What makes an annotation say nothing."""
    return {
        "skipped": {"was_cancelled": True},
        "empty": {"result": []},
        "invalid": {"result": [result("safer", ["up"])]},
    }[how]


@pytest.mark.parametrize("how", ["skipped", "empty", "invalid"])
@pytest.mark.parametrize(("hour", "counts"), [(5, True), (9, False)])
def test_a_newer_annotation_without_an_answer_takes_the_older_one_back(changed, how, hour, counts):
    def add(task):
        stamp = f"2026-11-27T{hour:02}:00:00Z"
        task["annotations"].append({**task["annotations"][0], "id": 8, "updated_at": stamp, **withdrawn(how)})

    export = changed(add)
    assert export.annotations == ((FULL,) if counts else ())
    assert ("repeated" in kinds(export)) is not counts
    assert ("skipped" if how == "skipped" else "empty") in kinds(export)


def test_what_somebody_else_skipped_takes_nothing_back(changed):
    def add(task):
        for who in (8, None):
            one = {**task["annotations"][0], "completed_by": who, "updated_at": "2026-11-28T09:00:00Z"}
            task["annotations"].append({**one, **withdrawn("skipped")})

    export = changed(add)
    assert export.annotations == (FULL,)
    assert kinds(export) == ["skipped", "skipped"]


def test_the_same_task_in_two_exports_counts_once(tmp_path, task_files):
    paths = [exported(tmp_path / name, task_files, [FULL]) for name in ("a.json", "b.json")]
    export = read_exports(paths, RECORDS)
    assert export.annotations == (FULL,)
    assert kinds(export) == ["repeated"]


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "{}", "null", "[1]", '[{"data": {}}]', '[{"data": {}, "annotations": 2}]', '[{"data": 1, "annotations": []}]',
        '[{"key": "pair-0", "safer": "left", "annotator": 1}]', "\ud800", "[" * 100_000, "id,safer\n1,left\n",
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused(tmp_path, content):
    path = tmp_path / "e.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match=r"e.json: (not JSON|no export of Label Studio in its format 'JSON')"):
        read_exports([path], RECORDS)


def test_the_tasks_themselves_are_no_export(task_files):
    with pytest.raises(FileError, match="no export"):
        read_exports(task_files, RECORDS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"none.json: no such file"):
        read_exports([tmp_path / "none.json"], RECORDS)


@pytest.mark.parametrize("number", ["\ud800", "\x1b[31m", "<b>", [1], {"a": None}, float("nan"), "x" * 1000])
def test_an_id_that_is_no_number_is_escaped_in_notes(changed, number):
    def change(task):
        task["id"] = number
        task["annotations"][0] |= {"id": number, "completed_by": None}

    export = changed(change)
    assert export.annotations[0].annotator.startswith("annotation ")
    for text in (export.annotations[0].annotator, *(note.where for note in export.notes)):
        assert text.isascii()
        assert text.isprintable()
    assert all(len(note.where.rpartition("task")[2]) < 200 for note in export.notes)
