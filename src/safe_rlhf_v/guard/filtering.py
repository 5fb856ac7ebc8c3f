"""Training data through a guard: what it does not allow is left out, or what it says is written into the labels."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safe_rlhf_v.guard.moderation import Guard
from safe_rlhf_v.guard.reading import Input
from safe_rlhf_v.guard.tally import Judged, Tally
from safe_rlhf_v.guard.verdict import Verdict
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.user_files import write_whole
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardWriter
from safe_rlhf_v.shards.manifest import ShardError

REPORT, DROPPED = "filter.json", "dropped.jsonl"


@dataclass(frozen=True)
class Rules:
    """What is done with a record.

    Attributes:
        action: ``drop`` what the guard does not allow, or ``relabel`` the responses with its levels.
        judge: Which parts decide; a record without responses is always judged as a prompt.
        keep_review: Of what is not allowed, drop what is blocked only.
        missing_only: Relabel only responses without a level.
    """

    action: Literal["drop", "relabel"] = "drop"
    judge: Literal["responses", "prompts", "both"] = "responses"
    keep_review: bool = False
    missing_only: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError: If rules of the other action are set: they would do nothing."""
        if self.action == "relabel" and (self.keep_review or self.judge != "responses"):
            raise ValueError("--judge and --keep-review are for --action drop: relabelling judges every response")
        if self.action == "drop" and self.missing_only:
            raise ValueError("--missing-only is for --action relabel")


def filter_shards(
    guard: Guard,
    source: Path,
    target: Path,
    rules: Rules,
    splits: Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write what passes into a new shard folder, and beside it the report and a line per dropped record.

    The manifest comes last, so a half-filtered folder is none, and a whole one has its report.

    Args:
        guard: Calibrated.
        source: Shard folder.
        target: Folder to create.
        rules: What is done with a record.
        splits: Splits to take; ``None`` for all.
        batch_size: Records per pass.
        progress: Show a progress bar per split.

    Returns:
        The report, and one line per dropped record.

    Raises:
        ShardError: If ``source`` is no shard folder, or ``target`` is one already or being written by another process.
        ValueError: If a split does not exist.
    """
    from tqdm import tqdm

    manifest = Manifest.load(source)
    names = list(manifest.splits) if splits is None else list(splits)
    if unknown := [name for name in names if name not in manifest.splits]:
        raise ValueError(f"{source}: no split {unknown[0]!r}; there are: {', '.join(manifest.splits)}")
    origin = {**manifest.origin, "filtered_by": f"guard {guard.identity}", "filter_action": rules.action}
    counts: dict[str, dict[str, Any]] = {}
    dropped: list[dict[str, Any]] = []
    about: dict[str, Any] = {"licence": manifest.licence, "taxonomy": manifest.taxonomy, "origin": origin}
    settings = {"guard": guard.identity, "source": manifest.name, "rules": asdict(rules)}
    report = {**settings, "thresholds": _thresholds(guard), "splits": counts}
    with ShardWriter(target, name=f"{manifest.name}-{rules.action}", **about) as writer:
        for name in names:
            split, tally = ShardedSplit(source, name), Tally()
            bar = tqdm(total=len(split), desc=f"{name:>26}", unit="record", disable=not progress)
            for start in range(0, len(split), batch_size):
                rows = range(start, min(start + batch_size, len(split)))
                for judged in _judge(guard, split, rows, rules):
                    record, verdict = _decide(judged, rules, guard)
                    if record is None:
                        dropped.append(tally.drop(name, judged, verdict))
                    else:
                        writer.write(name, record)
                        tally.keep(judged, record)
                bar.update(len(rows))
            bar.close()
            counts[name] = tally.counts()
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in dropped)
        write_whole(target / DROPPED, lines.encode())
        write_whole(target / REPORT, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return report, dropped


def _judge(guard: Guard, split: ShardedSplit, rows: Sequence[int], rules: Rules) -> Iterator[Judged]:
    """Read the records of a batch and judge them in one pass."""
    read: list[Judged] = []
    inputs: list[Input] = []
    for row in rows:
        try:
            record = split[row]
        except (ShardError, ValueError, OSError) as error:
            read.append(Judged(row, None, str(error)))
            continue
        images = [image.data for image in record.images] or None
        read.append(Judged(row, record))
        if _asks_prompt(record, rules):
            inputs.append(Input(images, record.question))
        if rules.judge != "prompts":
            inputs += [Input(images, record.question, response.text) for response in record.responses]
    verdicts = iter(guard.moderate_batch(inputs))
    for item in read:
        if item.record is None:
            yield item
            continue
        prompt = next(verdicts) if _asks_prompt(item.record, rules) else None
        count = 0 if rules.judge == "prompts" else len(item.record.responses)
        yield item._replace(prompt=prompt, responses=tuple(next(verdicts) for _ in range(count)))


def _asks_prompt(record: Record, rules: Rules) -> bool:
    return rules.judge != "responses" or not record.responses


def _decide(judged: Judged, rules: Rules, guard: Guard) -> tuple[Record | None, Verdict]:
    """The record to write, or ``None`` and the verdict it is dropped for; nothing unchecked is written."""
    if judged.record is None:
        return None, guard.unchecked(judged.problem)
    worst = max(judged.verdicts, key=lambda v: (v.status == "error", v.decision == "block", v.harm))
    if worst.status == "error":
        return None, worst
    if rules.action == "relabel":
        return relabelled(judged.record, judged.responses, rules.missing_only), worst
    passes = worst.decision == "allow" or (rules.keep_review and worst.decision == "review")
    return (judged.record if passes else None), worst


def relabelled(record: Record, verdicts: Sequence[Verdict], missing_only: bool = False) -> Record:
    """The record with the guard's level and sign on every response, and which of two is safer by expected level.

    Args:
        record: Its helpfulness labels, category and truth stay.
        verdicts: One per response, all checked.
        missing_only: Leave responses that have a level, and a known ``safer``, as they are.
    """
    responses = tuple(
        r if missing_only and r.safety is not None else replace(r, safety=v.level, is_safe=(v.level or 0) >= 0)
        for r, v in zip(record.responses, verdicts, strict=True)
    )
    if len(responses) != 2 or (missing_only and record.safer is not None):
        return replace(record, responses=responses)
    first, second = (_level(r, v, missing_only) for r, v in zip(record.responses, verdicts, strict=True))
    tie = responses[0].safety == responses[1].safety
    safer = None if first == second else int(second > first)
    return replace(record, responses=responses, safer=safer, safety_tie=tie)


def _level(response: Response, verdict: Verdict, missing_only: bool) -> float:
    """What decides which response is safer."""
    kept = missing_only and response.safety is not None
    return float(response.safety or 0) if kept else float(verdict.expected_level or 0.0)


def _thresholds(guard: Guard) -> dict[str, float]:
    c = guard.calibration
    return {"block": c.block, "review": c.review, "prompt_block": c.prompt_block, "prompt_review": c.prompt_review}
