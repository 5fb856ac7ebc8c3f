"""Pages that are named on the command line of page_numbers.py, wherever they are."""

import sys
from pathlib import Path

import pytest
from tests.benchmarks.scripts import BENCHMARKS, importable


@pytest.mark.parametrize("relative", [False, True])
def test_a_page_is_called_as_it_was_named(
    relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("# A page\n\n<!-- settings -->\n\nIt took 0.5 s.\n")
    name = "page.md" if relative else str(tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["page_numbers.py", name])
    with importable(BENCHMARKS) as load, pytest.raises(SystemExit) as ended:
        load("page_numbers").main()
    assert not ended.value.code and capsys.readouterr().out == f"{name}:5: 0.5: settings\n"
