"""The list of stable and experimental names is the public API, no more and no less."""

import re
from importlib import import_module
from pathlib import Path

import safe_rlhf_v

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "stability.md"
SRC = Path(safe_rlhf_v.__file__).parent


def public(room):
    return set(getattr(import_module(room), "__all__", ()))


def listed(which):
    """Names by room or module, of one of the page's tables; a room of which all names are listed gives them itself."""
    table = re.search(rf"<!-- {which} -->\n(.*?)<!-- /{which} -->", PAGE.read_text(), re.DOTALL)[1]
    names = {}
    for line in table.splitlines()[2:]:
        _, room, cell, _ = line.split("|")
        room = room.strip(" `")
        quoted = re.findall(r"`(\w+)`", cell)
        names[room] = set(quoted) if quoted else public(room)
    return names


def test_each_public_name_is_stable_or_experimental():
    stable, experimental = listed("stable"), listed("experimental")
    for path in sorted(SRC.glob("*/__init__.py")):
        room = f"safe_rlhf_v.{path.parent.name}"
        here = (stable.get(room, set()), experimental.get(room, set()))
        assert not here[0] & here[1], f"{room}: in both lists"
        assert here[0] | here[1] == public(room), f"{room}: the page lists other names than __all__"


def test_the_front_offers_stable_names_only():
    experimental = listed("experimental")
    front = {name for name in safe_rlhf_v.__all__ if name != "__version__"}
    for room, names in experimental.items():
        for name in names & front:
            home = getattr(import_module(room), name)
            assert getattr(safe_rlhf_v, name) is not home, f"{name} is experimental in {room}"


def test_no_room_is_listed_that_is_not_there():
    for which in ("stable", "experimental"):
        for room in listed(which):
            assert import_module(room)


IMPORT = re.compile(r"^\s*from (safe_rlhf_v[\w.]*) import ([\w, ]+)", re.MULTILINE)
TAUGHT = [
    *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "examples").rglob("*.py"),
    *(ROOT / "examples").rglob("*.md"),
]  # fmt: skip


def test_what_pages_and_examples_import_is_in_a_list():
    taught = listed("taught")
    lists = [listed("stable"), listed("experimental"), taught, {"safe_rlhf_v": public("safe_rlhf_v")}]
    count = 0
    for page in TAUGHT:
        for home, names in IMPORT.findall(page.read_text()):
            for name in names.replace(" ", "").split(","):
                count += 1
                assert any(name in known.get(home, ()) for known in lists), f"{page.name}: {name} of {home}"
    assert count > 15
    for home, names in taught.items():
        for name in names:
            assert hasattr(import_module(home), name), f"{home} has no {name}"
