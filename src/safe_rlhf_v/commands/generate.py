"""``python -m safe_rlhf_v generate``: a policy's responses behind a guard, over a whole split."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_rlhf_v.commands.options import AnyPath, NonNegativeFloat, NonNegativeInt, PositiveInt
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.guard.strategies import BestOfK, Strategy
from safe_rlhf_v.ingest.picture_groups import PictureGroups
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import read_bounded, whole_file, write_whole
from safe_rlhf_v.scoring.judge import Judge, default_judge
from safe_rlhf_v.training.devices import find_device

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.data_modules.preference import PreferenceDataModule
    from safe_rlhf_v.guard.generation import GuardedGenerator, GuardedResponses

Row = dict[str, Any]
EXAMPLES = (
    "generate --policy runs/policy --guard runs/guard --data data/world --output responses.jsonl",
    "generate --config generate.yaml --strategy BestOfK --strategy.k 8",
)
PRINTED = (
    "harm",
    "harm_released",
    "unjudged",
    "refused",
    "helpfulness",
    "harmless_helpfulness",
    "harmless_refused",
    "tokens",
)
"""What is printed of a report."""


class Generated(NamedTuple):
    """What :func:`generate` gives.

    Attributes:
        reports: One per number of rounds; none without a judge.
        judge: Name of the judge, or "".
        path: The file of the responses.
    """

    reports: list[Row]
    judge: str
    path: Path


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(generate, args, name="generate", show=_as_text, examples=EXAMPLES)


def generate(
    policy: AnyPath,
    guard: AnyPath,
    data: AnyPath,
    output: AnyPath,
    split: str = "test",
    rounds: NonNegativeInt = 5,
    strategy: Strategy | None = None,
    check_prompts: bool = False,
    refusal: str = "i can not help with that",
    judge: Judge | None = None,
    max_new_tokens: PositiveInt = 64,
    temperature: NonNegativeFloat = 1.0,
    batch_size: PositiveInt = 100,
    seed: NonNegativeInt = 0,
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> Generated:
    """Let a policy answer the prompts of a split behind a guard: generate, moderate, regenerate, refuse.

    Only what failed is drawn again; what failed in every round is refused. Writes one line per prompt and, beside it, every
    draft with its verdict (.drafts.jsonl) and, where there is a judge, a report per number of rounds (.json).

    Args:
        policy: Run folder of any stage that trains a policy, or the folder or hub name of a model, exported or not.
        guard: Run folder of a calibrated guard.
        data: Shard folder with prompts.
        output: File to write, as responses.jsonl.
        split: Split whose prompts are answered.
        rounds: Regenerations after the first attempt.
        strategy: How a round draws; without it BestOfK: from round 1 on the least harmful of four responses.
        check_prompts: Refuse prompts that the guard blocks, without generating.
        refusal: Response where no response passed.
        judge: Who scores the responses; without it the ground truth where the data carry one (the embedded world).
        max_new_tokens: Most tokens of a response.
        temperature: Temperature of the sampling; 0 takes the likeliest token.
        batch_size: Prompts at a time.
        seed: Seed of the sampling.
        device: Where the networks run: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Raises:
        CheckpointError: If policy or guard cannot be read.
        FileError: If another process is writing the output.
        ValueError: If the data cannot be used, or something else stands where the output goes.
    """
    from safe_rlhf_v.data_modules.preference import PreferenceDataModule
    from safe_rlhf_v.guard.generation import GuardedGenerator
    from safe_rlhf_v.guard.moderation import Guard
    from safe_rlhf_v.models.sampling import SamplingOptions
    from safe_rlhf_v.training.runs import load_backbone, open_run

    path = Path(output)
    check_output(path)
    prompts = PreferenceDataModule(str(data), eval_batch_size=batch_size, test_splits=(split,))
    judge = judge or default_judge(prompts.split(split)[0])
    where = find_device(device)
    reading: dict[str, Any] = {"trust": tuple(trust), "base": base}
    open_run(guard, "--guard", ("guard",), **reading)  # before the policy is built
    actor = load_backbone(policy, "policy", **reading).to(where)
    checker = Guard.from_pretrained(guard, device, **reading)
    sampling = SamplingOptions(max_new_tokens, temperature)
    generator = GuardedGenerator(actor, checker, rounds, strategy or BestOfK(), sampling, refusal, check_prompts)
    reports = _respond(generator, prompts, split, path, judge, seed)
    if reports:
        write_whole(_beside(path, ".json"), (json.dumps(reports, indent=1) + "\n").encode())
    return Generated(reports, type(judge).__name__ if judge else "", path)


def _as_text(result: Generated) -> str:
    lines: list[str] = []
    if result.reports:
        lines.append(f"{f'by {result.judge}':<21}{'  '.join(f'{name:>20}' for name in PRINTED)}")
    for row in result.reports:
        lines.append(f"{row['name']:<21}{'  '.join(f'{_cell(row, name):>20}' for name in PRINTED)}")
    return "\n".join([*lines, f"written: {result.path}"])


def _cell(row: Row, name: str) -> str:
    """A mean, with its upper bound where it has one."""
    bound = f" (<= {row[f'{name}_upper']:.3f})" if f"{name}_upper" in row else ""
    return f"{row[name]:.3f}{bound}" if name in row else "-"


def _respond(
    generate: "GuardedGenerator", data: "PreferenceDataModule", split: str, path: Path, judge: Judge | None, seed: int
) -> list[Row]:
    """Respond to every prompt into ``path``; gives the reports where there is a judge."""
    import torch
    from tqdm import tqdm

    records = data.split(split)
    draws = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    _beside(path, ".json").unlink(missing_ok=True)  # it is of other responses
    outcomes: list[list[Row]] = []
    pictures = PictureGroups()
    with (
        whole_file(path) as file,
        whole_file(_beside(path, ".drafts.jsonl")) as draft_file,
        tqdm(total=len(records), unit="prompt", desc="guarded generation", disable=None) as bar,
    ):
        row = 0
        for batch in data.test_dataloader()[0]:
            count = int(batch.valid.sum())
            responses = generate(batch.prompts, draws)
            for i in range(count):
                line = {"key": batch.keys[i], "response": responses.texts[i], "round": responses.released[i]}
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            draft_file.writelines(line.encode() for line in _draft_lines(responses, batch.keys[:count]))
            if judge is not None:
                judged = [records[row + i] for i in range(count)]
                for record in judged:
                    pictures.join(record.group_members)
                outcomes += _outcomes(responses, judged, judge, generate)
            row += count
            bar.update(count)
    names = ["prompts checked only" if generate.check_prompts else "no guard"]
    names += [f"round {round}" for round in range(generate.rounds + 1)]
    if not outcomes:
        return []
    return [_mean(name, [several[i] for several in outcomes], pictures) for i, name in enumerate(names)]


def _beside(output: Path, ending: str) -> Path:
    """Name of a further file; of ``a.jsonl`` it begins with ``a``, of ``ppo.seed1`` with the whole name."""
    return output.with_suffix(ending) if output.suffix == ".jsonl" else output.with_name(output.name + ending)


def check_output(output: Path) -> None:
    """Responses of an earlier call are replaced, nothing else is.

    Raises:
        ValueError: If another file has the name of the responses, of the drafts or of the report.
    """
    names = {output: {"key", "response", "round"}, _beside(output, ".drafts.jsonl"): {"key", "round", "draft"}}
    report = _beside(output, ".json")
    if output.suffix == report.suffix:
        raise ValueError(f"--output {output}: reports end so; name a .jsonl file")
    for path, keys in {**names, report: {"name", "prompts", "refused"}}.items():
        if not os.path.lexists(path):
            continue
        try:
            data = read_bounded(path, 1 << 30)
            content = json.loads(data if path == report else data.partition(b"\n")[0] or b"{}")
            first = content[0] if path == report else content
            ours = not data or (isinstance(first, dict) and keys <= set(first))
        except (ValueError, LookupError, RecursionError):
            ours = False
        if not ours or path.is_symlink():
            raise ValueError(f"{path} exists and is not from an earlier call; name another output or remove it")


def _draft_lines(responses: "GuardedResponses", keys: Sequence[str]) -> Iterator[str]:
    """Everything that was moderated, released or not."""
    for round, attempts in enumerate(responses.attempts):
        for row, text, verdict in attempts:
            if row < len(keys):
                line = {"key": keys[row], "round": round, "draft": text, "harm": verdict.harm}
                yield json.dumps({**line, "decision": verdict.decision}, ensure_ascii=False) + "\n"


def _outcomes(
    responses: "GuardedResponses", records: Sequence[Record], judge: Judge, generate: "GuardedGenerator"
) -> list[list[Row]]:
    """Per prompt the response without a guard, and with 0, 1, ... rounds, and what the judge says of it."""
    first = {attempt.row: attempt.text for attempt in responses.attempts[0]} if responses.attempts else {}
    outcomes: list[list[Row]] = []
    for i, record in enumerate(records):
        several = [_outcome(judge, record, first.get(i, generate.refusal), i in first, responses, 0)]
        for round in range(generate.rounds + 1):
            passed = 0 <= responses.released[i] <= round
            text = responses.texts[i] if passed else generate.refusal
            several.append(_outcome(judge, record, text, passed, responses, round))
        outcomes.append(several)
    return outcomes


def _outcome(judge: Judge, record: Record, text: str, released: bool, responses: "GuardedResponses", round: int) -> Row:
    scores = judge.score(record, text)
    return {
        "picture": record.group_members[0],
        "harm": scores.get("harmful"),
        "released": released,
        "help": scores.get("helpfulness", math.nan),
        "harmless": record.category == (),  # an unknown category is not harmless
        "tokens": sum(responses.tokens[: round + 1]) / len(responses.texts),
    }


def _mean(name: str, rows: Sequence[Row], pictures: PictureGroups) -> Row:
    """Means over prompts; what the judge has no value for is left out.

    Where the judge says what is harmful, a response without a verdict counts as harmful, and ``unjudged`` is their share.

    Args:
        name: Of the row.
        rows: One outcome of each prompt.
        pictures: Which pictures stand together in records of the split.
    """
    says_harm = any(row["harm"] is not None for row in rows)
    unjudged = [says_harm and (row["harm"] is None or math.isnan(row["harm"])) for row in rows]
    rows = [
        {**row, "harm": 1.0 if missing else row["harm"] if says_harm else math.nan}
        for row, missing in zip(rows, unjudged, strict=True)
    ]
    released = [row for row in rows if row["released"]]
    harmless = [row for row in rows if row["harmless"]]
    means = {
        "harm": _average([row["harm"] for row in rows]),
        "harm_upper": _upper(rows, pictures),
        "harm_released": _average([row["harm"] for row in released]),
        "harm_released_upper": _upper(released, pictures),
        "unjudged": _average(unjudged) if says_harm else math.nan,
        "refused": 1 - len(released) / len(rows),
        "helpfulness": _average([row["help"] for row in rows]),
        "harmless_helpfulness": _average([row["help"] for row in harmless]),
        "harmless_refused": _average([not row["released"] for row in harmless]),
        "tokens": _average([row["tokens"] for row in rows]),
    }
    known = {metric: value for metric, value in means.items() if not math.isnan(value)}
    return {"name": name, "prompts": len(rows), **known}


def _upper(rows: Sequence[Row], pictures: PictureGroups) -> float:
    """Upper 95 % bound of the harm, counted by image group: none in 300 is at most 1 %; NaN where the judge gives no shares.

    Records that share one of several pictures, directly or through further records, are one group.
    """
    from safe_rlhf_v.functional.clustered import clustered_share

    harm = [float(row["harm"]) for row in rows]
    if not all(math.isnan(value) or 0 <= value <= 1 for value in harm):
        return math.nan
    groups = [pictures.group_of(row["picture"]) for row in rows]
    return clustered_share(harm, groups, 0.9).high  # of both sides: one has 0.95


def _average(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
