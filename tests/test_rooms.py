"""Every import goes down: the order of rooms is declared once, here."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "safe_rlhf_v"
ROOMS = (
    "demo",  # the public commands on the world
    "world",  # the embedded world; below demo nothing imports it, it is named by class path
    "commands",
    "planning",  # the memory of a training
    "callbacks",
    "engine",  # rollouts sampled by a server; named by class path
    "inspecting",  # found by inspect_ai, where that is installed
    "evaluation",
    "construct",
    "export",
    "guard",
    "policy",
    "modules",
    "data_modules",
    "scoring",
    "objectives",
    "dual",
    "metrics",
    "training",
    "testing",  # contract tests for classes of others
    "models",
    "ingest",
    "reports",  # pages for people; of shards it uses the decoder of untrusted pictures
    "shards",
    "records",
    "functional",
)
"""From the top down."""


def modules():
    for path in sorted(SRC.glob("*/**/*.py")):
        name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        yield pytest.param(path, name.split(".")[0], id=name)


def imported(path):
    """Rooms that a file imports from, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "safe_rlhf_v":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("safe_rlhf_v."))


@pytest.mark.parametrize(("path", "room"), [*modules()])
def test_imports_point_down(path, room):
    assert room in ROOMS, f"{room} is no room: add it to the order"
    for other in set(imported(path)) - {"__version__"}:
        assert other in ROOMS, f"{path.name} imports {other}, which is no room"
        assert ROOMS.index(room) <= ROOMS.index(other), f"{room} imports {other}, which stands above it"


def test_at_the_top_stand_only_the_front_and_the_dispatcher():
    assert sorted(path.name for path in SRC.glob("*.py")) == ["__init__.py", "__main__.py"]
    assert sorted(path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__") == sorted(
        (*ROOMS, "configs")
    )


def test_the_order_is_watched(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "def late():\n    from safe_rlhf_v.demo.quickstart import Run\n    import safe_rlhf_v.world\n    return Run\n"
    )
    assert sorted(imported(file)) == ["demo", "world"]
