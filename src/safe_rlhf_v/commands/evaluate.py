"""``python -m safe_rlhf_v evaluate``: a policy's responses to held-out prompts, and what they are worth."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safe_rlhf_v.commands.options import AnyPath, NonNegativeFloat, NonNegativeInt, PositiveInt, check_splits
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.records.user_files import whole_file, write_whole
from safe_rlhf_v.scoring.judge import Judge, default_judge
from safe_rlhf_v.training.devices import find_device

EXAMPLES = (
    "evaluate --policy runs/quickstart/ppo_lag --data data/world --cost runs/quickstart/cost",
    "evaluate --policy runs/mine --data data/mine --judge my_package.MyJudge --temperature 0",
)
Summary = dict[str, dict[str, dict[str, float]]]
"""By split and value: ``mean``, its standard ``error`` and the number of ``prompts``."""


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(evaluate, args, name="evaluate", show=_as_text, examples=EXAMPLES)


def evaluate(
    policy: AnyPath,
    data: AnyPath,
    splits: Sequence[str] = ("test",),
    output: AnyPath | None = None,
    reward: AnyPath | None = None,
    cost: AnyPath | None = None,
    start: AnyPath | None = None,
    judge: Judge | None = None,
    temperature: NonNegativeFloat = 1.0,
    max_new_tokens: PositiveInt = 64,
    batch_size: PositiveInt = 100,
    seed: NonNegativeInt = 0,
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> Summary:
    """Let a policy answer held-out prompts and say what the responses are worth: by learned models, and by a judge.

    Writes one line per prompt (responses-SPLIT.jsonl) and a summary with standard errors over prompts (evaluation.json); at
    temperature 0 the names end in -greedy.

    Args:
        policy: Run folder of any stage that trains a policy, or the folder or hub name of a model, exported or not.
        data: Shard folder with prompts.
        splits: Splits whose prompts are answered.
        output: Folder to write; without it the policy's run folder, or the folder of the checkpoint that is named. Of a model
            that is no run it must be named.
        reward: Run folder of a reward model, or an external one: an exported folder, the folder or hub name of a sequence
            classifier, or the import path of a function; see docs/howto/export.md.
        cost: Likewise a cost model; a cost above 0 means harmful.
        start: Policy that the divergence is measured from, named as the policy is.
        judge: Who scores the responses; without it the ground truth where the data carry one (the embedded world).
        temperature: Temperature of the sampling; 0 takes the likeliest token.
        max_new_tokens: Most tokens of a response.
        batch_size: Prompts at a time.
        seed: Seed of the sampling.
        device: Where the networks run: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Returns:
        The summary.

    Raises:
        CheckpointError: If a run cannot be read, or is of another kind.
        FileError: If another process is evaluating into the same folder.
        ValueError: If the data cannot be used, or a split is named twice, or none is.
    """
    from safe_rlhf_v.models.sampling import SamplingOptions
    from safe_rlhf_v.shards import ShardedSplit

    check_splits(splits)
    for split in splits:  # before a model is built
        ShardedSplit(Path(data), split)
    folder = _folder(policy, output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is no folder")
    named = {"policy": policy, "reward": reward, "cost": cost, "start": start}
    networks = _load(named, find_device(device), {"trust": tuple(trust), "base": base})
    sampling = SamplingOptions(max_new_tokens, temperature)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if temperature else "-greedy"
    with whole_file(folder / f"evaluation{suffix}.json") as file:  # no other process evaluates into it meanwhile
        summary: Summary = {}
        for split in splits:
            rows = _respond(networks, str(data), split, judge, sampling, batch_size, seed)
            summary[split] = _write(rows, folder / f"responses-{split}{suffix}.jsonl")
        file.write((json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _folder(policy: AnyPath, output: AnyPath | None) -> Path:
    """Where the results go. Raises: ValueError: If only the user can say."""
    from safe_rlhf_v.training.models import is_model

    if output is None and is_model(policy):
        raise ValueError(f"--output: name a folder for the results: {policy} is a model and no run")
    return Path(output or (policy if Path(policy).is_dir() else Path(policy).parent))


def _write(rows: Sequence[dict[str, Any]], file: Path) -> dict[str, dict[str, float]]:
    """Write one line per prompt; gives the summary."""
    from safe_rlhf_v.scoring.rows import summarise

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(file, lines.encode())
    return {name: value._asdict() for name, value in summarise(rows).items()}


def _respond(
    networks: dict[str, Any], data: str, split: str, judge: Judge | None, sampling: Any, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of every prompt of a split."""
    from tqdm import tqdm

    from safe_rlhf_v.data_modules.prompt import PromptDataModule
    from safe_rlhf_v.evaluation.policies import Judges, response_split

    prompts = PromptDataModule(data, eval_batch_size=batch_size, test_splits=(split,))
    records = prompts.split(split)
    judges = Judges(networks["reward"], networks["cost"], networks["start"], judge or default_judge(records[0]))
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(records), unit="prompt", desc=split, disable=None) as bar:
        for batch in response_split(networks["policy"], prompts, split, judges, sampling, seed):
            rows += batch
            bar.update(len(batch))
    return rows


def _load(named: dict[str, AnyPath | None], device: Any, reading: dict[str, Any]) -> dict[str, Any]:
    """The networks of the named runs, ``None`` where there is none; all runs are looked at before one network is built.

    Raises:
        CheckpointError: If one cannot be read, or is something else.
    """
    from safe_rlhf_v.scoring.external import find_scorer
    from safe_rlhf_v.training.models import is_model
    from safe_rlhf_v.training.runs import load_backbone, load_run, open_run

    kinds = {"policy": "policy", "reward": "reward", "cost": "cost", "start": "policy"}
    paths = {role: path for role, path in named.items() if path}
    scorers = {
        role: scorer for role in ("reward", "cost") if (scorer := find_scorer(paths.get(role), role, fetch=True))
    }
    for role, path in paths.items():
        if role in scorers or (kinds[role] == "policy" and is_model(path)):
            continue
        parts = ("backbone",) if kinds[role] == "policy" else None
        open_run(path, f"--{role}", (kinds[role],), parts=parts, **reading)
    networks: dict[str, Any] = dict.fromkeys(kinds)
    for role, scorer in scorers.items():
        scorer.load()
        networks[role] = scorer.requires_grad_(False).eval().to(device)
    for role, path in paths.items():
        if role in scorers:
            continue
        if kinds[role] == "policy":
            networks[role] = load_backbone(path, role, **reading).to(device)
        else:
            networks[role] = load_run(path, f"{role} model", **reading).to(device)
    return networks


def _as_text(summary: Summary) -> str:
    lines: list[str] = []
    for split, values in summary.items():
        prompts = max((value["prompts"] for value in values.values()), default=0)
        lines.append(f"{split}: {prompts} prompts, mean +- standard error")
        lines += [f"  {name:<22}{value['mean']:>9.3f} +- {value['error']:.3f}" for name, value in values.items()]
    return "\n".join(lines)
