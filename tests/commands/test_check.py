"""The command that says whether a model can be trained."""

from pathlib import Path
from typing import Any

import pytest

from safe_rlhf_v.__main__ import main
from safe_rlhf_v.models import family_check, family_structure
from safe_rlhf_v.models.family_defaults import DEFAULTS
from safe_rlhf_v.models.family_structure import model_types, structure_line
from safe_rlhf_v.models.tiny import write_tiny_vlm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm("qwen3_5", tmp_path_factory.mktemp("qwen3_5"))


def test_a_model_is_tried_without_its_weights(folder: Path, capsys: Any) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert main(["check", str(folder), "--freeze_projector", "false"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("model_type 'qwen3_5' passes its self-test (placeholders,")
    assert line.endswith("; rows are not packed, as some layers carry a state from token to token")


def test_a_failing_model_ends_with_a_status(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(twin: Any) -> None:
        raise KeyError("odd\nreason")

    monkeypatch.setattr(family_check, "CHECKS", {"this one": fail})
    assert main(["check", str(folder)]) == 1
    assert capsys.readouterr().out == "model_type 'qwen3_5' fails its self-test: this one: KeyError: 'odd\\nreason'\n"


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("smolvlm", 0, "supported by its structure (packed rows)"),
        ("lfm3_vl", 0, "supported by its structure (unpacked rows"),
        ("blip-2", 1, "takes no precomputed image features"),
        ("kosmos-2", 1, "takes no precomputed image features"),
    ],
)
def test_a_model_type(name: str, status: int, says: str, capsys: Any) -> None:
    if name not in model_types():
        pytest.skip(f"the installed transformers has no {name}")
    assert main(["check", name]) == status
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{name}: ") and says in line


@pytest.mark.parametrize("name", [*DEFAULTS, "evolla"])
def test_no_family_is_unknown_because_its_config_leaves_something_open(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in model_types():
        pytest.skip(f"the installed transformers has no {name}")
    line, served = structure_line(name)
    assert line.startswith((f"{name}: supported by its structure", f"{name}: refused: "))
    assert served == ("refused" not in line)
    monkeypatch.setattr(family_structure, "DEFAULTS", {})
    without, served = structure_line(name)
    assert ("unknown, its default config makes no network" in without) == (name in DEFAULTS) and not served


@pytest.mark.parametrize("name", ["", "no/such/folder"])
def test_what_is_no_model_is_refused_in_one_line(name: str, capsys: Any, tmp_path: Path) -> None:
    assert main(["check", str(tmp_path / "none" / name), "--local_files_only", "true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model ") and error.count("\n") == 1


@pytest.mark.slow
def test_every_family_of_transformers_ends_in_one_line() -> None:
    lines = {name: structure_line(name) for name in model_types()}
    assert len(lines) > 50
    for name, (line, served) in lines.items():
        assert line.startswith(f"{name}: ") and "\n" not in line
        assert (": supported by its structure (" in line) == served
    assert sum(served for _, served in lines.values()) > 30
