"""What a pipeline measured, as text."""

import json
import math
from collections import defaultdict
from typing import NamedTuple

from safe_rlhf_v.demo.runs import GUARD_SPLITS, Run
from safe_rlhf_v.functional.budget import budget_verdict
from safe_rlhf_v.functional.intervals import wilson_interval
from safe_rlhf_v.shards import Manifest

BUDGET = -0.5
SCORES = (  # model, metric, what it is, what it is a share of: a metric that counts them, how many per record, or 0 for no share
    ("reward", "test/true_accuracy", "reward ranking, against the truth", "test/decided_pairs"),
    ("reward", "test/accuracy", "reward ranking, against noisy labels", 1),
    ("reward", "test/label_ceiling", "  noisy labels against the truth (their ceiling)", "test/decided_pairs"),
    ("reward", "test/shuffled_accuracy", "  ranking with shuffled pictures", "test/decided_pairs"),
    ("reward", "test/blank_accuracy", "  ranking with blank pictures", "test/decided_pairs"),
    ("reward", "compositional/true_accuracy", "reward ranking, unseen combinations", "compositional/decided_pairs"),
    ("reward", "counterfactual_helpfulness/true_accuracy", "reward, counterfactual pictures (blind: 0.50)", 1),
    ("cost", "test/true_accuracy", "cost ranking, against the truth", "test/decided_pairs"),
    ("cost", "test/accuracy", "cost ranking, against noisy labels, ties included", 1),
    ("cost", "test/label_ceiling", "  noisy labels against the truth (their ceiling)", "test/decided_pairs"),
    ("cost", "test/shuffled_accuracy", "  ranking with shuffled pictures", "test/decided_pairs"),
    ("cost", "test/blank_accuracy", "  ranking with blank pictures", "test/decided_pairs"),
    ("cost", "test/true_balanced_sign_accuracy", "cost sign: harmful or not, balanced", 2),
    ("cost", "test/true_auroc", "cost, AUROC of harmful", 0),
    ("cost", "compositional/true_accuracy", "cost ranking, unseen combinations", "compositional/decided_pairs"),
    ("cost", "counterfactual_safety/true_accuracy", "cost, counterfactual pictures (blind: 0.50)", 1),
    ("cost", "counterfactual_verdict/true_sign_accuracy", "cost, counterfactual verdicts (blind: 0.50)", 1),
)
GUARD = (
    ("level_accuracy", "seven levels, accuracy"),
    ("within_one", "  within one level"),
    ("quadratic_kappa", "  quadratic weighted kappa"),
    ("majority_accuracy", "  (accuracy of the commonest level)"),
    ("harm_accuracy", "harmful or not, accuracy"),
    ("harm_auroc", "  AUROC"),
    ("harm_ece", "  calibration error of P(harmful)"),
    ("fpr_at_block", "harmless responses blocked (budget 0.05)"),
    ("fpr_at_block_upper", "  at most (95 %)"),
    ("recall_at_block", "harmful responses blocked"),
    ("recall_at_block_lower", "  at least (95 %)"),
    ("severe_recall_at_block", "severe responses blocked (levels -2 and -3)"),
    ("severe_recall_at_block_lower", "  at least (95 %)"),
)
GUARDED = {"no guard": "without a guard", "round 0": "filtered"}


class Method(NamedTuple):
    """One way to train the policy.

    Attributes:
        name: Its run folder.
        about: Its row in the table.
        config: Its file of ``configs/quickstart``; ``None`` for the start itself.
        options: What differs from the file.
        after: Method that has to be there before.
        draws: K: the best of K responses of the start is given out or, with a configuration, imitated; 0 for no such thing.
        safe: The best is the most helpful of the safe ones, by the learned models, in place of the best by R - C.
    """

    name: str
    about: str
    config: str | None
    options: tuple[str, ...] = ()
    after: str = ""
    draws: int = 0
    safe: bool = False

    @property
    def untrained(self) -> bool:
        """Whether the best of the start's responses are its own; it has no greedy ones, for K likeliest responses are equal."""
        return self.draws > 0 and self.config is None


START = Method("supervised", "supervised start", None)
PPO_LAG = Method("ppo_lag", "PPO-Lagrangian", "ppo_lag")


def results(run: Run) -> str:
    """Everything that the quickstart measured."""
    return "\n".join([*score_rows(run), *guard_rows(run), "", *policy_rows(run, (START, PPO_LAG))])


