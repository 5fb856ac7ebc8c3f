"""Budgets that keep the code readable."""

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("src/safe_rlhf_v", "data_modules", "callbacks")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_idea(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 70, f"{node.name} is too long"
    assert "from __future__ import annotations" not in text
    assert not re.search(r"^(from|import) (data_modules|callbacks)\b", text, re.MULTILINE), (
        "import under the package's name"
    )
    assert not re.search(r"(?<!manual)\.backward\(", text) or path.name in ("tower.py", "loss_module.py"), (
        "use manual_backward"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sections_of_docstrings_are_indented_so_that_help_shows_them(path):
    """``fit --model.help CLASS`` reads options out of ``Args:``; without indentation it finds none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            lines = (ast.get_docstring(node) or "").splitlines()
            for heading, text in itertools.pairwise(lines):
                if heading in ("Args:", "Raises:", "Returns:", "Yields:", "Attributes:"):
                    assert text.startswith("    "), f"{path.name}: {heading} of {getattr(node, 'name', 'the module')}"


def test_the_median_file_is_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 150
