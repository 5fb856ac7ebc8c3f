"""How the policy's files hang together: one reads another through arguments, and a step is made of methods."""

import ast
import inspect
from pathlib import Path

import pytest

from safe_rlhf_v.policy import ConstrainedPolicyModule, Roles, SeparateRoles, SharedRoles

FOLDER = Path(inspect.getfile(ConstrainedPolicyModule)).parent
OTHERS = sorted(path for path in FOLDER.glob("*.py") if path.name not in ("module.py", "__init__.py"))


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_no_other_file_reads_the_module(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            assert node.module != "safe_rlhf_v.policy.module" and "ConstrainedPolicyModule" not in names


def test_a_step_calls_its_methods_in_order() -> None:
    tree = ast.parse(inspect.getsource(ConstrainedPolicyModule.training_step).strip())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    names = [call.func.attr for call in sorted(calls, key=lambda call: call.lineno)]  # type: ignore[attr-defined]
    assert names == ["rollout", "score", "dual_step", "shape", "update", "report"]


def test_roles_are_four_methods_and_both_kinds_write_no_other() -> None:
    assert Roles.__abstractmethods__ == {"create", "network", "trained", "frozen"}
    shared = {name for name in vars(Roles) if not name.startswith("_")} - Roles.__abstractmethods__
    for kind in (SeparateRoles, SharedRoles):
        assert not shared & set(vars(kind))
