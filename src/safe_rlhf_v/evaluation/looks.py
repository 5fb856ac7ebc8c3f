"""The ledger of certificates: JSON lines that count how often a claim was looked at, so that looking again is paid for.

A claim is one policy, one judge, and one of both bounds; other prompts, caps, modes or a policy that was trained on are further
looks at it. The same rows with the same settings are the same look, and cost nothing. A look is written down before its result
is shown.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.lines import encoded
from safe_rlhf_v.records.parsing import RecordError, parse_json
from safe_rlhf_v.records.user_files import FileError, lock, open_to_append, printable, read_bounded

Entry = dict[str, Any]
_MAX_BYTES = 50_000_000
CLAIM = ("policy", "judge", "bound")
"""Fields by which looks are counted."""
LEDGER = "certificates.jsonl"
"""Name of the file."""
_MOST_LOOKS = 1_000_000


def look(path: Path, claim: Entry, digest: str, certify: Callable[[int], Entry]) -> Entry:
    """Compute a certificate as a further look at its claim and write it down, or the one that these rows had already.

    Args:
        path: The ledger; it is created, and only ever grows.
        claim: ``policy``, ``judge`` and ``bound``.
        digest: Of the rows and settings.
        certify: From the number of the look, from 1, to the certificate.

    Returns:
        The ledger's line.

    Raises:
        FileError: If the ledger cannot be written, or another process is writing it.
        ValueError: If it is damaged: what it counted would be lost.
    """
    if not path.parent.is_dir():
        raise FileError(f"{printable(path)}: its folder does not exist")
    with open_to_append(path) as file:
        lock(file, path)
        file.seek(0)
        entries = _parsed(file.read(_MAX_BYTES + 1), path)
        earlier = [entry for entry in entries if all(entry[name] == claim[name] for name in CLAIM)]
        same = [entry for entry in earlier if entry["digest"] == digest]
        number = same[0]["look"] if same else 1 + len(earlier)
        entry = {**claim, "look": number, "digest": digest, **certify(number)}
        entry["spent"] = _error(entry) + sum(
            {one["look"]: _error(one) for one in earlier if one["look"] != number}.values()
        )
        if not same:
            file.write(encoded(entry))
            file.flush()
            os.fsync(file.fileno())
    return parse_json(encoded(entry), path.name)  # as it will be read


def _error(entry: Entry) -> float:
    """Error of an earlier look, which may have had another delta; 1 where somebody took it away."""
    error = entry.get("error")
    return float(error) if isinstance(error, float) and 0 <= error <= 1 else 1.0


def read_looks(path: Path) -> list[Entry]:
    """Every look of a ledger, in order.

    Args:
        path: The ledger.

    Raises:
        FileError: If it cannot be read.
        ValueError: If it is damaged.
    """
    return _parsed(read_bounded(path, _MAX_BYTES), path)


def _parsed(text: bytes, path: Path) -> list[Entry]:
    name = printable(path)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{name}: is larger than {_MAX_BYTES} bytes; it is no ledger of certificates")
    lines = text.split(b"\n")
    if lines.pop():
        raise ValueError(f"{name}: its last line was cut off, and counts as a look; restore it from a copy")
    entries: list[Entry] = []
    looks: Counter[tuple[str, ...]] = Counter()
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line, name)
        except RecordError as error:
            raise ValueError(
                f"{name}: line {number} is damaged ({error.problem}), and counts as a look; restore it"
            ) from None
        look_number = entry.get("look")
        texts = all(isinstance(entry.get(field), str) for field in (*CLAIM, "digest"))
        if not texts or type(look_number) is not int or not 1 <= look_number <= _MOST_LOOKS:
            raise ValueError(f"{name}: line {number} is no certificate; name another --ledger")
        claim = tuple(entry[field] for field in CLAIM)
        looks[claim] += 1
        if look_number != looks[claim]:
            raise ValueError(
                f"{name}: line {number} is look {look_number} at its claim where look {looks[claim]} belongs; lines were removed "
                "or changed, and every one counts: restore it"
            )
        entries.append(entry)
    return entries
