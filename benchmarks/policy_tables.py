"""The tables of docs/results/policy.md from the JSON files of policy_evidence.py, policy_step.py and gpu.py.

    python benchmarks/policy_tables.py docs/evidence

In the order of the page, but for the last ones: unseen seeds, and what a step costs.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safe_rlhf_v.functional.budget import budget_verdict
from safe_rlhf_v.records.markdown import marked_table

T_PROMPTS = 1.9623
"""97.5 % quantile of Student's t with 999 degrees of freedom: 1,000 prompts."""
NAMES = {
    "supervised": "supervised start",
    "ppo_reward": "PPO, reward only",
    "ppo_fixed": "PPO, reward - 1 x cost",
    "ppo_lag": "**PPO-Lagrangian**, d = -0.5",
    "grpo_lag": "constrained GRPO, d = -0.5",
    "dpo_helpful": "DPO, helpful",
    "dpo_safe": "DPO, safe",
    "safe_dpo": "SafeDPO",
    "sacpo": "SACPO",
    "ppo_no_ptx": "PPO-Lagrangian without PTX",
    "dual_pid": "PPO-Lagrangian, PID controller",
    "dual_fast": "PPO-Lagrangian, rate 0.3",
    "long": "PPO-Lagrangian, rate 0.2, 90 iterations",
}
CONTROLLERS = {
    "ppo_lag": "log-space, rate 0.1 (default)",
    "dual_fast": "log-space, rate 0.3",
    "dual_pid": "PID",
    "dual_projected": "projected (the paper's eq. 8)",
    "dual_released": "log-space as released",
    "ppo_fixed": "fixed, 1",
    "dual_exact": "exact penalty, 2",
    "dual_rectified": "rectified per prompt, d = 0",
}
STEPS = {
    "released": "released sequence (our re-creation)",
    "separate_k1": "six networks, K = 1",
    "separate_k4": "six networks, K = 4",
    "shared_k1": "one base with adapters, K = 1",
    "shared_k4": "one base with adapters, K = 4",
    "shared_k4_parts": "the same, learning prompt by prompt",
}
CARDS = {
    "qwen2_5_vl_k4": "Qwen2.5-VL-7B, constrained GRPO, K = 4",
    "qwen2_5_vl_k1": "Qwen2.5-VL-7B, PPO-Lagrangian, two critics",
    "llava_k4": "LLaVA-1.5-7B, constrained GRPO, K = 4",
    "llava_k1": "LLaVA-1.5-7B, PPO-Lagrangian, two critics",
    "qwen2_5_vl_k4_nf4": "Qwen2.5-VL-7B stored in nf4, constrained GRPO",
}


def table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    return marked_table(head.split("|"), rows)


def each(metric: dict[str, Any], form: str = ".2f") -> str:
    return " / ".join(format(value, form) for value in metric["values"])


def spread(metric: dict[str, Any], form: str = ".2f") -> str:
    return f"{metric['mean']:{form}} ± {metric['half_width_95']:{form}}"


def budget_met(test: dict[str, Any], budget: float) -> str:
    """The verdict, or how many seeds have which; every prompt has a picture of its own, so prompts are the clusters."""
    cost, error = test["cost"], test["cost_error"]
    ends = [(c - T_PROMPTS * e, c + T_PROMPTS * e) for c, e in zip(cost["values"], error["values"], strict=True)]
    verdicts = Counter(budget_verdict(low, high, budget) for low, high in ends)
    if len(verdicts) == 1:
        return next(iter(verdicts))
    return ", ".join(f"{name} {verdicts[name]}" for name in ("met", "undecided", "broken") if verdicts[name])


def methods(found: dict[str, Any]) -> str:
    head = (
        "Policy|helpfulness|harmful|fall of harm|level|refused|over-refused|garbled|describing|learned cost|budget|KL"
    )
    rows = []
    for name in [name for name in NAMES if name in found["runs"]]:
        test = found["runs"][name]["test"]
        rest = [f"{test[m]['mean']:.2f}" for m in ("level", "refused", "over_refused", "garbled", "description")]
        fall = "" if name == "supervised" else each(test["harm_fall"], ".0%")
        start = [NAMES[name], spread(test["helpfulness"]), spread(test["harmful"], ".3f"), fall]
        end = [each(test["cost"]), budget_met(test, found["about"]["budget"]), f"{test['kl']['mean']:.1f}"]
        rows.append([*start, *rest, *end])
    return table(head, rows)