def score_rows(run: Run) -> list[str]:
    """Held-out results with 95 % Wilson intervals (twins and pairs are not quite independent: a guide, not a test)."""
    lines = [f"{'held out':<52}{'value':>7}  95 % interval      n"]
    splits = Manifest.load(run.data).splits
    for model, metric, about, count in SCORES:
        metrics = run.metrics(model)
        n = count * splits[metric.partition("/")[0]].samples if isinstance(count, int) else round(metrics.get(count, 0))
        value = metrics.get(metric, math.nan)  # there is none where no pair of a tiny split is decided
        low, high = (0.0, 1.0) if math.isnan(value) or not n else wilson_interval(round(value * n), n)
        interval = f"  {low:.3f} .. {high:.3f} {n:>6}" if count else ""
        lines.append(f"{about:<52}{value:>7.3f}{interval}")
    return lines


def guard_rows(run: Run) -> list[str]:
    """The guard's rows, and what it does to the supervised policy's responses."""
    lines = ["", f"{'the guard, held out (calibrated)':<52}{'test':>10}{'unseen comb.':>14}{'counterfactual':>16}"]
    measured = json.loads((run.root / "guard" / "assessment.json").read_text())
    for metric, about in GUARD:
        values = [measured[split].get(metric) for split in GUARD_SPLITS]
        first, second, third = (math.nan if value is None else value for value in values)
        lines.append(f"{about:<52}{first:>10.3f}{second:>14.3f}{third:>16.3f}")
    rows = json.loads((run.root / "guard" / "responses-BestOfK.json").read_text())
    lines += ["", f"{'the supervised policy, by ground truth':<52}{'harmful':>10}{'refused':>14}{'helpfulness':>16}"]
    for row in (rows[0], rows[1], rows[-1]):
        name = GUARDED.get(row["name"], "filtered and regenerated, 5 rounds")
        bound = f"  harmful: at most {row['harm_upper']:.3f} (95 %)" if "harm_upper" in row else ""
        lines.append(f"{name:<52}{row['harm']:>10.3f}{row['refused']:>14.3f}{row['helpfulness']:>16.2f}{bound}")
    return lines


def policy_rows(run: Run, methods: tuple[Method, ...], budget: float = BUDGET) -> list[str]:
    """One row per method, held-out prompts, by ground truth; cost and divergence by the learned models."""
    spread = cost_spread(run)
    start = _means(run, "supervised")["harmful"]
    lines = [
        f"{'held-out prompts, ground truth':<30}{'helpful':>8}{'level':>7}{'harmful':>9}{'fall':>6}{'refused':>9}"
        f"{'over-ref.':>10}{'describe':>9}{'cost':>7}{'budget':>11}{'KL':>6}{'greedy: helpful':>17}{'harmful':>9}"
    ]
    for method in methods:
        m = _means(run, method.name)
        cost = run.cost_interval(method.name)
        verdict = budget_verdict(cost.low / spread, cost.high / spread, budget)
        fall = 1 - m["harmful"] / start if start else math.nan
        greedy = defaultdict(lambda: math.nan) if method.untrained else _means(run, method.name, "greedy")
        lines.append(
            f"{method.about:<30}{m['helpfulness']:>8.2f}{m['level']:>7.2f}{m['harmful']:>9.3f}{fall:>6.0%}"
            f"{m['refused']:>9.3f}{m['over_refused']:>10.3f}{m['description']:>9.2f}{cost.value / spread:>7.2f}"
            f"{verdict:>11}{m['kl']:>6.2f}{greedy['helpfulness']:>17.2f}{greedy['harmful']:>9.3f}"
        )
    lines.append(
        "sampled at temperature 1, but for the last two columns; cost: learned, in spreads of the start's; budget "
        f"{budget:+.2f}: met if the upper 95 % bound of the cost is at most that, broken if the lower one is above it; describe: "
        "helpfulness on harmless descriptions"
    )
    return lines


def _means(run: Run, name: str, mode: str = "sampled") -> dict[str, float]:
    """Mean of every value of a policy's responses; NaN for what no response has."""
    return defaultdict(lambda: math.nan, {key: value.mean for key, value in run.evaluation(name, mode=mode).items()})


def cost_spread(run: Run, name: str = "ppo_lag") -> float:
    """The unit of budgets: spread of the starting policy's raw cost, as a policy run measured it."""
    from safe_rlhf_v.training.checkpoints import read_checkpoint

    return float(read_checkpoint(run.root / name)["state_dict"]["scale.spread"][1])
