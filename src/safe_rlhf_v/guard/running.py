"""Guarded generation over a whole split."""

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from safe_rlhf_v.data_modules.preference import PreferenceDataModule
from safe_rlhf_v.guard.generation import (
    BestOfK,
    GuardedGenerator,
    GuardedResponses,
    HigherTemperature,
    SafetyReminder,
    Strategy,
)
from safe_rlhf_v.guard.moderation import Guard
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import lock, open_to_append, read_bounded
from safe_rlhf_v.scoring.judge import Judge, find_judge
from safe_rlhf_v.training.runs import load_backbone, open_run

Row = dict[str, Any]


def make_strategy(name: str) -> Strategy:
    """A strategy of the command line."""
    known = {"resample": Strategy, "hotter": HigherTemperature, "reminder": SafetyReminder, "best-of-4": BestOfK}
    return known[name]()


def run(options: argparse.Namespace) -> list[Row]:
    """Answer every prompt of a split; gives the report where there is a judge.

    Args:
        options: Those of the command.

    Raises:
        FileError: If another process is writing the output.
        ValueError: If policy, guard or data cannot be used.
    """
    from tqdm import tqdm

    check_output(options.output)
    data = PreferenceDataModule(str(options.data), eval_batch_size=options.batch_size, test_splits=(options.split,))
    split, generator = data.split(options.split), torch.Generator().manual_seed(options.seed)
    judge = find_judge(options.judge, split[0])
    reading: dict[str, Any] = {"trust": tuple(options.trust), "base": options.base}
    open_run(options.guard, "--guard", ("guard",), **reading)  # before the policy is built
    policy = load_backbone(options.policy, "policy", **reading).to(options.device)
    guard = Guard.from_pretrained(options.guard, options.device, **reading)
    sampling = SamplingOptions(options.max_new_tokens, options.temperature)
    strategy = make_strategy(options.strategy)
    generate = GuardedGenerator(
        policy, guard, options.rounds, strategy, sampling, options.refusal, options.check_prompts
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    drafts = options.output.with_suffix(".drafts.jsonl")
    parts = [path.with_name(path.name + ".part") for path in (options.output, drafts)]
    judged: list[list[Row]] = []
    open_to_append(parts[1]).close()
    with open_to_append(parts[0]) as claim:
        lock(claim, options.output)
        with (
            parts[0].open("w") as file,
            parts[1].open("w") as draft_file,
            tqdm(total=len(split), unit="prompt", desc="guarded generation") as bar,
        ):
            row = 0
            for batch in data.test_dataloader()[0]:
                count = int(batch.valid.sum())
                responses = generate(batch.prompts, generator)
                for i in range(count):
                    line = {"key": batch.keys[i], "response": responses.texts[i], "round": responses.released[i]}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                draft_file.writelines(_draft_lines(responses, batch.keys[:count]))
                if judge is not None:
                    judged += _outcomes(responses, [split[row + i] for i in range(count)], judge, options)
                row += count
                bar.update(count)
        for part, path in zip(parts, (options.output, drafts), strict=True):
            part.replace(path)
    return [_mean(name, [outcome[i] for outcome in judged]) for i, name in enumerate(_names(options))] if judged else []


def check_output(output: Path) -> None:
    """Responses of an earlier call are replaced, nothing else is.

    Raises:
        ValueError: If another file has the name of the responses, of the drafts or of the report.
    """
    names = {output: {"key", "response", "round"}, output.with_suffix(".drafts.jsonl"): {"key", "round", "draft"}}
    report = output.with_suffix(".json")
    if report == output:
        raise ValueError(f"--output {output}: this is the report's name; name a .jsonl file")
    for path, keys in {**names, report: {"name", "harm", "refused"}}.items():
        if not os.path.lexists(path):
            continue
        try:
            data = read_bounded(path, 1 << 30)
            found = json.loads(data if path == report else data.partition(b"\n")[0] or b"{}")
            first = found[0] if path == report else found
            ours = not data or (isinstance(first, dict) and keys <= set(first))
        except (ValueError, LookupError, RecursionError):
            ours = False
        if not ours or path.is_symlink():
            raise ValueError(f"{path} exists and is not from an earlier call; name another output or remove it")


def _draft_lines(responses: GuardedResponses, keys: Sequence[str]) -> Iterator[str]:
    """Everything that was judged, released or not."""
    for round, attempts in enumerate(responses.attempts):
        for row, text, verdict in attempts:
            if row < len(keys):
                line = {"key": keys[row], "round": round, "draft": text, "harm": verdict.harm}
                yield json.dumps({**line, "decision": verdict.decision}, ensure_ascii=False) + "\n"


def _names(options: argparse.Namespace) -> list[str]:
    first = "prompts checked only" if options.check_prompts else "no guard"
    return [first, *(f"round {round}" for round in range(options.rounds + 1))]


def _outcomes(
    responses: GuardedResponses, records: list[Record], judge: Judge, options: argparse.Namespace
) -> list[list[Row]]:
    """Per prompt what was said without a guard, and with 0, 1, ... rounds, and what it is worth."""
    first = {attempt.row: attempt.text for attempt in responses.attempts[0]} if responses.attempts else {}
    found: list[list[Row]] = []
    for i, record in enumerate(records):
        outcomes = [_judged(judge, record, first.get(i, options.refusal), i in first, responses, i, 0)]
        for round in range(options.rounds + 1):
            passed = 0 <= responses.released[i] <= round
            text = responses.texts[i] if passed else options.refusal
            outcomes.append(_judged(judge, record, text, passed, responses, i, round))
        found.append(outcomes)
    return found


def _judged(
    judge: Judge, record: Record, text: str, released: bool, responses: GuardedResponses, i: int, round: int
) -> Row:
    scores = judge.score(record, text)
    tokens = sum(responses.tokens[: round + 1]) / len(responses.texts)
    return {
        "harm": scores["harmful"],
        "released": released,
        "help": scores["helpfulness"],
        "harmless": record.category == (),  # an unknown category is not harmless
        "tokens": tokens,
    }


def _mean(name: str, rows: list[Row]) -> Row:
    released = [row for row in rows if row["released"]]
    harmless = [row for row in rows if row["harmless"]]
    return {
        "name": name,
        "prompts": len(rows),
        "harm": _average([row["harm"] for row in rows]),
        "harm_released": _average([row["harm"] for row in released]),
        "refused": 1 - len(released) / len(rows),
        "helpfulness": _average([row["help"] for row in rows]),
        "harmless_helpfulness": _average([row["help"] for row in harmless]),
        "harmless_refused": _average([not row["released"] for row in harmless]),
        "tokens": _average([row["tokens"] for row in rows]),
    }


def _average(values: list[Any]) -> float:
    return sum(values) / len(values) if values else math.nan
