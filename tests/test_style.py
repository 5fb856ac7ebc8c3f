"""Rules that keep the code readable: budgets, one assignment per line, names that say what a value is, no unused definitions."""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("src/safe_rlhf_v", "data_modules", "callbacks")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
VAGUE = {
    "found", "kept", "said", "drawn", "made", "whole", "told", "taken", "wanted", "shown", "given", "got",
}  # fmt: skip
"""Past participles that do not say what a variable or attribute holds, or what a function returns."""
USERS_CALL = {"BEAVERTAILS_V", "OneCycle"}
"""Definitions of the public interface that nothing here uses; each is tested."""


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_file_is_one_idea(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{node.name} is too long"
    assert "from __future__ import annotations" not in text
    assert not re.search(r"^(from|import) (data_modules|callbacks)\b", text, re.MULTILINE), (
        "import under the package's name"
    )
    assert not re.search(r"(?<!manual)\.backward\(", text) or path.name in (
        "tower.py",
        "loss_module.py",
        "passes.py",
    ), "use manual_backward"


@pytest.mark.parametrize("path", TESTS, ids=names)
def test_a_file_of_tests_is_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def double_assignments(tree: ast.AST) -> Iterator[str]:
    """``a, b = x, y``, except where the values use the targets: that is an exchange."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Tuple)
            and isinstance(node.value, ast.Tuple)
        ):
            targets = [ast.unparse(target) for target in node.targets[0].elts]
            used = [{ast.unparse(part) for part in ast.walk(value)} for value in node.value.elts]
            exchange = any(
                target in values
                for (i, target), (j, values) in itertools.product(enumerate(targets), enumerate(used))
                if i != j
            )
            if not exchange:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def vague_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE:
            yield f"line {node.lineno}: variable {node.id}"
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr.lstrip("_") in VAGUE:
            yield f"line {node.lineno}: attribute {node.attr}"
        elif isinstance(node, ast.FunctionDef) and node.name.lstrip("_") in VAGUE:
            yield f"line {node.lineno}: function {node.name}"
        elif isinstance(node, ast.arg) and node.arg in VAGUE:
            yield f"line {node.lineno}: argument {node.arg}"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_one_assignment_per_line_and_names_that_say_what_they_hold(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not list(double_assignments(tree))
    assert not list(vague_names(tree))


def test_these_rules_can_fail() -> None:
    tree = ast.parse("a, b = 1, 2\nfirst, second = second, first\nfound = 3\ndef said(kept): ...\nself._got = 1")
    assert len(list(double_assignments(tree))) == 1
    assert len(list(vague_names(tree))) == 4


@pytest.mark.parametrize("path", FILES, ids=names)
def test_sections_of_docstrings_are_indented_so_that_help_shows_them(path: Path) -> None:
    """``fit --model.help CLASS`` reads options out of ``Args:``; without indentation it finds none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            lines = (ast.get_docstring(node) or "").splitlines()
            for heading, text in itertools.pairwise(lines):
                if heading in ("Args:", "Raises:", "Returns:", "Yields:", "Attributes:"):
                    assert text.startswith("    "), f"{path.name}: {heading} of {getattr(node, 'name', 'the module')}"


def test_every_definition_is_used() -> None:
    """A public function, class or constant is used by the library, its tools or its documentation, not by tests alone."""
    texts = [path.read_text() for path in FILES]
    for folder, pattern in (
        ("src/safe_rlhf_v/reports", "*.html"),
        ("configs", "*.yaml"),
        ("benchmarks", "*.py"),
        ("examples", "*.py"),
        ("docs", "*.md"),
        ("", "*.md"),
    ):
        glob = (ROOT / folder).glob if folder == "" else (ROOT / folder).rglob
        texts += [path.read_text() for path in glob(pattern) if path.name != "CHANGELOG.md"]
    words = Counter(word for text in texts for word in re.findall(r"\w+", text))
    unused = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined = [node.name]
            elif isinstance(node, ast.Assign):
                defined = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                defined = (
                    [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []
                )
            unused += [f"{names(path)}: {name}" for name in defined if words[name] < 2 and name not in USERS_CALL]
    unused = [line for line in unused if not line.rpartition(": ")[2].startswith("__")]
    assert not unused


def test_the_median_file_is_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 150
