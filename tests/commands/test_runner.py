"""A typed function as a command: its help, its errors, its files of options; the same for every own command."""

import contextlib
import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import safe_rlhf_v
from safe_rlhf_v import __main__ as entry
from safe_rlhf_v import calibrate, evaluate, filter, generate, moderate
from safe_rlhf_v.commands.options import AnyPath, NonNegativeFloat, PositiveInt, Share
from safe_rlhf_v.commands.runner import make_parser, run
from safe_rlhf_v.commands.shards import check_shards, import_ordinal, inspect_shards
from safe_rlhf_v.commands.tokenizer import write_tokenizer
from safe_rlhf_v.ingest.folder import import_folder

FUNCTIONS = (
    calibrate, check_shards, evaluate, filter, generate, import_folder, import_ordinal, inspect_shards, moderate,
    write_tokenizer,
)  # fmt: skip


def count(
    source: AnyPath,
    words: Sequence[str] = ("a",),
    most: PositiveInt = 3,
    heat: NonNegativeFloat = 1.0,
    share: Share = 0.5,
    shape: Literal["round", "square"] = "round",
    loud: bool = False,
    extra: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Count words.

    Args:
        source: Where.
        words: Which.
        most: How many.
        heat: How hot.
        share: How much.
        shape: Which shape.
        loud: Whether.
        extra: More.
    """
    if str(source) == "nowhere":
        raise FileNotFoundError(2, "No such file", "nowhere")
    if str(source) == "closed":
        raise BrokenPipeError
    return locals()


def outcome(args: list[str]) -> tuple[int, dict[str, Any]]:
    """Exit status and options of a call."""
    results: list[dict[str, Any]] = []

    def show(result: dict[str, Any]) -> str:
        results.append(result)
        return "counted"

    try:
        status = run(count, args, name="count", show=show, examples=("count --source x",))
    except SystemExit as exit:
        return int(exit.code or 0), {}
    return status, results[0] if results else {}


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([], {"words": ["a"], "loud": False, "extra": None, "most": 3}),
        (["--words", "b", "c"], {"words": ["b", "c"]}),
        (["--words=b", "--words=c"], {"words": ["b", "c"]}),
        (["--words", "b", "--most", "4", "--words", "c", "1"], {"words": ["b", "c", "1"], "most": 4}),
        (["--words=[b, c]"], {"words": ["b", "c"]}),
        (["--words", "-1e-3", "b", "-.5"], {"words": ["-1e-3", "b", "-.5"]}),
        (["--extra", "null", "x: y"], {"extra": ["null", "x: y"]}),
        (["--loud"], {"loud": True}),
        (["--loud", "--most=4"], {"loud": True, "most": 4}),
        (["--loud", "false"], {"loud": False}),
        (["--loud=true"], {"loud": True}),
        (["--loud", "False", "--most=4"], {"loud": False, "most": 4}),
        (["--loud", "no"], {"loud": False}),
        (["--config=quoted.yaml"], {"loud": False}),
        (["--config=quoted.json"], {"loud": False}),
        (["--config=c.yaml"], {"words": ["x", "y"], "most": 7, "loud": True}),
        (["--config=c.yaml", "--most=8", "--words=z"], {"words": ["z"], "most": 8, "loud": True}),
        (["--config", "c.yaml", "--loud", "false"], {"loud": False}),
    ],
)
def test_options_as_people_type_them(
    args: list[str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("words: [x, y]\nmost: 7\nloud: true\n")
    for name in ("quoted.yaml", "quoted.json"):  # a text where true or false is meant
        Path(name).write_text('{"loud": "false"}\n')
    status, given = outcome(["--source=here", *args])
    assert status == 0
    assert {name: given[name] for name in options} == options


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--source="], "source: is empty (an unset variable?); name a file or folder"),
        (["--source", " "], "source: is empty (an unset variable?); name a file or folder"),
        (["--source=nowhere"], "nowhere: no such file"),
        (["--most=0"], "most: must be >0, not 0"),
        (["--most=x"], "most: 'x' is no whole number"),
        (["--heat=-1"], "heat: must be >=0 and <inf, not -1"),
        (["--heat", "-1e-3"], "heat: must be >=0 and <inf, not -1e-3"),
        (["--heat=inf"], "heat: must be >=0 and <inf, not inf"),
        (["--heat=nan"], "heat: must be >=0 and <inf, not nan"),
        (["--share=1.5"], "share: must be >=0 and <=1, not 1.5"),
        (["--share=much"], "share: 'much' is no number"),
        (["--shape=rund"], "shape: expected one of ['round', 'square'], not 'rund'"),
        (["--loud=loudly"], "loud: expected bool, not 'loudly'"),
        (["--words", "a", "\udcff"], "words: holds bytes that are no UTF-8 text"),
        (["--words"], "words: needs at least one value"),
        (["--mots=3"], "unknown option --mots; did you mean --most?"),
        (["--mots", "3"], "unknown option --mots; did you mean --most?"),
        (["c.yaml"], "c.yaml: is no option; a configuration is named by --config c.yaml"),
        (["--config=typo.yaml"], "unknown option 'mots'; did you mean most?"),
        (["--config=twice.yaml"], "twice.yaml: line 2: most is given twice (first on line 1); keep one"),
        (["--config=list.yaml"], "list.yaml: holds a list, not the options of a command"),
        (["--config=empty.yaml"], "empty.yaml: is empty, not the options of a command"),
        (["--config=nowhere.yaml"], "--config nowhere.yaml: does not exist"),
        (["--config="], "--config: needs a value, as in --config run.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    args: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"c": "most: 7", "typo": "mots: 3", "twice": "most: 3\nmost: 4", "list": "- most", "empty": "# nothing"}
    for name, text in contents.items():
        Path(f"{name}.yaml").write_text(f"{text}\n")
    source = [] if args[0].startswith("--source") else ["--source=here"]
    assert outcome([*args, *source])[0] == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_closed_pipe_is_no_mistake() -> None:
    with pytest.raises(BrokenPipeError):
        outcome(["--source=closed"])


def test_a_printed_configuration_feeds_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(["--source=here", "--words", "b", "c", "--loud", "--print_config"])[0] == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    assert yaml.safe_load(printed)["words"] == ["b", "c"]
    status, given = outcome([f"--config={tmp_path / 'c.yaml'}"])
    assert status == 0
    assert (given["source"], given["words"], given["loud"]) == ("here", ["b", "c"], True)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_option_has_its_sentence(function: Any) -> None:
    parser = make_parser(function, "x", ("x",))
    options = {action.dest: action for action in parser._actions}
    for name in inspect.signature(function).parameters:
        sentence = options[name].help
        assert sentence, name
        assert sentence[0].isupper() or sentence.startswith((".", "``error``")), name
        assert sentence.endswith("."), name


SHARED = ("trust", "base", "max_new_tokens", "seed")


@pytest.mark.parametrize("name", SHARED)
def test_options_of_several_commands_are_the_same_everywhere(name: str) -> None:
    users = [f for f in (calibrate, evaluate, filter, generate, moderate) if name in inspect.signature(f).parameters]
    assert len(users) > 1
    parameters = [inspect.signature(f).parameters[name] for f in users]
    assert len({str(p) for p in parameters}) == 1
    helps = {next(a.help for a in make_parser(f, "x", ("x",))._actions if a.dest == name) for f in users}
    assert len(helps) == 1


OWN = [
    name for name, (home, _) in entry.COMMANDS.items() if home.startswith("safe_rlhf_v.commands.") and name != "shards"
]


@pytest.mark.parametrize("command", OWN)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        entry.main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m safe_rlhf_v {command} ")
    assert f"  python -m safe_rlhf_v {command} " in text.partition("example")[2]
    assert "--config" in text
    assert "<class" not in text


def test_help_is_written_as_options_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(count, ["--help"], name="count", show=str, examples=("count --source x",))
    text = " ".join(capsys.readouterr().out.split())
    assert "[--OPTION VALUE ...]" in text
    assert "Which. (default: a)" in text
    assert "(default: )" not in text and "More. --config" in text  # nothing where nothing is the default
    assert "  [" not in make_parser(lambda: None, "bare", ()).usage


def test_the_columns_of_a_table_stand_in_the_help_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        entry.main(["shards", "import", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "    question        required" in lines
    assert not [line for line in lines if "``" in line or "::" in line]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["shards", "chek", "x"], "unknown command shards 'chek'; did you mean check?"),
        (["shards", "imports"], "unknown command shards 'imports'; did you mean import?"),
        (["shards", "zzz"], "unknown command shards 'zzz'; expected one of: inspect, check, import, presets, import-ordinal, demonstrate"),
        (["shards"], "shards: expected one of: inspect, check, import, presets, import-ordinal, demonstrate"),
        (["shards", "check", "x", "--reprot=y"], "unknown option --reprot; did you mean --report?"),
        (["generate", "--polcy=x"], "unknown option --polcy; did you mean --policy?"),
        (["generate", "--strategy=BestOfX"], "strategy: unknown class 'BestOfX'; did you mean BestOfK?"),
        (["generate", "--strategy=BestOfK", "--strategy.kk=3"], "strategy: unknown option 'kk' of BestOfK; did you mean k?"),
        (["evaluate", "--juges=x"], "unknown option --juges; did you mean --judges?"),
        (["filter", "--actoin=drop"], "unknown option --actoin; did you mean --action?"),
        (["calibrate", "--repot", "x"], "unknown option --repot; did you mean --report?"),
        (["tokenizer", "--shrads=x"], "unknown option --shrads; did you mean --shards?"),
        (["moderate", "--batch-size=3"], "unknown option --batch-size; did you mean --batch_size?"),
    ],
)  # fmt: skip
def test_misspelt_words_of_own_commands(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = entry.main(args)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_the_commands_are_functions_of_python_that_load_when_they_are_named() -> None:
    for name in ("calibrate", "evaluate", "filter", "generate", "moderate"):
        assert callable(getattr(safe_rlhf_v, name))
        assert name in safe_rlhf_v.__all__
    code = "from safe_rlhf_v import calibrate, evaluate, filter, generate, moderate; import sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_threat_model_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "validate", "test", "predict", "evaluate", "moderate", "generate", "filter", "calibrate"):
        with contextlib.suppress(SystemExit):
            entry.main([command, "--help"])
        printed = capsys.readouterr().out
        assert "--trust" in printed, command
        assert "docs/security.md" in printed, command


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (["shards", "import"], "shards import [SOURCE] --out OUT [--OPTION VALUE ...]"),
        (["shards", "check"], "shards check PATH [--OPTION VALUE ...]"),
        (["shards", "inspect"], "shards inspect PATH [--OPTION VALUE ...]"),
    ],
)
def test_usage_names_what_stands_without_an_option(
    command: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        entry.main([*command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m safe_rlhf_v {usage}\n")
