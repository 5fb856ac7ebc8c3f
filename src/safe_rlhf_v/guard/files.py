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
from safe_rlhf_v.records.user_files import lock, open_to_append, read_bounded, write_whole


def moderate_file(
    guard: Guard, entries: Entries, output: Path, shape: str = "full", batch_size: int = 32, progress: bool = True
) -> dict[str, int]:
    """Judge every entry into ``output``, going on with what an interrupted call left.

    Batches have a fixed membership, so a resumed run writes the bytes of an uninterrupted one. Each line holds the hash of
    what was judged (``input_sha256``); a run is resumed only if every entry still has the hash of its line.

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
        FileError: If another process is writing there.
        ValueError: If the unfinished work there is of another guard, input or setting; or ``output`` exists.
    """
    from tqdm import tqdm

    part = output.with_name(output.name + ".part")
    task = {
        "guard": guard.identity,
        "calibration": hashlib.sha256(repr(guard.calibration).encode()).hexdigest()[:16],
        "entries": len(entries),
        "shape": shape,
        "batch_size": batch_size,
        "balanced_levels": guard.balanced_levels,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(part) as file:
        lock(file, output)  # of the file itself: it lasts until the verdicts have their final name
        if output.exists():
            raise ValueError(f"{output} exists; name another file or remove it")
        with tqdm(total=len(entries), unit="input", disable=not progress) as bar:
            done = _resume(part, task, entries, bar)
            for batch in batches(entries, batch_size, done):
                lines = [json.dumps(_line(entry, verdict, shape)) + "\n" for entry, verdict in _judge(guard, batch)]
                file.write("".join(lines).encode())
                file.flush()
                bar.update(len(batch))
        os.fsync(file.fileno())
        counts = _count(part, shape)
        part.replace(output)
        _note(part).unlink()
    return counts


def _judge(guard: Guard, batch: Any) -> list[tuple[Entry, Verdict]]:
    judged = iter(guard.moderate_batch([entry.input for entry in batch if entry.input is not None]))
    blank = guard.unchecked
    return [(entry, next(judged) if entry.input is not None else blank(entry.problem)) for entry in batch]


def _line(entry: Entry, verdict: Verdict, shape: str) -> dict[str, Any]:
    content = {"input_sha256": entry.digest}
    if shape == "openai":
        parts = (entry.input or Input()).parts
        return {"id": entry.key, "model": verdict.model, "results": [verdict.to_openai(parts)], **content}
    return {"key": entry.key, **verdict._asdict(), **content}


def _note(part: Path) -> Path:
    """Beside unfinished work: whose it is."""
    return part.with_name(part.name + ".json")


def _resume(part: Path, task: dict[str, Any], entries: Entries, bar: Any) -> int:
    """Whole batches already written; what is cut off in mid-batch is dropped.

    Raises:
        ValueError: If the unfinished work is another, or of other inputs.
    """
    note = _note(part)
    if not part.stat().st_size:
        write_whole(note, json.dumps(task).encode())
        return 0
    advice = "remove it to start again, or name another output"
    try:
        before = dict(json.loads(read_bounded(note, 1_000_000)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{part} is not unfinished work of this command ({error}); {advice}") from None
    different = [name for name in task if before.get(name) != task[name]]
    if different:
        raise ValueError(f"{part} is unfinished work with another {', '.join(different)}: finish that, or {advice}")
    done = at = end = 0
    with part.open("r+b") as file:
        for number, line in enumerate(file, start=1):
            if (digest := _digest(line)) is None:
                break
            if number > len(entries) or (entry := entries[number - 1]).digest != digest:
                name = f"entry {number}" if number > len(entries) else entry.key
                raise ValueError(f"{part}: {name} is not the input that was judged there; {advice}")
            at += len(line)
            if number % task["batch_size"] == 0 or number == task["entries"]:
                bar.update(number - done)
                done, end = number, at
        file.truncate(end)
    return done


def _digest(line: bytes) -> str | None:
    """Hash of the input that a line judges; ``None`` if it was not written whole."""
    try:
        return str(json.loads(line)["input_sha256"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None


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
