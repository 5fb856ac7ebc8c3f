"""The YAML at the end of each docstring selects that class, through the parser the command line uses."""

import inspect
import textwrap

import pytest
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from safe_rlhf_v import objectives

COMPONENTS = [
    item
    for name, item in vars(objectives).items()
    if name in objectives.__all__ and inspect.isclass(item) and not inspect.isabstract(item)
]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: c.__name__)
def test_docstring_yaml_builds_the_class(component: type[nn.Module]) -> None:
    text = (inspect.getdoc(component) or "").split("YAML::")
    assert len(text) == 2, f"{component.__name__} has no YAML at the end of its docstring"
    config = yaml.safe_load(textwrap.dedent(text[1]))
    config = config.get("objective", config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--component", type=component.__mro__[1])
    built = parser.instantiate(parser.parse_object({"component": config})).component
    assert type(built) is component
