"""``python -m safe_rlhf_v filter``: training shards through a guard.

What the guard does not allow is left out, or its levels are written into the labels.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from safe_rlhf_v.commands.options import AnyPath, PositiveInt, check_splits
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.guard.verdict import Verdict, severest
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.user_files import write_whole
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardWriter
from safe_rlhf_v.shards.manifest import ShardError

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.guard.moderation import Guard

EXAMPLES = (
    "filter --guard runs/quickstart/guard --input data/world --output data/filtered --splits train",
    "filter --guard runs/quickstart/guard --input data/world --output data/new --action relabel",
)
REPORT = "filter.json"
DROPPED = "dropped.jsonl"
TALLIES = ("reasons", "categories", "levels", "changes", "flags")


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(filter, args, name="filter", show=table, examples=EXAMPLES)


def filter(
    guard: AnyPath,
    input: AnyPath,
    output: AnyPath,
    splits: Sequence[str] | None = None,
    action: Literal["drop", "relabel"] = "drop",
    check: Literal["responses", "prompts", "both"] = "responses",
    keep_review: bool = False,
    missing_only: bool = False,
    batch_size: PositiveInt = 32,
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> dict[str, Any]:
    """Filter or relabel training shards with a trained, calibrated guard, into a new shard folder.

    "drop" leaves out every record with something the guard does not allow; "relabel" writes the guard's levels over the
    annotators'. A record with anything that could not be checked is left out either way, and counted.

    Beside the shards stand filter.json, what was dropped or changed and why, and dropped.jsonl, one line per dropped record.

    Args:
        guard: Run folder of a calibrated guard.
        input: Shard folder.
        output: Shard folder to create.
        splits: Splits to take; without it all.
        action: Leave records out, or write the guard's labels into them.
        check: What decides about dropping: the responses, the prompt, or either; a record without responses is always checked
            as a prompt.
        keep_review: Drop what is blocked only, not what needs review.
        missing_only: Relabel only responses without a level, and leave a binary label that is there.
        batch_size: Records per pass of the model.
        device: Where the guard runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Returns:
        The report, as in filter.json.

    Raises:
        CheckpointError: If there is no readable guard.
        ShardError: If ``input`` is no shard folder, or ``output`` is one already or being written by another process.
        ValueError: If options do not go together.
    """
    from safe_rlhf_v.guard.moderation import Guard

    rules = Rules(action, check, keep_review, missing_only)
    source = Path(input)
    if splits is not None:
        check_splits(splits)
    for split in splits or Manifest.load(source).splits:
        ShardedSplit(source, split)  # before the guard is built
    loaded = Guard.from_pretrained(guard, device, trust=trust, base=base)
    report, _ = filter_shards(loaded, source, Path(output), rules, splits, batch_size)
    return report


@dataclass(frozen=True)
class Rules:
    """What is done with a record.

    Attributes:
        action: ``drop`` what the guard does not allow, or ``relabel`` the responses with its levels.
        check: Which parts decide; a record without responses is always checked as a prompt.
        keep_review: Of what is not allowed, drop what is blocked only.
        missing_only: Relabel only responses without a level.
    """

    action: Literal["drop", "relabel"] = "drop"
    check: Literal["responses", "prompts", "both"] = "responses"
    keep_review: bool = False
    missing_only: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError: If rules of the other action are set: they would do nothing."""
        if self.action == "relabel" and (self.keep_review or self.check != "responses"):
            raise ValueError("--check and --keep_review are for --action drop: relabelling checks every response")
        if self.action == "drop" and self.missing_only:
            raise ValueError("--missing_only is for --action relabel")


