"""Packages of extras: what is missing is one line, for every caller."""

import sys

import pytest

from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.construct.agreement import ordinal_alpha
from safe_rlhf_v.construct.people import DawidSkene
from safe_rlhf_v.ingest.identify import Identifier
from safe_rlhf_v.records.packages import package


def alpha() -> None:
    """Agreement of two."""
    ordinal_alpha({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0, "y": 2.0}}, (1, 2), 0)


def votes() -> None:
    """Votes of two."""
    DawidSkene().levels({"x": {"a": 1, "b": 1}})


def pictures() -> None:
    """Pictures of nobody."""
    Identifier()


@pytest.mark.parametrize("kind", [ImportError, ValueError])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"needs the package no_such_package: pip install '\.\[data\]'"):
        package("no_such_package.part", "data")


@pytest.mark.parametrize(
    ("function", "missing", "extra"),
    [(alpha, "krippendorff", "construct"), (votes, "crowdkit", "crowd"), (pictures, "imagehash", "data")],
)
def test_a_command_that_needs_a_missing_package_ends_in_one_line(
    function, missing, extra, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert run(function, [], name="x", show=str, examples=()) == 2
    error = capsys.readouterr().err
    assert f"pip install '.[{extra}]'" in error and missing in error and len(error.strip().splitlines()) == 1
