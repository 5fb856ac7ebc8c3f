"""YAML in which a key given twice is an error: plain YAML keeps the last one and says nothing."""

from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKeyError(ValueError):
    """A key stands twice in one mapping; the message says which and where."""


def check_unique(node: Any) -> None:
    """Refuse a mapping that has a key twice, at any depth.

    Args:
        node: What ``yaml.compose`` gave.

    Raises:
        DuplicateKeyError: Naming line and key.
    """
    stack, seen = [(node, "")], set()
    while stack:
        node, place = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += [(item, f"{place}{i}.") for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Hashable, int] = {}
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else None
                line = key.start_mark.line + 1
                if name is not None and name in lines and key.tag != "tag:yaml.org,2002:merge":
                    raise DuplicateKeyError(
                        f"line {line}: {place}{name} is given twice (first on line {lines[name]}); keep one"
                    )
                if name is not None:
                    lines[name] = line
                stack.append((value, f"{place}{name}."))


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice."""

    def get_single_node(self) -> Any:
        """The document, checked."""
        node = super().get_single_node()
        if node is not None:
            check_unique(node)
        return node