class Checked(NamedTuple):
    """A record and the guard's verdicts.

    Attributes:
        row: Its number in the split.
        record: ``None`` if it could not be read.
        problem: Why not, or "".
        prompt: On the prompt, where that was asked.
        responses: On each response, where that was asked.
    """

    row: int
    record: Record | None
    problem: str = ""
    prompt: Verdict | None = None
    responses: tuple[Verdict, ...] = ()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them."""
        return (*(() if self.prompt is None else (self.prompt,)), *self.responses)


def filter_shards(
    guard: "Guard",
    source: Path,
    target: Path,
    rules: Rules,
    splits: Sequence[str] | None = None,
    batch_size: int = 32,
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

    Returns:
        The report, and one line per dropped record.

    Raises:
        ShardError: If ``source`` is no shard folder, or ``target`` is one already or being written by another process.
        ValueError: If a split does not exist, or nothing passes.
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
            split = ShardedSplit(source, name)
            tally = Tally()
            bar = tqdm(total=len(split), desc=f"{name:>26}", unit="record", disable=None)
            for start in range(0, len(split), batch_size):
                rows = range(start, min(start + batch_size, len(split)))
                for checked in _check(guard, split, rows, rules):
                    record, verdict = _decide(checked, rules, guard)
                    if record is None:
                        dropped.append(tally.drop(name, checked, verdict))
                    else:
                        writer.write(name, record)
                        tally.keep(checked, record)
                bar.update(len(rows))
            bar.close()
            counts[name] = tally.counts()
        if dropped and not any(count["kept"] for count in counts.values()):
            reasons = Counter(line["reason"] for line in dropped)
            reason, number = reasons.most_common(1)[0]
            raise ValueError(
                f"{source}: nothing passes, so nothing is written; why {number} of {len(dropped)} records are left out: {reason}"
            )
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in dropped)
        write_whole(target / DROPPED, lines.encode())
        write_whole(target / REPORT, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return report, dropped


def _check(guard: "Guard", split: ShardedSplit, rows: Sequence[int], rules: Rules) -> Iterator[Checked]:
    """Read the records of a batch and check them in one pass."""
    from safe_rlhf_v.guard.inputs import Input

    read: list[Checked] = []
    inputs: list[Input] = []
    for row in rows:
        try:
            record = split[row]
        except (ShardError, ValueError, OSError) as error:
            read.append(Checked(row, None, str(error)))
            continue
        read.append(Checked(row, record))
        asked = Input.of(record)
        if _asks_prompt(record, rules):
            inputs.append(asked)
        if rules.check != "prompts":
            inputs += [asked._replace(response=response.text) for response in record.responses]
    verdicts = iter(guard.moderate_batch(inputs))
    for item in read:
        if item.record is None:
            yield item
            continue
        prompt = next(verdicts) if _asks_prompt(item.record, rules) else None
        count = 0 if rules.check == "prompts" else len(item.record.responses)
        yield item._replace(prompt=prompt, responses=tuple(next(verdicts) for _ in range(count)))


def _asks_prompt(record: Record, rules: Rules) -> bool:
    return rules.check != "responses" or not record.responses


def _decide(checked: Checked, rules: Rules, guard: "Guard") -> tuple[Record | None, Verdict]:
    """The record to write, or ``None`` and the verdict it is dropped for; nothing unchecked is written."""
    if checked.record is None:
        return None, guard.unchecked(checked.problem)
    worst = severest(checked.verdicts)  # by decision: prompts and responses have thresholds of their own
    if worst.status == "error":
        return None, worst
    if rules.action == "relabel":
        return relabelled(checked.record, checked.responses, rules.missing_only), worst
    passes = worst.decision == "allow" or (rules.keep_review and worst.decision == "review")
    return (checked.record if passes else None), worst


def relabelled(record: Record, verdicts: Sequence[Verdict], missing_only: bool = False) -> Record:
    """The record with the guard's level and sign on every response, and which of two is safer by expected level.

    The votes behind a label that is replaced go with it: a training on votes would not see the new label otherwise.

    Args:
        record: Its helpfulness labels, category and truth stay.
        verdicts: One per response, all checked.
        missing_only: Leave responses that have a level, or a binary label that the guard's level contradicts, and a known
            ``safer`` as they are; two responses of which one stays without a level get no order.
    """
    responses = tuple(_labelled(r, v, missing_only) for r, v in zip(record.responses, verdicts, strict=True))
    is_ordered = missing_only and record.safer is not None
    if len(responses) != 2 or is_ordered or any(response.safety is None for response in responses):
        return replace(record, responses=responses)
    first, second = (_level(r, v, missing_only) for r, v in zip(record.responses, verdicts, strict=True))
    tie = responses[0].safety == responses[1].safety
    safer = None if first == second else int(second > first)
    votes = None if record.votes is None else replace(record.votes, safer=())
    return replace(record, responses=responses, safer=safer, safety_tie=tie, votes=votes)


def _labelled(response: Response, verdict: Verdict, missing_only: bool) -> Response:
    """A response with the guard's label, without the votes for what it replaces."""
    is_safe = (verdict.level or 0) >= 0
    stated = response.is_safe if missing_only else None
    if (missing_only and response.safety is not None) or stated not in (None, is_safe):
        return response
    votes = response.votes
    if votes is not None:
        votes = replace(votes, safety=(), is_safe=() if stated is None else votes.is_safe)
    return replace(response, safety=verdict.level, is_safe=is_safe, votes=votes)


