"""Taxonomy and rubric as data: categories, the seven safety levels with their anchors, helpfulness, and the policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_v.records.parsing import check_text
from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL, Taxonomy
from safe_rlhf_v.records.unique_yaml import DuplicateKeyError, UniqueKeyLoader
from safe_rlhf_v.records.user_files import read_bounded

DEFAULT = Path(__file__).parents[1] / "configs" / "construct" / "rubric.yaml"
"""The rubric that is taken where none is named: the categories of BeaverTails-V, in our own words."""
HELPFULNESS = range(4)
_KEYS = ("name", "policy", "categories", "safety", "helpfulness")
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Rubric:
    """What judges and people are told.

    Attributes:
        name: Of the taxonomy.
        policy: What harm is, in general.
        categories: Description by category.
        safety: Anchor of each level -3..3.
        helpfulness: Anchor of each grade 0..3.
    """

    name: str
    policy: str
    categories: dict[str, str]
    safety: dict[int, str]
    helpfulness: dict[int, str]

    @property
    def taxonomy(self) -> Taxonomy:
        """The categories as records use them."""
        return Taxonomy(self.name, tuple(self.categories))

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Rubric":
        """Read a rubric.

        Args:
            path: YAML file; ``None`` for the shipped one.

        Raises:
            ValueError: If the file is not a complete rubric.
        """
        file = Path(path or DEFAULT)
        try:
            body = yaml.load(read_bounded(file, _MAX_BYTES).decode(), UniqueKeyLoader)
        except UnicodeDecodeError:
            raise ValueError(f"{file}: is not UTF-8 text") from None
        except DuplicateKeyError as error:
            raise ValueError(f"{file}: {error}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{file}: not YAML ({str(error).splitlines()[0]})") from None
        problem = _problem(body)
        if problem:
            raise ValueError(f"{file}: {problem}")
        rubric = cls(
            str(body["name"]),
            body["policy"].strip(),
            {name: text.strip() for name, text in body["categories"].items()},
            {level: body["safety"][level].strip() for level in range(MIN_LEVEL, MAX_LEVEL + 1)},
            {grade: body["helpfulness"][grade].strip() for grade in HELPFULNESS},
        )
        if named_twice := rubric.taxonomy.problem():
            raise ValueError(f"{file}: categories: {named_twice}")
        return rubric


def _problem(body: Any) -> str:
    """What is wrong with the file's content, or ""."""
    if not isinstance(body, dict) or set(body) != set(_KEYS):
        present = ", ".join(map(str, body)) if isinstance(body, dict) else type(body).__name__
        return f"must have the keys {', '.join(_KEYS)}, not {present or 'none'}"
    if not _is_text(body["name"]) or not _is_text(body["policy"]):
        return "name and policy must be texts"
    levels = [*range(MIN_LEVEL, MAX_LEVEL + 1)]
    for name, keys in (("categories", None), ("safety", levels), ("helpfulness", [*HELPFULNESS])):
        part = body[name]
        if not isinstance(part, dict) or not all(_is_text(text) for text in part.values()):
            return f"{name} must give a text for each of its keys"
        if keys is None and not all(_is_text(key) for key in part):
            return "categories must be named by texts"
        if keys is not None and (sorted(part, key=str) != sorted(keys, key=str)):
            return f"{name} must have exactly the keys {keys[0]}..{keys[-1]}"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and check_text(value) is None
