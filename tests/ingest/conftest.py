"""Pictures, and tables of them to import."""

import json

import pytest
from tests.shards.conftest import picture

from safe_rlhf_v.commands.shards import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(30):
        (folder / f"{i}.jpg").write_bytes(picture(i, "JPEG"))
    return folder


@pytest.fixture
def run(tmp_path, pictures):
    """``run(text_or_bytes, "table.csv", "--on_bad_row", "skip")`` imports into ``tmp_path / "out"``; gives the exit status."""

    def importer(text, name="table.csv", *extra, images=pictures):
        table = tmp_path / name
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        return main(["import", "--table", str(table), "--images", str(images), "--out", str(tmp_path / "out"),
                     "--name", "mine", "--licence", "CC0-1.0", "--categories", "fire", "fraud", *extra])  # fmt: skip

    return importer


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


CHAT = [{"role": "user", "content": "hi"}]


def listed(tmp_path):
    """(row, columns, reason) of every bad row."""
    text = (tmp_path / "out.bad_rows.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) == {"row", "line", "columns", "reason"} for line in found)
    return [(line["row"], line["columns"], line["reason"]) for line in found]
