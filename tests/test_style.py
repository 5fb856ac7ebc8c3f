"""Budgets that keep the code readable."""

import ast
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


def test_the_median_file_is_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 150
