"""The reproduction kit on BeaverTails-V: see docs/results/beavertails_v.md, which says what passes and fails.

    python benchmarks/beavertails_v/run.py --data data/beavertails_v --judges judges.yaml

Import, reward and cost model, SFT on safe demonstrations, SafeDPO, a fixed penalty, PPO-Lagrangian; then all policies, best-of-K
and the start respond, sampled and greedily, and two judges, the learned models and people judge. Every step is a public command,
one at a time. What is done is not repeated: the same command goes on where it stopped, also after people have rated the sheet.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from verdict import verdict

from safe_rlhf_v import __version__
from safe_rlhf_v.demo.runs import component
from safe_rlhf_v.demo.steps import Step, run_steps
from safe_rlhf_v.records.user_files import write_whole
from safe_rlhf_v.shards import Manifest

ROOT = Path(__file__).parents[2]
KIT = ROOT / "configs" / "beavertails_v"
SOURCE = "saferlhf-v/BeaverTails-V"


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=KIT / "kit.yaml", help="what is trained and evaluated")
    parser.add_argument("--judges", type=Path, default=KIT / "judges.yaml", help="two independent judges")
    parser.add_argument("--source", default=SOURCE, help="name on the hub, or folder of the data")
    parser.add_argument(
        "--data", type=Path, default=Path("data/beavertails_v"), help="shard folder; written if it is not there"
    )
    parser.add_argument("--root", type=Path, default=Path("runs/beavertails_v"), help="folder of the runs and results")
    parser.add_argument("--model", help="another base than the kit's, for a trial")
    parser.add_argument("--option", action="append", default=[], help="further option of every training, for a trial")
    parser.add_argument(
        "--policy_option", action="append", default=[], help="further option of the policy runs, for a trial"
    )
    parser.add_argument("--prompts", type=int, help="another number of prompts, for a trial")
    parser.add_argument(
        "--people", type=Path, help="sheet that people rated (default: rated.csv in the evaluation's folder)"
    )
    return parser.parse_args(args)


class Kit:
    """Commands of the kit."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        """Read the files.

        Args:
            chosen: Options.

        Raises:
            OSError: If the base cannot be downloaded.
            SystemExit: If there are not two judges.
        """
        self.chosen = chosen
        self.kit: dict[str, Any] = yaml.safe_load(chosen.kit.read_text())
        self.judges: dict[str, Any] = yaml.safe_load(chosen.judges.read_text())
        if len(self.judges) < 2:
            sys.exit(f"error: --judges {chosen.judges}: names {len(self.judges)}; two independent judges are needed")
        self.model = pinned(chosen.model or self.kit["model"], chosen.root / "revision.json")
        self.stages = ROOT / self.kit["stages"]
        self.root = chosen.root
        self.evaluation = chosen.root / "evaluation"
        self.people = chosen.people or self.evaluation / "rated.csv"

    @property
    def trial(self) -> bool:
        """Whether something differs from the kit."""
        return bool(self.chosen.model or self.chosen.option or self.chosen.policy_option or self.chosen.prompts)

    def steps(self) -> list[Step]:
        """All of them, each behind the one before: a GPU holds one training."""
        data = ["shards", "import", self.chosen.source, "--preset", "beavertails-v", "--out", str(self.chosen.data)]
        commands = [("data", data, self.chosen.data / "manifest.json")]
        commands += [(name, self.fit(name, name), None) for name in ("reward", "cost")]
        commands += [
            (name, self.fit(name, one["config"], one.get("roles", False), one.get("options", ())), None)
            for name, one in self.kit["methods"].items()
        ]
        steps: list[Step] = []
        for name, command, result in commands:
            steps.append(Step(name, name, command, tuple(step.name for step in steps), result))
        return steps

    def fit(self, name: str, config: str, roles: bool = False, extra: Sequence[str] = ()) -> list[str]:
        """Command that trains one stage."""
        where = [f"--data.init_args.path={self.chosen.data}", f"--trainer.default_root_dir={self.root / name}"]
        base = f"--model.init_args.backbone.init_args.model={self.model}"
        seeds = [f"--seed_everything={self.kit['seed']}", f"--data.init_args.seed={self.kit['seed']}"]
        models = [f"--model.init_args.roles.init_args.{role}={self.root / role}" for role in ("reward", "cost")]
        options = [*where, base, *seeds, *(models if roles else []), *extra, *self.chosen.option]
        options += self.chosen.policy_option if roles else []
        return ["fit", f"--config={self.stages / config}.yaml", *options]

    def policies(self) -> dict[str, Any]:
        """The start, what was trained, and best-of-K."""
        policies: dict[str, Any] = {"start": model_policy(self.model)}
        policies |= {name: model_policy(str(self.root / name), base=self.model) for name in self.kit["methods"]}
        for name, draws in self.kit["best_of"].items():
            parts = {"policy": model_policy(self.model), **self.learned(), "draws": draws}
            policies[name] = {"class_path": "safe_rlhf_v.evaluation.BestOf", "init_args": parts}
        return policies

    def learned(self) -> dict[str, Any]:
        """Reward and cost model as judges; they are not independent."""
        names = {"reward": "RewardJudge", "cost": "CostJudge"}
        return {
            role: component(f"safe_rlhf_v.construct.{name}", run=self.root / role, base=self.model)
            for role, name in names.items()
        }

    def evaluate(self) -> list[str]:
        """Command that evaluates everything; the audit waits for people."""
        settings = self.kit["evaluation"]
        audit = component("safe_rlhf_v.evaluation.PeopleRatings", file=self.people)
        return [
            "evaluate",
            f"--policies={json.dumps(self.policies())}",
            "--start=start",
            f"--judges={json.dumps({**self.judges, **self.learned()})}",
            f"--audit={json.dumps({'judge': audit, 'samples': settings['audited']})}",
            f"--data={self.chosen.data}",
            f"--output={self.evaluation}",
            f"--splits=[{settings['split']}]",
            f"--most_prompts={self.chosen.prompts or settings['prompts']}",
            "--modes=[sampled,greedy]",
            "--pictures=[real]",
            f"--max_new_tokens={settings['max_new_tokens']}",
            f"--batch_size={settings['batch_size']}",
            f"--budget={self.root / 'ppo_lag'}",
            f"--seed={self.kit['seed']}",
            "--label_families=[gpt]",
        ]

    def hashes(self) -> dict[str, str]:
        """Hash of everything that is frozen."""
        files = [self.chosen.kit, self.chosen.judges, *sorted(self.stages.glob("*.yaml"))]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files}


def pinned(model: str, file: Path) -> str:
    """Folder of a model's weights, downloaded once; every later call takes the same revision, whatever the hub holds by then.

    Args:
        model: Name on the hub, or a folder.
        file: JSON file that holds the revision; written by the first call.

    Raises:
        OSError: If it cannot be downloaded.
    """
    if Path(model).is_dir():
        return model
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        revision = huggingface_hub.HfApi().model_info(model).sha
        write_whole(file, json.dumps({"model": model, "revision": revision}).encode())
    stored = json.loads(file.read_text())
    if stored["model"] != model:
        sys.exit(f"error: {file}: the runs here began with {stored['model']}, not {model}; name another --root")
    return huggingface_hub.snapshot_download(model, revision=stored["revision"])


def revisions(root: Path, data: Path) -> dict[str, str]:
    """Commits of the weights and of the data on the hub; "" for what came from a folder."""
    file = root / "revision.json"
    model = json.loads(file.read_text())["revision"] if file.is_file() else ""
    return {"model": model, "data": Manifest.load(data).origin.get("revision", "")}


def model_policy(run: str, **options: str) -> dict[str, Any]:
    return component("safe_rlhf_v.evaluation.ModelPolicy", run=run, **options)


def main(args: Sequence[str] | None = None) -> None:
    chosen = options(args)
    kit = Kit(chosen)
    steps = kit.steps()
    run_steps(steps, kit.root)
    rated = kit.people.exists()
    name = (
        "evaluate_rated" if rated else "evaluate"
    )  # once more when people have rated: the lines that are there are kept
    run_steps([*steps, Step(name, "all policies, all judges", kit.evaluate(), tuple(s.name for s in steps))], kit.root)
    result = {
        "version": __version__,
        "trial": kit.trial,
        "hashes": kit.hashes(),
        "revisions": revisions(kit.root, chosen.data),
        **verdict(kit.evaluation, list(kit.judges), kit.kit["evaluation"]["split"]),
    }
    file = kit.root / "result.json"
    write_whole(file, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    print(f"{'a trial, not a result; ' if kit.trial else ''}written: {file}")
    for claim in result["claims"]:
        print(f"  {claim['claim']}: {claim['outcome']}")
    if not rated:
        sheet = kit.evaluation / "audit_sheet.csv"
        print(
            f"people: rate {sheet}, save it as {kit.people}, and run the same command again; until then nothing has passed"
        )


if __name__ == "__main__":
    main()
