"""``python -m safe_rlhf_v evaluate``."""

import argparse
import json
import sys
from typing import Any

from safe_rlhf_v.commands.argument_types import between, path, said, whole
from safe_rlhf_v.commands.reading_options import add_reading_options
from safe_rlhf_v.records.user_files import write_whole


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m safe_rlhf_v evaluate",
        description="Let a policy answer held-out prompts and say what the responses are worth: by the reward and cost models, "
        "and by ground truth where the data carry it (the embedded world). Writes one line per prompt and a summary with "
        "standard errors over prompts.",
    )
    parser.add_argument("--policy", type=path, required=True, help="run folder of any stage that trains a policy")
    parser.add_argument("--data", type=path, required=True, help="shard folder with prompts")
    parser.add_argument("--split", nargs="+", default=["test"], help="its splits (%(default)s)")
    parser.add_argument("--output", type=path, help="folder to write (the policy's run folder)")
    parser.add_argument("--reward", type=path, help="run folder of a reward model")
    parser.add_argument("--cost", type=path, help="run folder of a cost model")
    parser.add_argument("--start", type=path, help="run folder of the policy to measure the divergence from")
    parser.add_argument("--judge", help="class path of a Judge (ground truth where the data carry it)")
    parser.add_argument("--temperature", type=between(0), default=1.0, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=whole(1), default=64, help="tokens of a response at most (%(default)s)"
    )
    parser.add_argument("--batch-size", type=whole(1), default=100, help="prompts at a time (%(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the sampling (%(default)s)")
    add_reading_options(parser)
    options = parser.parse_args(argv)
    from safe_rlhf_v.training.checkpoints import CheckpointError  # torch: seconds to import

    try:
        summary = run(options)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    for split, values in summary.items():
        print(f"{split}: {max(value['prompts'] for value in values.values())} prompts, mean +- standard error")
        for name, value in values.items():
            print(f"  {name:<22}{value['mean']:>9.3f} +- {value['error']:.3f}")
    return 0


def run(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Response and judge every split.

    Args:
        options: Those of the command.

    Raises:
        ValueError: If policy, models or data cannot be used.
    """
    from tqdm import tqdm

    from safe_rlhf_v.data_modules.prompt import PromptDataModule
    from safe_rlhf_v.evaluation.policies import Judges, response_split
    from safe_rlhf_v.models.sampling import SamplingOptions
    from safe_rlhf_v.scoring.judge import find_judge
    from safe_rlhf_v.scoring.rows import summarise
    from safe_rlhf_v.shards import ShardedSplit

    for split in options.split:  # before a model is built
        ShardedSplit(options.data, split)
    find_judge(options.judge, None)
    policy, reward, cost, start = load_models(options)
    sampling = SamplingOptions(options.max_new_tokens, options.temperature)
    folder = options.output or options.policy
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if options.temperature else "-greedy"
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for split in options.split:
        data = PromptDataModule(str(options.data), eval_batch_size=options.batch_size, test_splits=(split,))
        judge = find_judge(options.judge, data.split(split)[0])
        judges = Judges(reward, cost, start, judge)
        rows: list[dict[str, Any]] = []
        with tqdm(total=len(data.split(split)), unit="prompt", desc=split) as bar:
            for batch in response_split(policy, data, split, judges, sampling, options.seed):
                rows += batch
                bar.update(len(batch))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(folder / f"responses-{split}{suffix}.jsonl", lines.encode())
        summary[split] = {name: value._asdict() for name, value in summarise(rows).items()}
    write_whole(folder / f"evaluation{suffix}.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def load_models(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """Policy, reward model, cost model and start, the last three where they are named; all are looked at before one is built.

    Raises:
        CheckpointError: If one cannot be read, or is something else.
    """
    from safe_rlhf_v.training.runs import load_backbone, load_run, open_run

    reading: dict[str, Any] = {"trust": tuple(options.trust), "base": options.base}
    kinds = {"policy": "policy", "reward": "reward", "cost": "cost", "start": "policy"}
    named = {role: path for role in kinds if (path := getattr(options, role))}
    for role, path in named.items():
        parts = ("backbone",) if kinds[role] == "policy" else None
        open_run(path, f"--{role}", (kinds[role],), parts=parts, **reading)
    found: dict[str, Any] = dict.fromkeys(kinds)
    for role, path in named.items():
        found[role] = (
            load_backbone(path, role, **reading)
            if kinds[role] == "policy"
            else load_run(path, f"{role} model", **reading)
        )
    return found["policy"], found["reward"], found["cost"], found["start"]
