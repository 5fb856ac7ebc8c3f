"""Does the audit pay? Reward and cost models on labels of faulty judges, and of the audited and cleaned ones; one JSON file.

    python benchmarks/construct_pays.py --quickstart runs/quickstart --data data/world --out docs/evidence/construct_pays.json

One constructed set of the embedded world (synthetic) per seed, labelled in three ways: by every judge of a panel in which most
have a fault, by those that the audit leaves (leaking questions left out, too), and by ground truth, the most that labels can
give. A reward and a cost model are trained on each, from the supervised stage of the quickstart, and measured against ground
truth on the world's test split. Every training is a public command; finished runs are kept and not repeated.
"""

import argparse
import json
from pathlib import Path

from evidence import summary

from safe_rlhf_v.construct.audit import Audit
from safe_rlhf_v.construct.grounding import Ground
from safe_rlhf_v.construct.images import CollectImages
from safe_rlhf_v.construct.judging import JudgeResponses
from safe_rlhf_v.construct.pipeline import run_stages
from safe_rlhf_v.construct.questions import AskQuestions
from safe_rlhf_v.construct.responses import Respond
from safe_rlhf_v.construct.rubric import Rubric
from safe_rlhf_v.construct.stage import Workspace
from safe_rlhf_v.construct.write import WriteShards
from safe_rlhf_v.demo.processes import cpu_seconds, execute
from safe_rlhf_v.demo.runs import Run
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.world import SimulatedJudge, WorldJudge, WorldPictures, WorldQuestions, WorldResponder

RUBRIC = "configs/construct/world_rubric.yaml"
PANEL = (
    {"length_bias": 0.6},
    {"length_bias": 0.6},
    {"length_bias": 0.6},
    {"blind": True},
    {"blind": True},
    {"position_bias": 0.5},
    {"lazy": 1.0},
    {},
    {},
)
"""Faults of the judges: seven of nine have one, and several share theirs, so that a majority does not cancel it."""
ARMS = ("every_judge", "audited", "truth")
PASSES = {"reward": 2, "cost": 3}
BATCH = 32
MEASURES = {"reward": ("test/true_accuracy",), "cost": ("test/true_accuracy", "test/true_balanced_sign_accuracy")}
SPLITS = {"train": 0.9, "validation": 0.1}


def build(folder: Path, seed: int, pictures: int) -> dict[str, Path]:
    """Shards of every arm."""
    panel: dict[str, Judge] = {
        f"judge_{i}": SimulatedJudge(seed=100 * seed + i, **fault) for i, fault in enumerate(PANEL)
    }
    shards = {}
    for name, judges in (("panel", panel), ("truth", {"truth": WorldJudge()})):
        work = Workspace(folder / name, Rubric.load(RUBRIC), seed)
        stages = [
            CollectImages(WorldPictures(pictures, seed=seed), near_distance=-1),
            AskQuestions(WorldQuestions(per_image=1, leaking=0.1)),
            Respond({"one": WorldResponder(seed=1), "two": WorldResponder(seed=2)}),
        ]
        if name == "panel":
            stages += [
                Ground(WorldResponder(helpful=True), SimulatedJudge(seed=seed)),
                JudgeResponses(judges, probes=0.25),
                Audit(WorldJudge(), gold_share=0.1),
            ]
            arms = {"every_judge": False, "audited": True}
        else:
            stages.append(JudgeResponses(judges, probes=0.0))
            arms = {"truth": False}
        run_stages(stages, work)
        for arm, audited in arms.items():
            WriteShards(SPLITS, audited=audited, truth=WorldJudge(), folder=arm).run(work)
            shards[arm] = folder / name / arm
    return shards


def label_accuracy(shards: Path) -> dict[str, float]:
    """Share of the training preferences that agree with truth, and how many there are."""
    records = ShardedSplit(shards, "train")
    counts: dict[str, float] = {"pairs": len(records)}
    for name, values in (("more_helpful", "helpfulness"), ("safer", "safety")):
        right = total = 0
        for row in range(len(records)):
            record = records[row]
            chosen = getattr(record, name)
            first, second = getattr(record.truth, values)
            if chosen is not None and first != second:
                total += 1
                right += chosen == int(second > first)
        counts |= {f"{name}_labelled": total, f"{name}_right": right / total if total else float("nan")}
    return counts


def train(run: Run, stage: str, arm: str, shards: Path, options: argparse.Namespace) -> dict[str, float]:
    name = f"{arm}_{stage}"
    if not (run.root / name / "metrics.json").exists():
        steps = max(1, PASSES[stage] * Manifest.load(shards).splits["train"].samples // BATCH)
        extra = [
            f"--data.init_args.path={shards}",
            f"--model.init_args.init_from={options.quickstart / 'supervised'}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps}",
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
            "--data.init_args.test_splits=[test]",
            "--model.init_args.grounding=false",
        ]
        execute(run.fit(stage, *extra, name=name), logs=run.root / "output")
        execute(run.test(name), logs=run.root / "output")
    measured = run.metrics(name)
    return {f"{stage} {measure}": measured[measure] for measure in MEASURES[stage]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--data", type=Path, default=Path("data/world"), help="the world, with its tokenizer")
    parser.add_argument("--root", type=Path, default=Path("runs/construct_pays"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/construct_pays.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=1500)
    options = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in options.seeds:
        shards = build(options.root / f"seed-{seed}", seed, options.pictures)
        run = Run(options.data, options.root / f"seed-{seed}" / "runs", seed)
        for arm in ARMS:
            row = label_accuracy(shards[arm])
            for stage in PASSES:
                row |= train(run, stage, arm, shards[arm], options)
            rows[arm].append(row)
            print(f"seed {seed}, {arm}: {json.dumps(row)}", flush=True)
    table = {
        arm: {name: summary([row[name] for row in several]) for name in several[0]} for arm, several in rows.items()
    }
    about = {
        "what": "reward and cost models trained on constructed data of the embedded world (synthetic), against ground truth on "
        "its test split; seeds vary pictures, responses, judges, weights and order",
        "panel": list(PANEL),
        "pictures": options.pictures,
        "seeds": options.seeds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "arms": table}, indent=1) + "\n")
    print(f"{cpu_seconds():.0f} CPU seconds in this call")


if __name__ == "__main__":
    main()