def _level(response: Response, verdict: Verdict, missing_only: bool) -> float:
    """What decides which response is safer."""
    use_label = missing_only and response.safety is not None
    return float(response.safety or 0) if use_label else float(verdict.expected_level or 0.0)


def _thresholds(guard: "Guard") -> dict[str, float]:
    c = guard.calibration
    return {"block": c.block, "review": c.review, "prompt_block": c.prompt_block, "prompt_review": c.prompt_review}


# --- what became of the records ---------------------------------------------------------------------------------------


class Tally:
    """Counts of one split."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.number: Counter[str] = Counter()
        self.by: dict[str, Counter[str]] = {name: Counter() for name in TALLIES}

    def keep(self, checked: Checked, record: Record) -> None:
        """Count a record that is written, as it is written."""
        assert checked.record is not None, "only what was read is kept"
        self.number["kept"] += 1
        self.number["responses"] += len(record.responses)
        for old, new in zip(checked.record.responses, record.responses, strict=True):
            if old.safety != new.safety:
                self.number["changed"] += 1
                self.by["changes"][f"{_level_text(old.safety)} to {_level_text(new.safety)}"] += 1
        self._flags(checked)

    def drop(self, split: str, checked: Checked, verdict: Verdict) -> dict[str, Any]:
        """Count a dropped record, and give its line."""
        self.number["dropped"] += 1
        self.number["unchecked"] += verdict.status == "error"
        reason = _reason(verdict, verdict is checked.prompt)
        self.by["reasons"][reason] += 1
        if verdict.status == "ok":
            self.by["categories"][verdict.category or "(none)"] += 1
            self.by["levels"][_level_text(verdict.level)] += 1
        self._flags(checked)
        key = checked.record.key if checked.record else f"row {checked.row}"
        line = {"split": split, "key": key, "reason": reason, "explanation": verdict.reasons[0], "harm": verdict.harm}
        return {**line, "level": verdict.level, "category": verdict.category}

    def _flags(self, checked: Checked) -> None:
        self.by["flags"].update(flag for verdict in checked.verdicts for flag in verdict.flags)

    def counts(self) -> dict[str, Any]:
        """Everything, as plain data."""
        names = ("kept", "dropped", "unchecked", "responses", "changed")
        total = self.number["kept"] + self.number["dropped"]
        numbers = {name: self.number[name] for name in names}
        return {"records": total, **numbers, **{name: dict(sorted(counts.items())) for name, counts in self.by.items()}}


def _reason(verdict: Verdict, prompt: bool) -> str:
    """Short enough to be counted by."""
    if verdict.status == "error":
        explanation = verdict.reasons[0].removeprefix("unsafe: could not be checked: ")
        return "could not be checked: " + re.sub(r"\d+", "N", explanation.split(": ")[0])[:60]
    return f"{'prompt' if prompt else 'response'} {'blocked' if verdict.decision == 'block' else 'needs review'}"


def _level_text(level: int | None) -> str:
    return "(none)" if level is None else f"{level:+d}" if level else "0"


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    columns = ("records", "kept", "dropped", "unchecked", "responses", "changed")
    lines = [f"{'split':<28}" + "".join(f"{name:>11}" for name in columns)]
    for split, counts in report["splits"].items():
        lines.append(f"{split:<28}" + "".join(f"{counts[name]:>11}" for name in columns))
    for split, counts in report["splits"].items():
        if counts["records"] and not counts["kept"]:
            lines.append(f"nothing of {split} is left, so the new folder has no such split")
    for heading, name in (
        ("dropped, by reason", "reasons"),
        ("dropped, by the guard's category", "categories"),
        ("dropped, by the guard's level", "levels"),
        ("changed levels", "changes"),
        ("tricks undone in texts", "flags"),
    ):
        total: dict[str, int] = {}
        for counts in report["splits"].values():
            for key, count in counts[name].items():
                total[key] = total.get(key, 0) + count
        if total:
            lines += ["", f"{heading}"]
            lines += [f"  {key:<48}{total[key]:>9}" for key in sorted(total, key=lambda k: (-total[k], k))]
    return "\n".join(lines)
