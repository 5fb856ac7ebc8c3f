"""Responses from a file as demonstrations: the prompts of a split, each with the one response that the file has for it.

Rejection sampling is made of this: a policy answers training prompts, the best of K responses by learned reward and cost is
written down, and the policy learns to imitate it (as in Llama 2, arXiv 2307.09288, section 3.2.3).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safe_rlhf_v.ingest.rows import Row, describe
from safe_rlhf_v.ingest.table import TableError, read_table
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.parsing import check_text
from safe_rlhf_v.records.user_files import printable
from safe_rlhf_v.shards import ShardedSplit, ShardWriter

NAMES = ("policy", "mode")
"""By what lines to one prompt differ, and by what one of them is chosen."""
OURS = {"picture": "real"}
"""What a line must say if it says it at all."""


class Demonstrations(NamedTuple):
    """What was written.

    Attributes:
        folder: The shard folder.
        split: Its only split.
        written: Number of records.
        left_out: How many prompts were left out, by reason.
    """

    folder: Path
    split: str
    written: int
    left_out: dict[str, int]


def write_demonstrations(
    source: Path, split: str, file: Path, target: Path, chosen: Mapping[str, str], at_most: Mapping[str, float]
) -> Demonstrations:
    """Write a shard folder with one response to each prompt that has one; labels of other responses are left behind.

    Args:
        source: Shard folder of the prompts.
        split: Its split.
        file: JSONL or CSV with ``key`` and ``response``; lines may also name ``split``, ``policy``, ``mode``, ``picture``,
            ``fault`` and ``values``, as the responses of an evaluation do.
        target: Folder to create.
        chosen: Policy and mode of the lines to take, where there are several.
        at_most: Largest value, by name, with which a response is taken; one without the value is not.

    Raises:
        ShardError: If there are no such prompts, or ``target`` cannot be written.
        TableError: Naming the line that cannot be used; or if no response is left.
    """
    prompts = ShardedSplit(source, split)
    lines = read_responses(file, split, chosen)
    left_out: Counter[str] = Counter()
    manifest = prompts.manifest
    origin = {**manifest.origin, "responses": printable(file.name)}
    about: dict[str, Any] = {"licence": manifest.licence, "taxonomy": manifest.taxonomy, "origin": origin}
    with ShardWriter(
        target, name=f"{manifest.name}-demonstrations", **about
    ) as writer:  # which keeps nothing after an error
        for number in range(len(prompts)):
            record = prompts[number]
            line = lines.pop(record.key, None)
            if reason := _unusable(line, at_most):
                left_out[reason] += 1
            elif line is not None:
                writer.write(split, _demonstration(record, line))
        if lines:
            key, line = next(iter(lines.items()))
            raise TableError(f"{file}, line {line.line}, column 'key': {source} has no {key!r:.140} in split {split!r}")
        written = len(prompts) - left_out.total()
        if not written:
            raise TableError(f"{file}: no response to a prompt of split {split!r} can be used ({_reasons(left_out)})")
    return Demonstrations(target, split, written, dict(left_out))


def read_responses(file: Path, split: str, chosen: Mapping[str, str]) -> dict[str, Row]:
    """One line for each key.

    Args:
        file: See :func:`write_demonstrations`.
        split: Lines of another one are passed over.
        chosen: See :func:`write_demonstrations`.

    Raises:
        TableError: Naming the line that cannot be used, or what has to be chosen.
    """
    lines: dict[str, Row] = {}
    for row in read_table(file, required=("key", "response")):
        key = row.text("key")
        response = row.cells.get("response", "")
        if problem := check_text(response) if isinstance(response, str) else f"must be text, not {describe(response)}":
            row.bad("response", problem)
        if row.readable and key is None and not row.problems:
            row.bad("key", "is missing")
        if row.problems:
            column, problem = row.problems[0]
            raise TableError(f"{file}, line {row.line}, column {column!r:.140}: {problem}")
        asked = {"split": split, **OURS, **chosen}
        if any(row.cells.get(name, value) != value for name, value in asked.items()):
            continue
        assert key is not None
        if key in lines:
            raise TableError(f"{file}, line {row.line}: a second response to {key!r:.140}; {_advice(lines[key], row)}")
        lines[key] = row
    return lines


def _advice(first: Row, second: Row) -> str:
    """How to take one of two lines."""
    different = [name for name in NAMES if first.cells.get(name) != second.cells.get(name)]
    if not different:
        return f"the first is in line {first.line}; keep one of them"
    name = different[0]
    return f"choose one with --{name}: {first.cells.get(name)!r:.80} or {second.cells.get(name)!r:.80}"


def _unusable(line: Row | None, at_most: Mapping[str, float]) -> str:
    """Why a prompt is left out, "" if it is not."""
    if line is None:
        return "without a response"
    if line.cells.get("fault"):
        return "with a fault in place of a response"
    if not (line.cells.get("response") or "").strip():
        return "with an empty response"
    values = line.cells.get("values") or {}
    for name, limit in at_most.items():
        value = values.get(name) if isinstance(values, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            return f"without a value {name!r:.40}"
        if value > limit:
            return f"with {name} above {limit:g}"
    return ""


def _demonstration(record: Record, line: Row) -> Record:
    """The prompt with one response; what was known about the others does not apply to it."""
    text = line.cells["response"]
    responder = line.cells.get("policy")
    return dataclasses.replace(
        record,
        responses=(Response(text, source=responder if isinstance(responder, str) else ""),),
        more_helpful=None,
        safer=None,
        safety_tie=False,
        helpfulness_tie=False,
        votes=None,
        truth=None,
    )


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "the split is empty"
