"""A typed function as a command: its parameters are the options, its docstring is their help.

Every command so made takes ``--config FILE.yaml`` and ``--print_config``, and ends with status 0, with 2 after one line about
what was wrong, or with the status that its result stands for.
"""

import argparse
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from safe_rlhf_v.commands.config_files import check_files, check_stray
from safe_rlhf_v.training.parser_errors import NEGATIVE, PROGRAM, ShortErrors, unknown


class CommandParser(ShortErrors, ArgumentParser):
    """The options of one command."""


class Help(DefaultHelpFormatter):
    """Help in which every option has its sentence and its default; examples stand as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.replace("::\n", ":\n").split("\n\n")
        return "\n\n".join(p if "\n  " in p else textwrap.fill(" ".join(p.split()), width) for p in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        type_and_default = re.compile(r"(, )?type: %\(type\)s|(, )?default: %\(default\)s")
        has_default = action.default not in (None, "", (), [])
        text = type_and_default.sub(lambda note: note[0] if has_default and "default" in note[0] else "", text)
        if isinstance(action.default, (tuple, list)):  # as it is typed
            text = text.replace("%(default)s", " ".join(map(str, action.default)).replace("%", "%%"))
        return text.replace("(, ", "(").replace(" ()", "").replace("``", "")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if (
            action.option_strings and action.option_strings[-1] == f"{action.option_strings[0]}+"
        ):  # a list: values one after another
            return f"{action.option_strings[0]} {action.dest.upper()} [...]"
        return super()._format_action_invocation(action)


def run(
    function: Callable[..., Any],
    args: Sequence[str],
    *,
    name: str,
    show: Callable[[Any], str],
    examples: Sequence[str],
    about: str = "",
    positional: bool = False,
    first: str = "",
    status: Callable[[Any], int] = lambda result: 0,
) -> int:
    """Call a function with the options of a command line, and print what its result says.

    Args:
        function: Typed and documented.
        args: Command line behind the command's name.
        name: The command.
        show: Text of a result.
        examples: Command lines behind the program's name, for the help.
        about: More for the help than the function's docstring says.
        positional: Whether parameters without a default are given without their names.
        first: A parameter with a default that may stand first, without its name; empty for none.
        status: Exit status of a result.

    Returns:
        The exit status.
    """
    if any(arg in ("-h", "--help") or arg.partition("=")[0].endswith(".help") for arg in args):
        load_choices()
    parser = make_parser(function, name, examples, about, positional, first)
    if first and args and not args[0].startswith("-"):
        args = [f"--{first}={args[0]}", *args[1:]]
    if not {"-h", "--help"} & set(args):
        try:
            if not positional:
                check_stray(args)
            check_files(args, data=data_options(function))
        except ValueError as error:
            return refuse(error)
    config = parser.parse_args(typed_words(function, args, parser))
    options: dict[str, Any] = {}
    try:
        options = {key: value for key, value in vars(parser.instantiate(config)).items() if key != "config"}
        result = function(**options)
    except BrokenPipeError:  # nobody reads what is printed: the program's end, not a fault
        raise
    except (ValueError, OSError, RuntimeError) as error:
        if _by_users_class(error, options):
            raise
        return refuse(error)
    print(show(result))
    return status(result)


def load_choices() -> None:
    """Import the policies, judges and stages that options may name: help lists the classes that are there."""
    for room in ("evaluation", "construct", "world"):
        module = import_module(f"safe_rlhf_v.{room}")
        for public in module.__all__:
            getattr(module, public)


def make_parser(
    function: Callable[..., Any],
    name: str,
    examples: Sequence[str],
    about: str = "",
    positional: bool = False,
    first: str = "",
) -> CommandParser:
    """The parser of a function; see :func:`run`."""
    summary = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:")[0].replace("``", "")
    command_lines = "\n".join(f"  {PROGRAM} {example}" for example in examples)
    parser = CommandParser(
        prog=f"{PROGRAM} {name}",
        description="\n\n".join(filter(None, (summary, inspect.cleandoc(about).replace("``", "")))),
        epilog=f"example{'s' if len(examples) > 1 else ''}:\n{command_lines}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_function_arguments(function, as_group=False, as_positional=positional, fail_untyped=True)
    parser.add_argument("--config", action="config", help="YAML file with any of these options; what follows it wins.")
    printing = next(action for action in parser._actions if action.dest == "print_config")
    printing.help = (
        "Print every option with its value and exit, as a file for --config; =skip_default leaves defaults out."
    )
    required = [a for a in parser._actions if a.required and a.option_strings]
    places = [a.dest.upper() for a in parser._actions if not a.option_strings]
    places += [f"[{first.upper()}]"] if first else []
    words = [*places, *(f"{a.option_strings[0]} {a.dest.upper()}" for a in required)]
    phrases = [PROGRAM, name, *words, "[--OPTION VALUE ...]"]
    unbroken = " ".join(phrase.replace(" ", "\N{NO-BREAK SPACE}") for phrase in phrases)
    usage = textwrap.fill(unbroken, 100, subsequent_indent=" " * 9, break_on_hyphens=False)
    parser.usage = usage.replace("\N{NO-BREAK SPACE}", " ")
    return parser


def data_options(function: Callable[..., Any]) -> set[str]:
    """Options of a function that take a name: of a file or folder of data, or of something else, but no settings."""
    kinds = {f"--{name}": p.annotation for name, p in inspect.signature(function).parameters.items()}
    return {option for option, kind in kinds.items() if {str, Path} & {kind, *get_args(kind)}}


def typed_words(function: Callable[..., Any], args: Sequence[str], parser: ArgumentParser) -> list[str]:
    """A command line as jsonargparse reads it: ``--flag`` alone is true; ``--list a b`` and repeated ``--list`` are one list.

    An option of a path that is empty ends the program: an unset shell variable is no name of the working directory.

    Args:
        function: Whose parameters the options are.
        args: As they are typed.
        parser: Of the function.
    """
    parameters = {f"--{name}": p.annotation for name, p in inspect.signature(function).parameters.items()}
    words: list[str] = []
    lists: dict[str, list[str]] = {}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        option, joined, value = word.partition("=")
        kind = parameters.get(option)
        if _is_list(kind) and not joined and rest and rest[0].startswith("["):
            words.append(f"{option}={rest.pop(0)}")
        elif _is_list(kind) and not value.startswith("["):
            values = [value] if joined else []
            while not joined and rest and (not rest[0].startswith("-") or NEGATIVE.match(rest[0])):
                values.append(rest.pop(0))
            if not values:
                parser.error(f"{option}: needs at least one value")
            if any("\ud800" <= letter <= "\udfff" for letter in "".join(values)):
                parser.error(f"{option}: holds bytes that are no UTF-8 text")
            lists.setdefault(option, []).extend(values)
        elif kind is bool and not joined:
            has_value = bool(rest) and rest[0].lower() in ("true", "false", "yes", "no")
            words.append(f"{option}={rest.pop(0).lower() if has_value else 'true'}")
        else:
            empty = (joined and not value.strip()) or (not joined and kind is not None and rest and not rest[0].strip())
            if empty and Path in (kind, *get_args(kind)):
                parser.error(f"{option}: is empty (an unset variable?); name a file or folder")
            words.append(word)
    return [*words, *(f"{option}={json.dumps(values)}" for option, values in lists.items())]


def _is_list(kind: Any) -> bool:
    """Whether an option takes several values."""
    return any(getattr(one, "__origin__", None) in (Sequence, list) for one in (kind, *get_args(kind)))


def dispatch(name: str, commands: Mapping[str, tuple[Callable[[Sequence[str]], int], str]], args: Sequence[str]) -> int:
    """Run a command of a group of commands.

    Args:
        name: The group.
        commands: By name, what runs it and what it is for.
        args: Command line behind the group's name.

    Returns:
        The exit status.
    """
    if args and args[0] in commands:
        return commands[args[0]][0](args[1:])
    if args and args[0] in ("-h", "--help"):
        print(f"usage: {PROGRAM} {name} COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {command:<16}{about}" for command, (_, about) in commands.items()))
        print(f"\n  {PROGRAM} {name} COMMAND --help          what a command takes")
        return 0
    expected = f"expected one of: {', '.join(commands)}"
    return refuse(
        ValueError(unknown(f"command {name}", args[0], commands, expected) if args else f"{name}: {expected}")
    )


def refuse(error: Exception) -> int:
    """Say in one line what was wrong, after the problems that the error lists; gives exit status 2."""
    for problem in getattr(error, "problems", ()):
        print(problem, file=sys.stderr)
    if more := getattr(error, "more", 0):
        print(f"... and {more} more problems", file=sys.stderr)
    print(f"error: {one_line(error)}", file=sys.stderr)
    return 2


def one_line(error: Exception) -> str:
    """An error in one line, beginning with the file where it is about one."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split()) or type(error).__name__


def _by_users_class(error: Exception, options: Mapping[str, Any]) -> bool:
    """Whether a class of the user's own, which an option named, took part: its traceback is the user's to read."""
    homes = {type(value).__module__ for value in options.values()} - {"builtins"}
    own = {home for home in homes if home.partition(".")[0] not in ("safe_rlhf_v", "pathlib", "jsonargparse")}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in own:
            return True
        trace = trace.tb_next
    return False
