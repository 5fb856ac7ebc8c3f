"""The reproduction kit on BeaverTails-V: see docs/results/beavertails_v.md, which says what passes and fails.

    python benchmarks/beavertails_v/run.py --data data/beavertails_v --judges judges.yaml

Import, reward and cost model, SFT on safe demonstrations, SafeDPO, a fixed penalty, PPO-Lagrangian; then all policies, best-of-K
and the start respond, sampled and greedily, and two judges, the learned models and people judge. Every step is a public command,
one at a time. What is done is not repeated: the same command goes on where it stopped, also after people have rated the sheet.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from verdict import verdict

from safe_rlhf_v import __version__
from safe_rlhf_v.commands.runner import refuse
from safe_rlhf_v.construct.stage import file_content
from safe_rlhf_v.demo.runs import component
from safe_rlhf_v.demo.steps import Step, run_steps
from safe_rlhf_v.records.unique_yaml import DuplicateKeyError, UniqueKeyLoader
from safe_rlhf_v.records.user_files import write_whole
from safe_rlhf_v.shards import Manifest

ROOT = Path(__file__).parents[2]
KIT = ROOT / "configs" / "beavertails_v"
SOURCE = "saferlhf-v/BeaverTails-V"
KEYS = ("stages", "model", "seed", "budget", "methods", "best_of", "evaluation")
LEARNED = {"reward": "RewardJudge", "cost": "CostJudge"}


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
            OSError: If a file cannot be read, or the base not be downloaded.
            ValueError: If the kit is not complete, or there are not two judges.
        """
        self.chosen = chosen
        self.kit = read_yaml("--kit", chosen.kit)
        if missing := [key for key in KEYS if key not in self.kit]:
            raise ValueError(f"--kit {chosen.kit}: has no key {missing[0]!r}; see {KIT / 'kit.yaml'}")
        self.judges = read_yaml("--judges", chosen.judges)
        if len(self.judges) < 2:
            raise ValueError(f"--judges {chosen.judges}: names {len(self.judges)}; two independent judges are needed")
        if taken := sorted({*self.judges} & {*LEARNED}):
            raise ValueError(f"--judges {chosen.judges}: {taken[0]} is the name of a learned model; choose another")
        self.model = pinned(chosen.model or self.kit["model"], chosen.root / "revision.json")
        self.stages = ROOT / self.kit["stages"]
        self.root = chosen.root
        self.evaluation = chosen.root / "evaluation"
        self.people = chosen.people or self.evaluation / "rated.csv"

    @property
    def trial(self) -> bool:
        """Whether something differs from the kit, or the data are not those of the hub as they were imported."""
        chosen = self.chosen
        origin = Manifest.load(chosen.data).origin
        imported = {name: origin.get(name) for name in ("mapping", "revision")}  # filtered data say more
        other_data = not all(imported.values()) or origin != {"dataset": SOURCE, "source": SOURCE, **imported}
        other_kit = chosen.kit.read_bytes() != (KIT / "kit.yaml").read_bytes()
        return bool(chosen.model or chosen.option or chosen.policy_option or chosen.prompts or other_data or other_kit)

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
        before = tuple(step.name for step in steps)
        # Once more whenever people have rated; the lines that are there are kept.
        return [*steps, Step("evaluate", "all policies, all judges", self.evaluate(), before, reads=(self.people,))]

    def fit(self, name: str, config: str, roles: bool = False, extra: Sequence[str] = ()) -> list[str]:
        """Command that trains one stage."""
        where = [f"--data.init_args.path={self.chosen.data}", f"--trainer.default_root_dir={self.root / name}"]
        base = f"--model.init_args.backbone.init_args.model={self.model}"
        seeds = [f"--seed_everything={self.kit['seed']}", f"--data.init_args.seed={self.kit['seed']}"]
        models = [f"--model.init_args.roles.init_args.{role}={self.root / role}" for role in ("reward", "cost")]
        budget = f"--model.init_args.dual.init_args.budget={self.kit['budget']}"  # behind the rule of the multiplier
        options = [*where, base, *seeds, *(models if roles else []), *extra, *([budget] if roles else [])]
        options += self.chosen.option
        options += self.chosen.policy_option if roles else []
        return ["fit", f"--config={self.stages / config}.yaml", *options]

    def policies(self) -> dict[str, Any]:
        """The start, what was trained, and best-of-K."""
        start = model_policy(self.model)
        policies = {"start": start}
        policies |= {name: model_policy(str(self.root / name), base=self.model) for name in self.kit["methods"]}
        for name, draws in self.kit["best_of"].items():
            parts = {"policy": start, **self.learned(), "draws": draws}
            policies[name] = {"class_path": "safe_rlhf_v.evaluation.BestOf", "init_args": parts}
        return policies

    def learned(self) -> dict[str, Any]:
        """Reward and cost model as judges; they are not independent."""
        return {
            role: component(f"safe_rlhf_v.construct.{name}", run=self.root / role, base=self.model)
            for role, name in LEARNED.items()
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
        files = {"kit": self.chosen.kit, "judges": self.chosen.judges}
        files |= {f"stages/{file.name}": file for file in sorted(self.stages.glob("*.yaml"))}
        return {name: file_content(file) for name, file in files.items()}


def read_yaml(option: str, file: Path) -> dict[str, Any]:
    """What stands in a YAML file, by name.

    Args:
        option: That names it.
        file: The file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds nothing by name.
    """
    try:
        content = yaml.load(file.read_text(), UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {file}: is not YAML: {error}") from None
    except DuplicateKeyError as error:
        raise ValueError(f"{option} {file}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{option} {file}: holds nothing by name; see {KIT}")
    return content


def pinned(model: str, file: Path) -> str:
    """Folder of a model's weights, downloaded once; every later call takes the same revision, whatever the hub holds by then.

    Args:
        model: Name on the hub, or a folder.
        file: JSON file that holds the revision; written by the first call.

    Raises:
        OSError: If it cannot be downloaded.
        ValueError: If the runs here began with another model.
    """
    if Path(model).is_dir():
        return model
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        revision = huggingface_hub.HfApi().model_info(model).sha
        write_whole(file, json.dumps({"model": model, "revision": revision}).encode())
    stored = json.loads(file.read_text())
    if stored["model"] != model:
        raise ValueError(f"{file}: the runs here began with {stored['model']}, not {model}; name another --root")
    return huggingface_hub.snapshot_download(model, revision=stored["revision"])


def revisions(root: Path, data: Path) -> dict[str, str]:
    """Commits of the weights and of the data on the hub; "" for what came from a folder."""
    file = root / "revision.json"
    model = json.loads(file.read_text())["revision"] if file.is_file() else ""
    return {"model": model, "data": Manifest.load(data).origin.get("revision", "")}


def model_policy(run: str, **options: str) -> dict[str, Any]:
    """A policy that says itself of which families it is, by the folder of its base."""
    return component("safe_rlhf_v.evaluation.ModelPolicy", run=run, **options)


def main(args: Sequence[str] | None = None) -> int:
    try:
        report(Kit(options(args)))
    except (ValueError, OSError, RuntimeError) as error:
        return refuse(error)
    return 0


def report(kit: Kit) -> None:
    """Do what is not done yet, and say what came out."""
    run_steps(kit.steps(), kit.root)
    settings = kit.kit["evaluation"]
    outcome = {
        "version": __version__,
        "trial": kit.trial,
        "hashes": kit.hashes() | {"data": Manifest.load(kit.chosen.data).digest},
        "revisions": revisions(kit.root, kit.chosen.data),
        **verdict(kit.evaluation, list(kit.judges), settings["split"], settings["audited"]),
    }
    file = kit.root / "result.json"
    write_whole(file, (json.dumps(outcome, indent=1, allow_nan=False) + "\n").encode())
    print(f"{'a trial, not a result; ' if kit.trial else ''}written: {file}")
    for claim in outcome["claims"]:
        audited = f" ({claim['audited']} of {settings['audited']} audited)" if "audited" in claim else ""
        print(f"  {claim['claim']}: {claim['outcome']}{audited}")
    if not kit.people.exists():
        sheet = kit.evaluation / "audit_sheet.csv"
        print(
            f"people: rate {sheet}, save it as {kit.people}, and run the same command again; until then nothing has passed"
        )


if __name__ == "__main__":
    sys.exit(main())
