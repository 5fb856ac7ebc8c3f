"""``python -m safe_rlhf_v moderate``: verdicts on many inputs, one JSON line each, resumable at any moment."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_rlhf_v.commands.options import AnyPath, PositiveInt
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.records.user_files import lock, open_to_append, read_bounded, write_whole

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.guard.entries import Entries, Entry
    from safe_rlhf_v.guard.moderation import Guard
    from safe_rlhf_v.guard.verdict import Verdict

EXAMPLES = (
    "moderate --guard runs/quickstart/guard --input data/world --split test --output verdicts.jsonl",
    "moderate --guard runs/quickstart/guard --input mine.jsonl --output out.jsonl --format openai",
)


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(moderate, args, name="moderate", show=_as_text, examples=EXAMPLES)


def moderate(
    guard: AnyPath,
    input: AnyPath,
    output: AnyPath,
    split: str | None = None,
    format: Literal["full", "openai"] = "full",
    batch_size: PositiveInt = 32,
    balanced_levels: bool = False,
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> dict[str, int]:
    """Moderate shards, a JSON-lines file or a folder of pictures with a trained, calibrated guard.

    Writes one line per input, in order. Interrupted, the same command goes on where it stopped, if every input is still the
    one that was moderated. What cannot be checked is blocked and says why. The status is 0 also where inputs were blocked.

    A line of JSON lines is ``{"key": "a1", "image": "photo.jpg", "question": "...", "response": "..."}``; leave out what there
    is not. Of a conversation, ``"system": "..."`` and ``"history": [{"role": "user", "text": "...", "images": 1}, ...]`` stand
    before the question, and ``image`` is a list. Blank lines are no inputs; a line without a key is named by its number. Of a
    folder every file named like a picture is moderated.

    Args:
        guard: Run folder of a calibrated guard.
        input: Shard folder, .jsonl file or folder of pictures.
        output: File to write, as verdicts.jsonl.
        split: Split of a shard folder.
        format: Shape of a line: our own, or that of OpenAI's moderation endpoint.
        batch_size: Inputs per pass of the model.
        balanced_levels: Name levels as if all were equally frequent; decisions stay.
        device: Where the guard runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Returns:
        Count of every decision, ``unchecked`` among them counted apart.

    Raises:
        CheckpointError: If there is no readable guard.
        FileError: If another process is writing the output.
        ValueError: If input or output cannot be used.
    """
    from safe_rlhf_v.guard.entries import open_entries
    from safe_rlhf_v.guard.moderation import Guard

    target = Path(output)
    if target.exists():
        raise ValueError(f"{target} exists; name another file or remove it")
    entries = open_entries(Path(input), split)
    loaded = Guard.from_pretrained(guard, device, balanced_levels, trust=trust, base=base)
    return moderate_entries(loaded, entries, target, format, batch_size)


def _as_text(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count} ({count / total:.1%})" for name, count in sorted(counts.items()))
    return f"{total} verdicts: {shares}"


def moderate_entries(
    guard: "Guard", entries: "Entries", output: Path, shape: str = "full", batch_size: int = 32
) -> dict[str, int]:
    """Moderate every entry into ``output``, going on with what an interrupted call left.

    Batches have a fixed membership, so a resumed run writes the bytes of an uninterrupted one. Each line holds the hash of
    what was moderated (``input_sha256``); a run is resumed only if every entry still has the hash of its line.

    Args:
        guard: The guard.
        entries: What to moderate.
        output: File to write; beside it ``.part`` and ``.part.json`` while the work lasts.
        shape: ``full`` or ``openai``.
        batch_size: Entries per pass.

    Returns:
        Count of every decision, ``unchecked`` among them counted apart.

    Raises:
        FileError: If another process is writing there.
        ValueError: If the unfinished work there is of another guard, input or setting; or ``output`` exists.
    """
    from tqdm import tqdm

    from safe_rlhf_v.guard.entries import batches

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
        with tqdm(total=len(entries), unit="input", disable=None) as bar:
            done = _resume(part, task, entries, bar)
            for batch in batches(entries, batch_size, done):
                lines = [json.dumps(_line(entry, verdict, shape)) + "\n" for entry, verdict in _verdicts(guard, batch)]
                file.write("".join(lines).encode())
                file.flush()
                bar.update(len(batch))
        os.fsync(file.fileno())
        counts = _count(part, shape)
        part.replace(output)
        _note(part).unlink()
    return counts


def _verdicts(guard: "Guard", batch: "Sequence[Entry]") -> "list[tuple[Entry, Verdict]]":
    checked = iter(guard.moderate_batch([entry.input for entry in batch if entry.input is not None]))
    blank = guard.unchecked
    return [(entry, next(checked) if entry.input is not None else blank(entry.problem)) for entry in batch]


def _line(entry: "Entry", verdict: "Verdict", shape: str) -> dict[str, Any]:
    content = {"input_sha256": entry.digest}
    if shape == "openai":
        parts = () if entry.input is None else entry.input.parts
        return {"id": entry.key, "model": verdict.model, "results": [verdict.to_openai(parts)], **content}
    return {"key": entry.key, **verdict._asdict(), **content}


def _note(part: Path) -> Path:
    """Beside unfinished work: whose it is."""
    return part.with_name(part.name + ".json")


def _resume(part: Path, task: dict[str, Any], entries: "Entries", bar: Any) -> int:
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
                raise ValueError(f"{part}: {name} is not the input that was moderated there; {advice}")
            at += len(line)
            if number % task["batch_size"] == 0 or number == task["entries"]:
                bar.update(number - done)
                done = number
                end = at
        file.truncate(end)
    return done


def _digest(line: bytes) -> str | None:
    """Hash of the input that a line is about; ``None`` if it was not written whole."""
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
