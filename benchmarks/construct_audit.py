"""Does the audit find planted faults, and is it quiet without them? Does the grounding filter find what leaks? One JSON file.

    python benchmarks/construct_audit.py --out docs/evidence/construct_audit.json

Twenty seeds of simulated judges over one stored set of responses of the embedded world's generators; three fault-free judges per
audit, and one judge for each fault. Grounding: a planted share of leaking questions, against truth, over seeds.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from scipy.stats import binomtest

from safe_rlhf_v.construct.alarms import Gold, Tolerances, axes_of, checks_of_judge, raised
from safe_rlhf_v.construct.grounding import Ground, read_grounding
from safe_rlhf_v.construct.images import CollectImages
from safe_rlhf_v.construct.judging import JudgeResponses, opinions_in
from safe_rlhf_v.construct.pipeline import run_stages
from safe_rlhf_v.construct.questions import AskQuestions, read_items
from safe_rlhf_v.construct.responses import Respond, read_pairs
from safe_rlhf_v.construct.rubric import Rubric
from safe_rlhf_v.construct.stage import Workspace
from safe_rlhf_v.scoring.judge import AXES, Asked
from safe_rlhf_v.world import SimulatedJudge, WorldJudge, WorldPictures, WorldQuestions, WorldResponder

RUBRIC = "configs/construct/world_rubric.yaml"
FAULTS = {
    "position_bias": {"position_bias": 0.4},
    "weak position_bias": {"position_bias": 0.15},
    "length_bias": {"length_bias": 0.5},
    "weak length_bias": {"length_bias": 0.25},
    "too_many_ties": {"lazy": 1.0},
    "picture_not_read": {"blind": True},
    "unparsable": {"garbage": 0.05},
    "weak unparsable": {"garbage": 0.02},
}
"""Strength by fault; the alarm's name is the last word. The weak ones show where the audit's power ends."""
CAREFUL = 3


def rate(count: int, of: int) -> dict[str, float]:
    bounds = binomtest(count, of).proportion_ci(0.95, method="exact")
    return {"count": count, "of": of, "low": round(float(bounds.low), 4), "high": round(float(bounds.high), 4)}


def stored(folder: Path, images: int, leaking: float, seed: int) -> Workspace:
    """Responses of the world's generators."""
    work = Workspace(folder, Rubric.load(RUBRIC), seed)
    stages = [
        CollectImages(WorldPictures(images, seed=seed), near_distance=-1),
        AskQuestions(WorldQuestions(per_image=2, leaking=leaking)),
        Respond({"one": WorldResponder(seed=1), "two": WorldResponder(seed=2)}),
    ]
    run_stages(stages, work)
    return work


def gold_of(work: Workspace) -> Gold:
    gold = Gold({axis: {} for axis in AXES}, {axis: {} for axis in AXES})
    for key, pair in read_pairs(work).usable.items():
        record = pair.item.record(work)
        for axis in AXES:
            asked = [Asked(record, pair.texts, axis), *(Asked(record, (text,), axis) for text in pair.texts)]
            choice, *ratings = (opinion.value for opinion in WorldJudge().ask(asked))
            gold.choices[axis][key] = -1 if choice == 0 else int(choice < 0)
            gold.ratings[axis] |= {(key, number): value for number, value in enumerate(ratings)}
    return gold


def alarms_of(work: Workspace, judges: dict[str, SimulatedJudge], gold: Gold) -> Counter:
    stage = JudgeResponses(judges, probes=0.5)
    tolerances = Tolerances()
    opinions = opinions_in(stage.do(work, stage.tasks(work)))
    checks = [
        check
        for name in judges
        for check in checks_of_judge(name, axes_of([o for o in opinions if o.judge == name]), gold, tolerances)
    ]
    alarms = zip(checks, raised(checks, tolerances), strict=True)
    return Counter((check.judge, check.name) for check, alarm in alarms if alarm)


def audits(work: Workspace, seeds: int) -> dict:
    gold = gold_of(work)
    found: Counter = Counter()
    others: Counter = Counter()
    quiet: Counter = Counter()
    false_alarms = 0
    for seed in range(seeds):
        careful = {f"careful {i}": SimulatedJudge(seed=1000 * seed + i) for i in range(CAREFUL)}
        alarms = alarms_of(work, careful, gold)
        false_alarms += bool(alarms)
        quiet.update(name for _, name in alarms)
        faulty = {name: SimulatedJudge(seed=1000 * seed + 100 + i, **FAULTS[name]) for i, name in enumerate(FAULTS)}
        alarms = alarms_of(work, {**careful, **faulty}, gold)
        for judge, alarm in alarms:
            if judge in FAULTS and alarm == judge.split()[-1]:
                found[judge] += 1
            else:
                others[f"{judge.split()[0] if judge.startswith('careful') else judge}: {alarm}"] += 1
        print(f"seed {seed}: {sum(found.values())} found so far, {false_alarms} false alarms", flush=True)
    return {
        "audits_without_faults": {"with_an_alarm": rate(false_alarms, seeds), "which": dict(quiet)},
        "planted_faults_found_and_named": {name: {**rate(found[name], seeds), **FAULTS[name]} for name in FAULTS},
        "further_alarms_in_audits_with_faults": dict(sorted(others.items())),
    }


def grounding(folder: Path, images: int, seeds: int, share: float) -> dict:
    """The filter against truth; responder and judge err, too."""
    counts: Counter = Counter()
    for seed in range(seeds):
        work = stored(folder / f"grounding-{seed}", images, share, seed)
        run_stages_of = Ground(WorldResponder(helpful=True), SimulatedJudge())
        run_stages_of.run(work)
        truth = {key: item.origin["leaks"] == "true" for key, item in read_items(work).items()}
        counts.update((truth[key], finding.leaks) for key, finding in read_grounding(work).items())
    return {
        "planted_share": share,
        "leaking_removed": rate(counts[True, True], counts[True, True] + counts[True, False]),
        "sound_removed": rate(counts[False, True], counts[False, True] + counts[False, False]),
        "seeds": seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/construct_audit.json"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--grounding_seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        work = stored(Path(name) / "audit", options.images, 0.0, 0)
        pairs = len(read_pairs(work).usable)
        result = audits(work, options.seeds)
        ground = grounding(Path(name), options.images, options.grounding_seeds, 0.2)
    about = {
        "what": "audits of simulated judges with known faults over one stored set of responses of the embedded world "
        "(synthetic data); bounds are 95 % exact over seeds of judges; grounding over questions of all seeds",
        "pairs": pairs,
        "probed_share": 0.5,
        "judges_without_faults_per_audit": CAREFUL,
        "seeds": options.seeds,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, **result, "grounding": ground}, indent=1) + "\n")
    print(json.dumps({**result, "grounding": ground}, indent=1))
    print(f"{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
