"""Command-line errors in one line: what was given, what was expected, and the nearest right word."""

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_NOISE = (
    "Does not validate",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Given value",
    "Problem with",
    "Subtypes:",
)


class ShortErrorParser(LightningArgumentParser):
    """Prints what is wrong, not how the program is used."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write one line and exit with status 2."""
        sys.stderr.write(f"error: {shorten(str(message), self._options())}\n")
        sys.exit(2)

    def _options(self) -> list[str]:
        """Option strings of this parser and its subcommands."""
        parsers = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
        return [option for parser in parsers for option in parser._option_string_actions]


def shorten(message: str, options: Iterable[str] = ()) -> str:
    """One line from jsonargparse's many.

    Args:
        message: As given to ``error``.
        options: Option strings that would have been accepted (``--trainer.max_steps``).
    """
    lines = [line.strip(" -") for line in message.splitlines()]
    key = next((f"{found[1]}: " for line in lines if (found := re.match(r'Parser key "(.+?)":', line))), "")
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        module, name = found.groups()
        return f"{key}{module} has no {name}{_nearest(name, dir(sys.modules.get(module)))}"
    if found := re.search(r"Option '([\w.]+)' is not accepted", message):
        name = found[1].removesuffix(".class_path").removesuffix(".init_args")
        return f"{key}unknown option {name!r}{_nearest(name.rpartition('.')[2], known_names())}"
    if found := re.match(r"unrecognized arguments: (\S+?)(=.*)?$", lines[0]):
        return f"unknown option {found[1]}{_nearest(found[1], options)}"
    if found := re.match(r"the following arguments are required: (.+)", lines[0]):
        names = [name.rpartition(".")[2] for name in found[1].split(", ")]
        mend = "name a configuration by --config FILE, or a run by --ckpt_path RUN"
        return f"missing: {', '.join(names)}; {mend}"
    kept = [re.sub(r'^Parser key "(.+?)":', r"\1:", line) for line in lines if line and not line.startswith(_NOISE)]
    # jsonargparse 4.53 takes null for a key inside plain-data settings from files only.
    null = {"Given value: None", "Expected a <class 'NoneType'>"} <= set(lines)
    hint = "; write null into a --config file" if null else ""
    return (" ".join(dict.fromkeys(kept)).replace("Expected a typing.Literal", "Expected one of ") or lines[0]) + hint


def known_names() -> set[str]:
    """Constructor options of every component that is loaded, ours and the user's."""
    classes: list[type] = [Trainer]
    for base in (LightningModule, LightningDataModule, Callback, Logger, Optimizer, LRScheduler):
        classes += _subclasses(base)
    for name, module in list(sys.modules.items()):
        if name.startswith("safe_rlhf_v."):
            classes += [value for value in vars(module).values() if isinstance(value, type)]
    names: set[str] = set()
    for cls in classes:
        parameters: Any = getattr(inspect.unwrap(cls.__init__), "__code__", None)  # type: ignore[misc]
        names |= set(parameters.co_varnames[: parameters.co_argcount]) if parameters is not None else set()
    return names - {"self"}


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return direct + [deeper for child in direct for deeper in _subclasses(child)]


def _nearest(name: str, names: Iterable[str]) -> str:
    found = get_close_matches(name, sorted(names), n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else "; --print_config shows every key"
