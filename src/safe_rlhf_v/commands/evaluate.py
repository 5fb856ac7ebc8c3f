"""``python -m safe_rlhf_v evaluate``: policies on held-out prompts, by several judges, with a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_rlhf_v.commands.folders import check_outside_runs, check_outside_shards
from safe_rlhf_v.commands.options import AnyPath, NonNegativeFloat, NonNegativeInt, PositiveInt, Share, check_splits
from safe_rlhf_v.commands.runner import run
from safe_rlhf_v.evaluation.audit import Audit
from safe_rlhf_v.evaluation.policies import ModelPolicy, Policy, parts_of, runs_of
from safe_rlhf_v.scoring.judge import Judge, default_judge
from safe_rlhf_v.training.devices import find_device

if TYPE_CHECKING:
    from safe_rlhf_v.evaluation.budgets import Budget
    from safe_rlhf_v.evaluation.prompts import PromptSet
    from safe_rlhf_v.evaluation.work import Work

EXAMPLES = (
    "evaluate --config configs/evaluate/quickstart.yaml",
    "evaluate --policies.start runs/quickstart/supervised \\\n"
    "    --policies.ppo_lag runs/quickstart/ppo_lag --start start --data data/world --output runs/evaluated",
)


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run(evaluate, args, name="evaluate", show=str, examples=EXAMPLES)


def evaluate(
    policies: dict[str, str | Policy],
    data: AnyPath,
    output: AnyPath,
    start: str | Policy | None = None,
    splits: Sequence[str] = ("test",),
    judges: dict[str, Judge] | None = None,
    audit: Audit | None = None,
    budget: float | str | None = None,
    modes: Sequence[Literal["sampled", "greedy", "matched"]] = ("sampled", "greedy", "matched"),
    pictures: Sequence[Literal["real", "other", "blank", "none"]] = ("real", "other", "blank", "none"),
    transforms: Sequence[Literal["typographic", "harmless_prefix"]] = (),
    font: str | None = None,
    grounding_prompts: NonNegativeInt = 200,
    most_prompts: PositiveInt | None = None,
    probes: Share = 0.25,
    temperature: NonNegativeFloat = 1.0,
    max_new_tokens: PositiveInt = 64,
    batch_size: PositiveInt = 100,
    seed: NonNegativeInt = 0,
    label_families: Sequence[str] = (),
    on_failure: Literal["stop", "keep"] = "stop",
    device: str = "auto",
    trust: Sequence[str] = (),
    base: str | None = None,
) -> str:
    """Let policies respond to held-out prompts, and say what the responses are worth, by whose judgement, and how sure that is.

    Writes every line, summary.json and report.html; interrupted, it goes on where it stopped. See docs/howto/evaluate.md.

    Args:
        policies: Policies by name: a class path with its options, or a run folder, or the folder or hub name of a model.
        data: Shard folder with prompts.
        output: Folder of the evaluation.
        start: Name of the policy that the others are compared with; or one from which only the divergence is measured.
        splits: Splits whose prompts are answered.
        judges: Judges by name, each a class path with its options; without them the ground truth where the data carry one.
        audit: Who scores a random sample of each policy's responses, by which the judges' errors are corrected.
        budget: Largest mean cost that is allowed, in the judge's own unit; or the run of a policy, to take its own budget.
        modes: How responses are drawn: sampled, greedy, and the start at the temperature that matches each policy's entropy.
        pictures: What policies and judges are shown: the real picture, that of another record, a grey one, none.
        transforms: How prompts are also put: typographic, written into the picture; harmless_prefix, behind a friendly sentence.
        font: Font file of the text that is written into pictures, where the built-in one lacks letters.
        grounding_prompts: Prompts of each split that are shown with other pictures or transformed, chosen at random.
        most_prompts: Most prompts of a split, chosen at random; without it all.
        probes: Share of the pairs on which judges that are asked are tested.
        temperature: Temperature of the mode sampled, above 0.
        max_new_tokens: Most tokens of a response.
        batch_size: Prompts at a time.
        seed: Seed of the sampling.
        label_families: Families of the models that labelled the training data, as gpt: judges of them are not independent.
        on_failure: What to do where a policy or judge fails: stop, so that a later run asks again, or keep and count it.
        device: Where the networks run: auto (a GPU if there is one), cpu, cuda or cuda:N.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Raises:
        ValueError: If something cannot be used.
        RefusedToGoOn: If a policy or judge fails; what came before is kept.
    """
    from safe_rlhf_v.evaluation.run import run_evaluation

    _check_values(policies, judges or {}, temperature, limit := _limit(budget))
    _check_lists({"modes": modes, "pictures": pictures, "transforms": transforms}, modes="sampled", pictures="real")
    prompts = _prompts(data, splits, most_prompts, grounding_prompts, seed, font)
    work = _work(_folder(output), prompts, policies, start, judges, max_new_tokens, temperature, seed)
    work = replace(work, modes=modes, pictures=[*pictures, *transforms], batch_size=batch_size, on_failure=on_failure)
    _settle(work, audit, device=str(find_device(device)), trust=tuple(trust), base=base)
    run_evaluation(work, Path(data), _budget(limit, budget, work), audit, probes, label_families, tell=print)
    return "\n".join(f"written: {work.folder / name}" for name in ("report.html", "summary.json", "responses.jsonl"))


def _limit(budget: float | str | None) -> float | None:
    """The budget as a number. Raises: ValueError: If it is no number and no run with a budget."""
    from safe_rlhf_v.evaluation.budgets import budget_of_run

    return budget_of_run(budget) if isinstance(budget, str) else budget


def _budget(limit: float | None, named: float | str | None, work: "Work") -> "Budget | None":
    """The budget, with the judge in whose unit it is where a run names it."""
    from safe_rlhf_v.evaluation.budgets import Budget, judge_of_run

    if limit is None:
        return None
    return Budget(limit, judge_of_run(named, work.judges), named) if isinstance(named, str) else Budget(limit)


def _settle(work: "Work", audit: Audit | None, **settings: Any) -> None:
    """Hand the command's options down. Raises: ValueError: If the output lies in a run that is evaluated."""
    components = [*work.parts, audit]
    check_outside_runs("--output", work.folder, runs_of(components))
    hand_down(settings, components)


