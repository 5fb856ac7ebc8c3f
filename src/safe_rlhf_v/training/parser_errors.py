"""Command-line errors in one line: what was given, what was expected, and the nearest right word.

The candidates for "did you mean" are those of the parser or module in which the wrong word stands: the options of the class at
hand, the subclasses that an option takes, the names of a module.
"""

import argparse
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NoReturn, get_args

_KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:')
_NOISE = re.compile(
    r"(Does not validate against|Errors:|Subtypes:|Given value|Expected a path but|Expected a <class 'NoneType'>|"
    r"Problem with given class_path|Subclass types expect|a class path \(str\)|a dict )"
)
_ADVISED = re.compile(r"unknown (option|class|module)|has no ")
PROGRAM = "python -m safe_rlhf_v"
NEGATIVE = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|^-\.inf$", re.IGNORECASE)
"""A negative number, which begins like an option and is a value."""
_HELP = (
    "help is asked for as --model.help CLASS, --data.help CLASS, --trainer.callbacks.help CLASS; about an option of the class "
    "with --model.OPTION.help behind it; about the Trainer as --help-all"
)


class ShortErrors(argparse.ArgumentParser):
    """Mixin of parsers: an error is one line on stderr and exit status 2.

    jsonargparse builds the parser of every class that an option names from the class of the outer parser, so that each
    knows its own options.
    """

    mend = "--help lists them"
    """Where all options are listed."""

    exit_on_error: bool
    _owner = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Create the parser; those that jsonargparse makes for a class have no program's name of their own."""
        super().__init__(*args, **{"prog": PROGRAM, **options})
        self._negative_number_matcher = (
            NEGATIVE  # Python's own, before 3.14, takes -1e-3 behind an option for another option
        )

    def add_class_arguments(self, class_type: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse; remembers whose options these are."""
        if nested_key is None:
            self._owner = f" of {getattr(class_type, '__name__', class_type)}"
        return super().add_class_arguments(class_type, nested_key, *args, **kwargs)  # type: ignore[misc]  # of the parser

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write one line and exit with status 2; the parser of an inner class tells the outer one."""
        advised = self._advise(str(message))
        if not self.exit_on_error:
            raise argparse.ArgumentError(None, advised) from ex
        sys.stderr.write(f"error: {shorten(advised)}\n")
        sys.exit(2)

    def _advise(self, message: str) -> str:
        """The message, with the nearest right word of this parser for what it does not know."""
        parsers = {
            name: parser
            for action in self._actions
            if isinstance(action.choices, dict)
            for name, parser in action.choices.items()
        }
        if re.match(r"argument --[\w.]+: (expected one argument|ignored explicit argument)", message):
            words = [word for word in map(str, getattr(self, "args", ())) if word.partition("=")[0].endswith(".help")]
            if words:
                return f"{words[0]}: {_HELP}"
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            return self._unrecognized(match[1].partition("=")[0], [self, *parsers.values()])
        if match := re.match(r"the following arguments are required: (.+)", message.splitlines()[0]):
            return self.missing([name.rpartition(".")[2] for name in match[1].split(", ")])
        if match := re.fullmatch(r"Option '([\w.-]+)' is not accepted.*", message):
            return unknown("option", match[1], _dests(self), self.mend, self._owner)
        if match := re.fullmatch(r"Subcommand '(\w+)' does not accept option '([\w.-]+)'", message):
            return unknown("option", match[2], _dests(parsers[match[1]]), self.mend)
        if match := re.fullmatch(r"Group '([\w.-]+)' does not accept option '([\w.-]+)'", message):
            return unknown("option", f"{match[1]}.{match[2]}", _dests(self), self.mend)
        key = _KEY.match(message)
        action = next((a for a in self._actions if key and a.dest == key[1]), None)
        classes = _classes(getattr(action, "_typehint", None))
        message = re.sub(r"Expected a dot import path string: (\S+)", lambda m: _unknown_class(m[1], classes), message)
        message = re.sub(r"module '([\w.]+)' has no attribute '(\w+)'", lambda m: _unknown_name(m[1], m[2]), message)
        return re.sub(r"No module named '([\w.]+)'", lambda m: _unknown_module(m[1]), message)

    def missing(self, names: list[str]) -> str:
        """What is said of required options that are not given."""
        places = {action.dest for action in self._actions if not action.option_strings}
        words = [name.upper() if name in places else f"--{name}" for name in names]
        return f"missing: {', '.join(words)}; --help tells what they are"

    def _unrecognized(self, word: str, parsers: list[Any]) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no option; {self.mend}"
        if word.endswith(".help"):
            return f"unknown option {word}; {_HELP}"
        return unknown("option", word, {o for parser in parsers for o in parser._option_string_actions}, self.mend)


def shorten(message: str) -> str:
    """One line from jsonargparse's many.

    Args:
        message: As given to ``error``.
    """
    leaves = [leaf for leaf in _leaves(message) if leaf[1]]
    if not leaves:
        return " ".join(message.split())
    advised = [leaf for leaf in leaves if _ADVISED.search(leaf[1])]
    deepest = max(len(keys) for keys, _ in leaves)
    chosen = advised[:1] or [leaf for leaf in leaves if len(leaf[0]) == deepest]
    key = ".".join(chosen[0][0])
    text = _plain(list(dict.fromkeys(text for _, text in chosen)))
    lines = [line.strip(" -") for line in message.splitlines()]
    values = [
        match[1]
        for line in lines
        if (match := re.search(r"(?:Given|Got) value: (?!NestedArg|Namespace)(.+?)(?:\. Got value: |$)", line))
    ]
    value = values[0] if values else ""
    if no_subclass := re.fullmatch(r"Import path does not correspond to a subclass of (\S+)", text):
        text = f"{value!r:.80} is no subclass of {no_subclass[1]}"
    elif value and not advised:
        text += f", not {value!r:.80}"
    # jsonargparse 4.53 takes null for a key inside plain-data settings from files only.
    null = {"Given value: None", "Expected a <class 'NoneType'>"} <= set(lines)
    return (f"{key}: " if key else "") + text + ("; write null into a --config file" if null else "")


def _leaves(message: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys from the outermost in, what is wrong there) of each line that says something."""
    stack: list[tuple[int, str]] = []
    for line in filter(str.strip, message.splitlines()):
        indent = len(line) - len(line.lstrip())
        stack = [(depth, key) for depth, key in stack if depth < indent]
        stack += [(indent, key) for key in _KEY.findall(line)]
        text = _KEY.split(line)[-1].strip(" -")
        text = re.sub(r"^Type \S+\[.*\] expects a function or a callable class: ", "", text)
        text = re.sub(r"\. Got value: .*$", "", text)
        if not _NOISE.match(text):
            yield tuple(key for _, key in stack), text


def _plain(texts: list[str]) -> str:
    """What was expected, in words."""
    types = [match[1] for text in texts if (match := re.fullmatch(r"Expected an? <class '([\w. ]+)'>", text))]
    others = [text for text in texts if not re.fullmatch(r"Expected an? <class '([\w. ]+)'>", text)]
    text = " ".join([*others, *([f"expected {' or '.join(types)}"] if types else [])])
    text = re.sub(r"Expected an? typing\.Literal(\[.*\])", _literal, text)
    text = re.sub(r"Expected an? <class '([\w.]+)'>", r"expected \1", text)
    text = re.sub(r"Not of type \w+: (\S+) does not conform to restriction (.+)", _restriction, text)
    text = re.sub(r"Not of type \w+: invalid literal for int\(\) with base 10: (.+)", r"\1 is no whole number", text)
    return re.sub(r"Not of type \w+: could not convert string to float: (.+)", r"\1 is no number", text)


def _literal(match: re.Match[str]) -> str:
    return f"expected one of {match[1]}"


def _restriction(match: re.Match[str]) -> str:
    return f"must be {match[2].replace('v', '')}, not {match[1]}"


def unknown(what: str, name: str, names: Iterable[str], mend: str = "", owner: str = "") -> str:
    """``unknown option 'lrr'; did you mean lr?``.

    Args:
        what: ``option``, ``class``, ...
        name: What was given.
        names: Those that exist there.
        mend: Said where none of them is near.
        owner: `` of CLASS``, or nothing.
    """
    near = nearest(name, names)
    printed_name = name if name.startswith("-") else repr(name)
    return f"unknown {what} {printed_name}{owner}" + (
        f"; did you mean {near}?" if near else f"; {mend}" if mend else ""
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The nearest of some names, or ``None`` if none is near; dots part words, of which only the wrong one need be near.

    Args:
        name: What was given.
        names: Those that exist.
    """
    known = sorted(set(names) - {name})
    cutoff = 0.7 if len(name) > 4 else 0.6  # of three letters two
    if near := get_close_matches(name, known, n=1, cutoff=cutoff):
        return near[0]
    head, _, tail = name.partition(".")
    heads = {option.partition(".")[0] for option in known}
    if tail and head not in heads and (near := get_close_matches(head, sorted(heads), n=1, cutoff=0.7)):
        return f"{near[0]}.{tail}"
    return None


def _dests(parser: Any) -> set[str]:
    """Keys of a parser's options."""
    return {action.dest for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")}


def _classes(typehint: Any) -> list[type]:
    """Classes of a type hint, at any depth."""
    below = [cls for inner in get_args(typehint) for cls in _classes(inner)]
    return [typehint, *below] if inspect.isclass(typehint) and not get_args(typehint) else below


def _unknown_class(name: str, bases: Iterable[type]) -> str:
    """A class name without a module: the nearest of those that would do, and of those of this package."""
    known = {cls.__name__: cls.__name__ for base in bases if base is not object for cls in (base, *_subclasses(base))}
    names = {**_ours(), **known}
    near = name if name in names else nearest(name, known) or nearest(name, names)
    return (
        f"unknown class {name!r}; did you mean {names[near]}?"
        if near
        else f"Expected a <class 'class path'>. Got value: {name}"
    )


def _unknown_name(module: str, name: str) -> str:
    """A name that a module lacks: the nearest that it has, or where this package has it."""
    home = sys.modules.get(module)
    public = getattr(home, "__all__", None) or [n for n in dir(home) if not n.startswith("_")]
    below = [m.name for m in pkgutil.iter_modules(getattr(home, "__path__", []))]
    alike = {n: n for n in [*public, *below] if n[:1].isupper() == name[:1].isupper()}
    near = nearest(name, alike) or _ours().get(name) or _ours().get(nearest(name, _ours()) or "")
    return f"{module} has no {name}" + (f"; did you mean {near}?" if near else "")


def _unknown_module(path: str) -> str:
    """A module that does not exist: the nearest beside it."""
    parts = path.split(".")
    home = ".".join(parts[:-1])
    package = sys.modules.get(home)
    if package is not None:
        names = [f"{home}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))]
    else:
        names = [name for name in sys.modules if "." not in name and not name.startswith("_")]
    return unknown("module", path, names)


def _ours() -> dict[str, str]:
    """Path of every public name of this package's rooms, as far as they are loaded."""
    rooms = [(home, module) for home, module in list(sys.modules.items()) if re.fullmatch(r"safe_rlhf_v\.\w+", home)]
    return {name: f"{home}.{name}" for home, module in rooms for name in getattr(module, "__all__", ())}


def _subclasses(cls: type) -> Iterator[type]:
    children: list[type] = type.__subclasses__(cls)
    for child in children:
        if not child.__name__.startswith("_"):
            yield child
        yield from _subclasses(child)
