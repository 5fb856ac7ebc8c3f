"""The YAML in the docstrings of every room: the options it names exist and have the types it gives them."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

import safe_rlhf_v

SRC = Path(safe_rlhf_v.__file__).parent


def documented():
    """Every class with YAML in its docstring, by its home."""
    for path in sorted([*SRC.glob("*/*.py"), *(SRC.parents[1] / "examples" / "downstream").glob("*.py")]):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and "YAML::" in (ast.get_docstring(node) or ""):
                home = f"safe_rlhf_v.{path.parent.name}.{path.stem}" if SRC in path.parents else path.stem
                yield pytest.param(home, node.name, id=f"{path.parent.name}.{node.name}")


def sections(value):
    """Every mapping with a ``class_path``, at any depth."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value
        for item in value.values():
            yield from sections(item)
    elif isinstance(value, list):
        for item in value:
            yield from sections(item)


def with_files(value):
    """The same with the content of the YAML files that are named, as the command line puts it there."""
    if isinstance(value, dict):
        return {name: with_files(item) for name, item in value.items()}
    return yaml.safe_load(Path(value).read_text()) if isinstance(value, str) and value.endswith(".yaml") else value


def load(path):
    home, _, name = path.rpartition(".")
    return getattr(import_module(home), name)


def required(cls, options):
    """Options that are given by whoever builds the class: a module's factories take a backbone, for instance."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    missing = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return [p.name for p in missing if p.name not in {"self", *options}]


def parse(section):
    """Parse one section through jsonargparse, as a configuration would. Raises: if an option is unknown or of another type."""
    cls = load(section["class_path"])
    options = section.get("init_args", {})
    given_later = required(cls, options)
    kind = Callable[[Any], cls] if given_later else cls
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--component", type=kind)
    parser.parse_object({"component": {"class_path": section["class_path"], "init_args": options}})


@pytest.mark.parametrize(("home", "name"), list(documented()))
def test_docstring_yaml_is_understood(home, name, monkeypatch):
    monkeypatch.syspath_prepend(str(SRC.parents[1] / "examples" / "downstream"))
    monkeypatch.chdir(SRC.parents[1])
    cls = getattr(import_module(home), name)
    blocks = [block for block in inspect.getdoc(cls).split("YAML::")[1:]]
    own = []
    for block in blocks:
        indented = takewhile(lambda line: not line.strip() or line.startswith("    "), block.splitlines())
        config = with_files(yaml.safe_load(textwrap.dedent("\n".join(indented))))
        for section in sections(config):
            parse(section)
            own.append(load(section["class_path"]))
        if is_dataclass(cls):  # settings are given by their options alone
            (options,) = config.values()
            cls(**options)
            own.append(cls)
    fits = any(issubclass(one, cls) for one in own) if inspect.isabstract(cls) else cls in own
    assert fits, f"the YAML of {name} selects another class"


def test_a_wrong_option_is_noticed():
    with pytest.raises(Exception, match="budgett"):
        parse({"class_path": "safe_rlhf_v.dual.FixedDual", "init_args": {"budget": -0.5, "budgett": 1}})
    with pytest.raises(Exception, match="window"):
        parse({"class_path": "safe_rlhf_v.dual.FixedDual", "init_args": {"budget": -0.5, "window": "long"}})


ROOMS = ("objectives", "dual", "data_modules", "callbacks", "modules")
GIVEN = {"EvaluationCallback", "ResponseCallback", "BaseModule", "PreferenceModule", "GuardOutputs", "PreferenceObjective",
         "PointwiseTerm", "DirectObjective", "DualController"}  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_every_component_that_is_chosen_by_its_path_shows_how(room):
    package = import_module(f"safe_rlhf_v.{room}")
    for name in set(package.__all__) - GIVEN:
        cls = getattr(package, name)
        assert not inspect.isclass(cls) or "YAML::" in (inspect.getdoc(cls) or ""), f"{room}.{name} shows no YAML"
