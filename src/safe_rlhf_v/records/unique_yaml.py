"""YAML in which a duplicate key is an error; plain YAML silently keeps the last one."""

from collections.abc import Hashable
from typing import Any

import yaml

_EQUAL = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float"))
"""Keys of these kinds may be equal although they are written differently."""


class DuplicateKeyError(ValueError):
    """A key occurs twice in one mapping; the message names key and line."""


def check_unique(node: Any) -> None:
    """Refuse a mapping with a duplicate key, at any depth.

    Args:
        node: Result of ``yaml.compose``.

    Raises:
        DuplicateKeyError: Naming line and key.
        yaml.YAMLError: If a key is not what its tag says.
    """
    stack = [(node, "")]
    seen = set()
    while stack:
        node, place = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += [(item, f"{place}{i}.") for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Hashable, int] = {}
            equal: dict[Hashable, str] = {}
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else None
                line = key.start_mark.line + 1
                if name is not None and name in lines and key.tag != "tag:yaml.org,2002:merge":
                    raise DuplicateKeyError(
                        f"line {line}: {place}{name} is given twice (first on line {lines[name]}); keep one"
                    )
                if key.tag in _EQUAL and name is not None:
                    value_of_key = UniqueKeyLoader("").construct_object(key)
                    if value_of_key in equal:
                        raise DuplicateKeyError(
                            f"line {line}: {place}{name} equals {equal[value_of_key]} for YAML, where yes and true are 1, no and "
                            "false 0; write one of them in quotation marks"
                        )
                    equal[value_of_key] = name
                if name is not None:
                    lines[name] = line
                stack.append((value, f"{place}{name}."))


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, and whose errors are all of YAML."""

    def get_single_node(self) -> Any:
        """The document, after the check for duplicate keys."""
        node = super().get_single_node()
        if node is not None:
            check_unique(node)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
            yaml.YAMLError: In one line, if a value is not what its tag says, as ``!!int "[1]"``; PyYAML has many kinds of errors.
        """
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]
            problem = f"line {node.start_mark.line + 1}: {node.value!r:.80} cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem) from None