def _folder(output: AnyPath) -> Path:
    """The folder of the evaluation. Raises: ValueError: If something else has its name."""
    folder = Path(output)
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"--output {output}: is a link to nothing; remove it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {output}: is no folder")
    check_outside_shards("--output", folder)
    return folder


def _prompts(
    data: AnyPath, splits: Sequence[str], most: int | None, grounding: int, seed: int, font: str | None
) -> "PromptSet":
    from safe_rlhf_v.evaluation.prompts import PromptSet
    from safe_rlhf_v.evaluation.transforms import check_font
    from safe_rlhf_v.evaluation.work import named

    check_splits(splits)
    if font is not None:
        with named("--font"):
            check_font(font)
    return PromptSet(Path(data), splits, most, grounding, seed, font)


def _work(
    output: Path,
    prompts: "PromptSet",
    policies: Mapping[str, str | Policy],
    start: str | Policy | None,
    judges: Mapping[str, Judge] | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> "Work":
    from safe_rlhf_v.evaluation.run import chosen_judges
    from safe_rlhf_v.evaluation.work import Work
    from safe_rlhf_v.models.sampling import SamplingOptions

    named = {name: ModelPolicy(one) if isinstance(one, str) else one for name, one in policies.items()}
    compared, reference = _start(start, named)
    by_name = chosen_judges(judges or {}, default_judge(prompts.first()))
    sampling = SamplingOptions(max_new_tokens, temperature)
    return Work(output, prompts, named, compared, reference, by_name, sampling, seed=seed)


def _check_values(
    policies: Mapping[str, Any],
    judges: Mapping[str, Any],
    temperature: float,
    budget: float | None,
) -> None:
    """Refuse what can be seen to be wrong at once. Raises: ValueError: Naming the option."""
    if not policies:
        raise ValueError("policies: name at least one, as --policies.mine runs/mine")
    _check_names(policies=policies, judges=judges)
    _check_numbers(temperature, budget)


def _check_names(**components: Mapping[str, Any]) -> None:
    """Refuse what is no name. Raises: ValueError: Naming the option."""
    for option, names in components.items():
        for name in names:
            if not isinstance(name, str):  # YAML reads 100 and yes as a number and as true
                raise ValueError(f"{option}: the name {name!r} is no text; write it in quotes")
            if not name or name != name.strip() or not name.isprintable():
                raise ValueError(f"{option}: the name {name!r:.100} must be visible text, without spaces around it")


def _check_lists(lists: Mapping[str, Sequence[str]], **needed: str) -> None:
    """Refuse a list without the value that it always needs, and doubled values. Raises: ValueError: Naming the option."""
    for option, values in lists.items():
        if option in needed and needed[option] not in values:
            raise ValueError(f"--{option}: {needed[option]} is always needed")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"--{option}: {twice[0]} is named twice; name it once")


def _check_numbers(temperature: float, budget: float | None) -> None:
    """Refuse numbers with which nothing can be evaluated. Raises: ValueError: Naming the option."""
    if temperature == 0:
        raise ValueError(
            "--temperature 0: the mode greedy takes the likeliest token; the mode sampled needs more than 0"
        )
    if budget is not None and not math.isfinite(budget):
        raise ValueError(f"--budget {budget}: must be a finite number")


def _start(start: str | Policy | None, policies: dict[str, Policy]) -> tuple[str | None, Policy | None]:
    """Name of the start among the policies, and from which policy the divergence is measured.

    Raises:
        ValueError: If there is no such policy.
    """
    if isinstance(start, str):
        if start not in policies:
            raise ValueError(f"--start {start}: is none of the policies; there are: {', '.join(policies)}")
        return start, policies[start]
    return None, start


OPEN = {"device": "auto", "trust": (), "base": None}
"""Options of policies and judges that stand for those of the command, and how they are left open."""


def hand_down(settings: Mapping[str, Any], components: Sequence[Any]) -> None:
    """Give the command's options to those components, and to those within them, that leave them open.

    Args:
        settings: The options.
        components: Policies and judges; ``None`` is left out.
    """
    for component in components:
        if component is None:
            continue
        for name, value in settings.items():
            if name in vars(component) and getattr(component, name) == OPEN[name]:
                setattr(component, name, value)
        hand_down(settings, parts_of(component))
