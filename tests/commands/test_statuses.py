"""Exit statuses: a program that broke has one of its own, in every command; and negative numbers are values, not options."""

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import pytest

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.commands import CRASHED
from safe_rlhf_v.commands.certify import STATUS
from safe_rlhf_v.commands.fit import TrainingParser
from safe_rlhf_v.commands.runner import CommandParser

VERDICTS = {0, 1, 2, 3, *STATUS.values()}


def broken(args: Sequence[str]) -> NoReturn:
    raise ZeroDivisionError("a fault of the program")


@pytest.mark.parametrize("command", ["certify", "plan", "evaluate", "shards", "quickstart", "fit"])
def test_a_crash_is_no_verdict(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = "safe_rlhf_v.commands.fit" if command == "fit" else entry.COMMANDS[command][0]
    monkeypatch.setattr(import_module(home), "main", broken)
    monkeypatch.setattr(sys, "argv", ["safe_rlhf_v", command])
    assert entry.program() == CRASHED and CRASHED not in VERDICTS
    assert "ZeroDivisionError: a fault of the program" in capsys.readouterr().err


def test_the_program_itself_ends_with_these_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    certify = import_module("safe_rlhf_v.commands.certify")
    monkeypatch.delitem(sys.modules, entry.__name__)  # it is run anew
    for main, status in ((broken, CRASHED), (lambda args: 1, 1), (lambda args: sys.exit(2), 2)):
        monkeypatch.setattr(certify, "main", main)
        monkeypatch.setattr(sys, "argv", ["safe_rlhf_v", "certify"])
        with pytest.raises(SystemExit) as exit:
            runpy.run_module("safe_rlhf_v", run_name="__main__")
        assert exit.value.code == status


@pytest.mark.parametrize("parser", [CommandParser, TrainingParser])
@pytest.mark.parametrize("word", ["-1", "-1e-3", "-1.5E+5", "-.5", "-5.", "-.5e1", "-.inf"])
def test_a_negative_number_behind_an_option_is_its_value(parser: type[CommandParser], word: str) -> None:
    command = parser()
    command.add_argument("--budget", type=float)
    command.add_argument("--inner.budget", type=float)
    config = command.parse_args(["--budget", word, "--inner.budget", word])
    assert config.budget == config.inner.budget == float(word.replace(".inf", "inf"))


def test_what_only_begins_like_a_number_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    command = CommandParser()
    command.add_argument("--budget", type=str)
    for word in ("-1x", "--1", "-e3", "-information"):
        with pytest.raises(SystemExit):
            command.parse_args(["--budget", word])
        assert capsys.readouterr().err.startswith("error: ")
