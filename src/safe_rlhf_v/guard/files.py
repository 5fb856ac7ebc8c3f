"""Verdicts for many inputs, one JSON line each, resumable at any moment."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safe_rlhf_v.guard.inputs import Entries, Entry, batches
from safe_rlhf_v.guard.moderation import Guard
from safe_rlhf_v.guard.reading import Input
from safe_rlhf_v.guard.verdict import Verdict


def moderate_file(
    guard: Guard, entries: Entries, output: Path, shape: str = "full", batch_size: int = 32, progress: bool = True
) -> dict[str, int]:
    """Judge every entry into ``output``, going on with what an interrupted call left.

    Batches have a fixed membership, so a resumed run writes the bytes of an uninterrupted one.

    Args:
        guard: The guard.
        entries: What to judge.
        output: File to write; beside it ``.part`` and ``.part.json`` while the work lasts.
        shape: ``full`` or ``openai``.
        batch_size: Entries per pass.
        progress: Show a progress bar.

    Returns:
        Count of every decision, ``unchecked`` among them counted apart.

    Raises:
        ValueError: If the unfinished work there is of another guard, input or setting.
    """
    from tqdm import tqdm

    part, note = output.with_name(output.name + ".part"), output.with_name(output.name + ".part.json")
    task = {
        "guard": guard.identity,
        "calibration": hashlib.sha256(repr(guard.calibration).encode()).hexdigest()[:16],
        "entries": len(entries),
        "ends": hashlib.sha256(f"{entries[0]}{entries[len(entries) - 1]}".encode()).hexdigest()[:16],
        "shape": shape,
        "batch_size": batch_size,
        "balanced_levels": guard.balanced_levels,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _resume(part, note, task)
    with part.open("ab") as file, tqdm(total=len(entries), initial=done, unit="input", disable=not progress) as bar:
        for batch in batches(entries, batch_size, done):
            lines = [json.dumps(_line(entry, verdict, shape)) + "\n" for entry, verdict in _judge(guard, batch)]
            file.write("".join(lines).encode())
            file.flush()
            bar.update(len(batch))
        os.fsync(file.fileno())
    counts = _count(part, shape)
    part.replace(output)
    note.unlink()
    return counts


def _judge(guard: Guard, batch: Any) -> list[tuple[Entry, Verdict]]:
    judged = iter(guard.moderate_batch([entry.input for entry in batch if entry.input is not None]))
    blank = guard.unchecked
    return [(entry, next(judged) if entry.input is not None else blank(entry.problem)) for entry in batch]


def _line(entry: Entry, verdict: Verdict, shape: str) -> dict[str, Any]:
    if shape == "openai":
        parts = (entry.input or Input()).parts
        return {"id": entry.key, "model": verdict.model, "results": [verdict.to_openai(parts)]}
    return {"key": entry.key, **verdict._asdict()}


def _resume(part: Path, note: Path, task: dict[str, Any]) -> int:
    """Whole batches already written; what is cut off in mid-batch is dropped.

    Raises:
        ValueError: If the unfinished work is another.
    """
    if not part.exists() or not note.exists():
        part.write_bytes(b"")
        note.write_text(json.dumps(task))
        return 0
    before = json.loads(note.read_text())
    different = [name for name in task if before.get(name) != task[name]]
    if different:
        raise ValueError(f"{part} is unfinished work with another {', '.join(different)}: finish that or remove it")
    lines = part.read_bytes().splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines)
    size = int(task["batch_size"])
    done = whole if whole == task["entries"] else whole // size * size
    with part.open("r+b") as file:
        file.truncate(sum(map(len, lines[:done])))
    return done


def _count(path: Path, shape: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            if shape == "openai":
                name = "flagged" if row["results"][0]["flagged"] else "not flagged"
            else:
                name = row["decision"] if row["status"] == "ok" else "unchecked"
            counts[name] = counts.get(name, 0) + 1
    return counts
