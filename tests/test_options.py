"""Every option of every class and of every command shows its sentence in help.

Classes are found by walking the package and options as jsonargparse finds them, so that no new class escapes.
"""

import argparse
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters

import safe_rlhf_v
from safe_rlhf_v.__main__ import COMMANDS, TRAINING, main


def options(cls: type) -> dict[str, str | None]:
    """Description of every option that a constructor of ours takes; parsers and the like have the options of their library."""
    parameters = get_signature_parameters(cls)
    return {p.name: p.doc for p in parameters if str(getattr(p.component, "__module__", "")).startswith("safe_rlhf_v")}


CLASSES = [
    pytest.param(value, id=f"{module.name.removeprefix('safe_rlhf_v.')}.{name}")
    for module in pkgutil.walk_packages(safe_rlhf_v.__path__, "safe_rlhf_v.")
    if not module.name.endswith(("__main__", "inspecting.plugin"))  # the one module that needs an extra to be imported
    for name, value in vars(importlib.import_module(module.name)).items()
    if inspect.isclass(value) and value.__module__ == module.name and not name.startswith("_")
    if not issubclass(value, BaseException)
]


def wrong(sentence: str | None) -> str | None:
    """What is wrong with an option's description, or ``None``."""
    if not sentence or not sentence.strip():
        return "has no description"
    text = sentence.strip()
    if not text.endswith((".", "?", ")")):
        return f"does not end with a full stop: {text!r}"
    if text.startswith("See "):
        return f"sends the reader elsewhere: {text!r}"
    return f"begins with a small letter: {text!r}" if text[0].islower() else None


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_of_a_class_has_a_sentence(cls: type) -> None:
    problems = {name: wrong(sentence) for name, sentence in options(cls).items() if wrong(sentence)}
    assert not problems, f"{cls.__name__}: {problems}"


def test_the_walk_finds_what_users_name() -> None:
    names = {param.values[0].__name__ for param in CLASSES}
    assert len(names) > 150
    assert names >= {
        "ConstrainedPolicyModule", "PreferenceDataModule", "SampleGallery", "HFVLM", "EvidenceHead", "PIDDual", "GAE",
        "SharedRoles", "WarmupCosine", "Guard", "WorldJudge",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "cls"),
    [
        ("--model.help", "safe_rlhf_v.policy.ConstrainedPolicyModule"),
        ("--model.help", "safe_rlhf_v.modules.GuardModule"),
        ("--data.help", "safe_rlhf_v.data_modules.PreferenceDataModule"),
        ("--trainer.callbacks.help", "safe_rlhf_v.callbacks.SampleGallery"),
    ],
)
def test_help_shows_the_sentences(flag: str, cls: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", flag, cls])
    printed = " ".join(capsys.readouterr().out.split())
    home, _, name = cls.rpartition(".")
    found = options(getattr(importlib.import_module(home), name))
    assert len(found) > 1
    for option, sentence in found.items():
        assert sentence
        assert " ".join(sentence.split()) in printed, option


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("backbone", ["models.ClipDecoder", "models.HFVLM"]),
        ("roles", ["SeparateRoles", "policy.SharedRoles"]),
        ("surrogate", ["PPOClip", "ClipHigher", "GSPO"]),
        ("sampler", ["NetworkSampler", "EngineSampler"]),
    ],
)
def test_help_lists_every_class_to_choose_from(
    option: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "safe_rlhf_v.policy.ConstrainedPolicyModule"])
    printed = " ".join(capsys.readouterr().out.partition("Help for")[2].split())
    text = printed.partition(f" --model.{option} {option.upper()} ")[2].partition(" --model.")[0]
    known = text.partition("known subclasses: ")[2]
    for name in names:
        assert name.rpartition(".")[2] in known


JUDGES = ["WorldJudge", "RewardJudge", "CostJudge", "GuardJudge", "EndpointJudge", "PeopleRatings", "RefusalWords"]


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("evaluate", "policies", ["ModelPolicy", "BestOf", "ResponsesFile"]),
        ("evaluate", "start", ["ModelPolicy", "BestOf", "ResponsesFile"]),
        ("evaluate", "judges", JUDGES),
        ("generate", "judge", JUDGES),
        ("construct", "stages", ["CollectImages", "AskQuestions", "Respond", "JudgeResponses", "Audit", "WriteShards"]),
    ],
)
def test_help_of_a_command_lists_every_class_to_choose_from(command: str, option: str, names: list[str]) -> None:
    """In a process of its own: here other tests have imported them."""
    done = subprocess.run(
        [sys.executable, "-m", "safe_rlhf_v", command, "--help"], capture_output=True, text=True, timeout=60
    )
    printed = " ".join(done.stdout.partition("options:")[2].split())
    text = re.split(r" --\w", printed.partition(f" --{option} {option.upper()} ")[2], maxsplit=1)[0]
    known = text.partition("known subclasses: ")[2]
    assert not [name for name in names if f".{name}" not in known]
    assert "._" not in known, "a class that is no choice"


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    below = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(deeper for group in below for sub in group for deeper in parsers(sub))]


GROUPED = [f"shards {name}" for name in ("inspect", "check", "import", "import-ordinal", "demonstrate")]


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "shards"), *GROUPED, *TRAINING])
def test_every_option_of_a_command_has_a_description(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands of ours print a parser's help, the training commands a text of their own."""
    shown: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: shown.append(parser))
    if command in TRAINING:
        assert main([command, "--help"]) == 0
        assert "--config FILE" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert shown
    for parser in parsers(shown[0]):
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction):
                assert action.help and action.help.strip(), f"{parser.prog}: {action.option_strings or action.dest}"
