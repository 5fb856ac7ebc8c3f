"""Lines that grow: killed at any byte, the work goes on and gives the same bytes; anything that does not fit is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.records.user_files import FileError

TASKS = [{"key": f"täsk {i}"} for i in range(5)]
SETTINGS = {"seed": 1, "judges": {"one": {"noise": 0.3}}}


def square(tasks: Sequence[Row]) -> list[Row]:
    return [{"said": task["key"] * 2} for task in tasks]


def write(lines: Lines, tasks: list[Row] = TASKS, settings: Row = SETTINGS, batch: int = 2, work=square) -> list[Row]:
    told: list[Row] = []
    lines.write(tasks, settings, batch, work, told.extend)
    return told


def test_every_task_has_its_line_in_order(tmp_path: Path) -> None:
    lines = Lines(tmp_path, "x")
    told = write(lines)
    assert [row["said"] for row in lines.rows()] == [task["key"] * 2 for task in TASKS]
    assert told == lines.rows()
    assert lines.finished and lines.settings() == SETTINGS


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    write(Lines(tmp_path, "x"))

    def never(tasks: Sequence[Row]) -> list[Row]:
        raise AssertionError("asked again")

    assert len(write(Lines(tmp_path, "x"), work=never)) == len(TASKS)


def test_cut_off_at_any_byte_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(Lines(tmp_path / "a", "x"))
    whole = (tmp_path / "a" / "x.jsonl").read_bytes()
    finished = json.loads((tmp_path / "a" / "x.json").read_bytes())
    unfinished = {name: value for name, value in finished.items() if name != "sha256"}
    for cut in range(0, len(whole) + 1, 3):
        (tmp_path / "a" / "x.jsonl").write_bytes(whole[:cut])
        (tmp_path / "a" / "x.json").write_text(json.dumps(unfinished))
        lines = Lines(tmp_path / "a", "x")
        assert not lines.finished
        with pytest.raises(ValueError, match="not finished"):
            lines.rows()
        write(lines)
        assert (tmp_path / "a" / "x.jsonl").read_bytes() == whole, cut
        assert json.loads((tmp_path / "a" / "x.json").read_bytes()) == finished


class Killed(BaseException):
    pass


def test_killed_in_a_batch_only_that_batch_is_done_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def dies(tasks: Sequence[Row]) -> list[Row]:
        asked.extend(task["key"] for task in tasks)
        if "täsk 3" in asked:
            raise Killed
        return square(tasks)

    with pytest.raises(Killed):
        write(Lines(tmp_path, "x"), work=dies)
    asked.clear()

    def counts(tasks: Sequence[Row]) -> list[Row]:
        asked.extend(task["key"] for task in tasks)
        return square(tasks)

    write(Lines(tmp_path, "x"), work=counts)
    assert asked == ["täsk 2", "täsk 3", "täsk 4"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {"seed": 1, "judges": {"one": {"noise": 0.4}}}}, "judges.one.noise"),
        ({"settings": {"seed": 2, "judges": {"one": {"noise": 0.3}}}}, "settings: seed"),
        ({"tasks": TASKS[:4]}, "other tasks"),
        ({"tasks": [*TASKS[:4], {"key": "new"}]}, "other tasks"),
        ({"batch": 3}, "batch_size"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_work_is_refused(changed: Row, message: str, finished: bool, tmp_path: Path) -> None:
    write(Lines(tmp_path, "x"))
    if not finished:
        note = json.loads((tmp_path / "x.json").read_bytes())
        del note["sha256"]
        (tmp_path / "x.json").write_text(json.dumps(note))
    before = (tmp_path / "x.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        write(Lines(tmp_path, "x"), **changed)
    assert "remove x.jsonl, x.json" in str(error.value)
    assert (tmp_path / "x.jsonl").read_bytes() == before


def test_settings_may_change_before_anything_was_written(tmp_path: Path) -> None:
    def dies(tasks: Sequence[Row]) -> list[Row]:
        raise Killed

    with pytest.raises(Killed):
        write(Lines(tmp_path, "x"), work=dies)
    write(Lines(tmp_path, "x"), settings={"seed": 9})
    assert Lines(tmp_path, "x").settings() == {"seed": 9}


def test_a_file_without_its_note_or_changed_is_refused(tmp_path: Path) -> None:
    lines = Lines(tmp_path, "x")
    write(lines)
    whole = lines.path.read_bytes()
    lines.path.write_bytes(whole.replace(b"0", b"1", 1))
    with pytest.raises(ValueError, match="was changed"):
        lines.rows()
    lines.path.write_bytes(whole + b"half a line")
    with pytest.raises(ValueError, match="is not one JSON object"):
        lines.rows()
    lines.path.write_bytes(whole)
    lines.note.write_text("[]")
    with pytest.raises(ValueError, match=r"x\.json"):
        lines.rows()
    lines.note.unlink()
    with pytest.raises(ValueError, match=r"no x\.json beside it"):
        write(lines)


def test_a_link_or_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="link"):
        write(Lines(tmp_path, "x"))
    assert (tmp_path / "elsewhere").read_text() == "mine"
    (tmp_path / "y.jsonl").mkdir()
    with pytest.raises(FileError, match=r"y\.jsonl"):
        write(Lines(tmp_path, "y"))


def test_no_tasks_are_finished_at_once(tmp_path: Path) -> None:
    lines = Lines(tmp_path, "x")
    write(lines, tasks=[])
    assert lines.finished and lines.rows() == []


@pytest.mark.parametrize("size", [0, -1, -5])
def test_a_batch_size_below_one_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {size}; it must be at least 1"):
        write(Lines(tmp_path, "x"), batch=size)
    assert not Lines(tmp_path, "x").finished


@pytest.mark.parametrize("damage", [b"\0" * 20 + b"\n", b"{}x\n", b"\n", b"[1]\n"])
def test_a_damaged_line_is_named_and_what_follows_it_is_not_lost(damage: bytes, tmp_path: Path) -> None:
    lines = Lines(tmp_path, "numbers")
    write(lines)
    content = lines.path.read_bytes().splitlines(keepends=True)
    content[1] = damage
    lines.path.write_bytes(b"".join(content))
    note = json.loads(lines.note.read_text())
    del note["sha256"]
    lines.note.write_text(json.dumps(note))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        write(lines)
    assert lines.path.read_bytes() == b"".join(content)