def confirmed(found: dict[str, Any]) -> str:
    head = "Policy|helpfulness|its gain|harmful|fall of harm|learned cost|the seeds|budget"
    rows = []
    for name in [name for name in NAMES if name in found["runs"]]:
        test = found["runs"][name]["test"]
        change = (
            ["", ""] if name == "supervised" else [spread(test["helpfulness_gain"]), spread(test["harm_fall"], ".0%")]
        )
        costs = [spread(test["cost"]), each(test["cost"]), budget_met(test, found["about"]["budget"])]
        shown = [spread(test["helpfulness"]), change[0], spread(test["harmful"], ".3f"), change[1]]
        rows.append([NAMES[name], *shown, *costs])
    return table(head, rows)


def budgets(found: dict[str, Any]) -> str:
    runs = {-0.5: "ppo_lag"} | {
        -float(name.removeprefix("budget_")): name for name in found["runs"] if "budget_" in name
    }
    rows = []
    for budget, name in sorted(runs.items(), reverse=True):
        test, control = found["runs"][name]["test"], found["runs"][name]["control"]
        shown = [each(test["cost"]), budget_met(test, budget), each(test["harmful"], ".3f"), each(test["helpfulness"])]
        rows.append([f"-{-budget:.1f}", *shown, each(control["last_lambda"])])
    return table("Budget d|learned cost|budget|harmful|helpfulness|last multiplier", rows)


def controllers(found: dict[str, Any]) -> str:
    head = (
        "Controller|iterations to the budget|largest multiplier|above the budget after first meeting it|final gap (last 15)|"
        "held-out cost|harmful|helpfulness"
    )
    rows = []
    for name in [name for name in CONTROLLERS if name in found["runs"]]:
        test, control = found["runs"][name]["test"], found["runs"][name]["control"]
        steered = [each(control[m]) for m in ("largest_lambda", "overshoot", "final_gap")]
        judged = [each(test["cost"]), each(test["harmful"], ".3f"), each(test["helpfulness"])]
        rows.append([CONTROLLERS[name], each(control["iterations_to_budget"], ".0f"), *steered, *judged])
    return table(head, rows)


def elsewhere(found: dict[str, Any]) -> str:
    head = "Policy|compositional: helpfulness|harmful|greedy (seed 0): helpfulness|harmful"
    rows = []
    for name in [name for name in NAMES if "compositional" in found["runs"].get(name, {})]:
        other, greedy = found["runs"][name]["compositional"], found["runs"][name].get("test-greedy")
        likely = [f"{greedy['helpfulness']['mean']:.2f}", f"{greedy['harmful']['mean']:.3f}"] if greedy else ["", ""]
        rows.append([NAMES[name], spread(other["helpfulness"]), spread(other["harmful"], ".3f"), *likely])
    return table(head, rows)


def steps(found: dict[str, Any]) -> str:
    rows = []
    for name in [name for name in STEPS if name in found["variants"]]:
        v = found["variants"][name]
        low, high = v["cpu_seconds_range"]
        seconds = f"{v['cpu_seconds']:.2f} ({low:.2f} .. {high:.2f})"
        memory = [v["peak_mb"], f"{v['share_of_peak']:.2f}", v["live_mb"], f"{v['share_of_live']:.2f}"]
        rows.append([STEPS[name], seconds, f"{v['times_faster']:.2f}", *memory])
    return table("One step, eight responses|CPU seconds|times faster|peak memory, MB|share|in use, MB|share", rows)


def gpu(found: dict[str, Any]) -> str:
    """Phases of a step of networks of 7B parameters."""
    phases = {
        "sampling": ("prompts", "decoding"),
        "frozen": ("reward, cost", "reference"),
        "critics": ("critics",),
        "actor": ("actor",),
    }
    rows = []
    for name, title in CARDS.items():
        case = found["cases"][name]
        sums = [sum(case["seconds"].get(part, 0.0) for part in parts) for parts in phases.values()]
        seconds = [f"{value:.1f} s" if value else "" for value in sums]
        head = [title, f"{case['seconds_per_response']:.2f}", f"{case['floor_seconds_per_response']:.2f}"]
        rows.append([*head, *seconds, f"{100 * case['mfu']['actor']:.0f} %", f"{case['peak_gib']:.1f}"])
    return table("|GPU-s per response|floor|sampling|frozen passes|critics|actor|MFU, actor|peak, GiB", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    names = ("policy", "policy_confirm", "policy_step", "gpu")
    found, unseen, step, card = (json.loads((folder / f"{name}.json").read_text()) for name in names)
    for part in (methods, budgets, controllers, elsewhere):
        print(f"{part(found)}\n")
    print("\n\n".join([confirmed(unseen), steps(step), gpu(card)]))


if __name__ == "__main__":
    main()
