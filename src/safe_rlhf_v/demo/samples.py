"""Best of K responses of the start: given out as they are (best-of-K), or imitated (rejection sampling)."""

import json

from safe_rlhf_v.demo.runs import Run, component, learned_judges
from safe_rlhf_v.demo.steps import Step
from safe_rlhf_v.demo.tables import Method

PROMPTS = 720
"""Training prompts that are answered for rejection sampling: with K = 4 as many responses as a policy run samples."""
OPTIONS = ("--data.init_args.demonstrations_from=helpful", "--data.init_args.validation_splits=[]")
"""Shards of best samples hold one response to each prompt, without labels, in one split."""


def best_of(run: Run, method: Method, weight: float = 1.0) -> dict[str, object]:
    """The start, of whose K responses the best is given out.

    Args:
        run: Where the start and the models are.
        method: Says how many are drawn, and what is the best.
        weight: Of the cost against the reward, in the models' own units.
    """
    policy = component("safe_rlhf_v.evaluation.ModelPolicy", run=run.root / "supervised")
    rule: dict[str, object] = {"lam": 0.0, "most_cost": 0.0} if method.safe else {"lam": weight}
    options = {"policy": policy, **learned_judges(run.root), "draws": method.draws, **rule}
    return {"class_path": "safe_rlhf_v.evaluation.BestOf", "init_args": options}


def imitation_steps(run: Run, method: Method, weight: float = 1.0, prompts: int = PROMPTS) -> list[Step]:
    """Sampling, shards and training of a method that imitates the best samples.

    Args:
        run: Where the start and the models are.
        method: With a configuration and a number of draws.
        weight: See :func:`best_of`.
        prompts: Training prompts that are answered.
    """
    assert method.config is not None
    samples = run.root / f"{method.name}_samples"
    shards = run.root / f"{method.name}_data"
    draw = [
        *run.evaluate(method.name, policy=best_of(run, method, weight), output=samples, split="supervised"),
        f"--most_prompts={prompts}",
    ]
    where = ["--split=supervised", f"--responses={samples / 'responses.jsonl'}", f"--out={shards}"]
    limit = ["--at_most", json.dumps({"cost": 0.0})] if method.safe else []
    write = ["shards", "demonstrate", f"--data={run.data}", *where, *limit]
    fit = run.fit(method.config, *OPTIONS, *method.options, f"--data.init_args.path={shards}", name=method.name)
    names = [f"{method.name}{ending}" for ending in ("_samples", "_data", "")]
    return [
        Step(names[0], f"sample: {method.about}", draw, ("supervised", "reward", "cost")),
        Step(names[1], f"write: {method.about}", write, (names[0],), shards / "manifest.json"),
        Step(names[2], f"train: {method.about}", fit, (names[1],)),
    ]
