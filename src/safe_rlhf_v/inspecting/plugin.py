# ruff: noqa: E402  the extra is looked for first
"""What inspect_ai finds by our entry point: a model provider, scorers and a task. Only this file imports inspect_ai.

Command line::

    inspect eval safe_rlhf_v/battery --model safe_rlhf_v/runs/quickstart/ppo_lag -T data=data/world -T guard=runs/quickstart/guard
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safe_rlhf_v.records.packages import package

package("inspect_ai", "inspect")  # without it: one line that names the extra

from inspect_ai import Task, task
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, mean, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolChoice, ToolInfo
from rich.markup import escape

from safe_rlhf_v.construct import CostJudge, GuardJudge, RewardJudge
from safe_rlhf_v.evaluation.prompts import Picture
from safe_rlhf_v.evaluation.transforms import Transform
from safe_rlhf_v.functional.clustered import clustered_mean, clustered_share
from safe_rlhf_v.inspecting.battery import entries
from safe_rlhf_v.inspecting.judging import Judged, has_truth, world_judge
from safe_rlhf_v.inspecting.responding import DRAW, MAX_TOKENS, Policy
from safe_rlhf_v.scoring.judge import Judge

GROUP = "group"
"""Name in a sample's metadata: samples of one group, as questions about one image, are not independent."""
Packages = str | Sequence[str]


@contextmanager
def _one_line() -> Iterator[None]:
    """What is refused before a run starts is shown as one line, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise PrerequisiteError(escape(" ".join(str(error).split()))) from error


def _packages(names: Packages) -> tuple[str, ...]:
    return tuple(name for name in (names.split(",") if isinstance(names, str) else names) if name)


@modelapi(name="safe_rlhf_v")
class SafePolicy(ModelAPI):
    """A policy of ours: ``--model safe_rlhf_v/SOURCE``, with a run folder, or the folder or hub name of a model."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  inspect's own default
        device: str = "auto",
        trust: Packages = (),
        base: str | None = None,
        batch_size: int = 16,
    ) -> None:
        """Load it; see :class:`~safe_rlhf_v.inspecting.responding.Policy` for the options, which ``-M NAME=VALUE`` sets.

        Args:
            model_name: The source.
            base_url: Must be absent: nothing is asked of a server.
            api_key: Must be absent.
            config: Options of all generations.
            device: Where it runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
            trust: Packages of yours whose classes a run may name, beside this library's.
            base: Folder or hub name of the pretrained model, in place of the one that a run names.
            batch_size: Most conversations at a time.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        with _one_line():
            if base_url is not None or api_key is not None:
                raise ValueError("base_url and api_key: a model on this machine has neither")
            self._policy = Policy(model_name, device, _packages(trust), base, batch_size)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        if tools:
            raise ValueError("this model cannot call tools")
        responded = await self._policy.respond(input, config)
        message = ChatMessageAssistant(content=responded.text, model=self.model_name, source="generate")
        reason = "stop" if responded.finished else "max_tokens"
        counts = (responded.prompt_tokens, responded.response_tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=reason)],
            usage=ModelUsage(input_tokens=counts[0], output_tokens=counts[1], total_tokens=sum(counts)),
        )

    def max_tokens(self) -> int:
        return MAX_TOKENS

    def max_connections(self) -> int:
        return self._policy.batch_size


def _groups(scores: Sequence[SampleScore]) -> list[Any]:
    """The cluster of each sample: its group, or a sample without one by itself."""
    return [(score.sample_metadata or {}).get(GROUP) or ("alone", number) for number, score in enumerate(scores)]


@metric
def stderr_by_group() -> Metric:
    """Standard error of the mean, clustered by the metadata ``group``; without it samples count as independent."""

    def compute(scores: list[SampleScore]) -> float:
        named = all((score.sample_metadata or {}).get(GROUP) for score in scores)
        return float(stderr(cluster=GROUP if named else None)(scores))

    return compute


@metric
def interval_by_group(share: bool = False) -> Metric:
    """95 % interval of the mean, clustered by the metadata ``group``: ``low`` and ``high``, NaN where one cluster cannot tell.

    Args:
        share: Whether the values are shares or probabilities in 0..1: then 0 of N has an upper bound, too.
    """

    def compute(scores: list[SampleScore]) -> dict[str, float]:
        values = [score.score.as_float() for score in scores]
        interval = (clustered_share if share else clustered_mean)(values, _groups(scores))
        return {"low": interval.low, "high": interval.high}

    return compute


def _metrics(means: Sequence[str], shares: Sequence[str]) -> dict[str, list[Metric]]:
    """Mean, clustered error and interval of every value."""
    return {name: [mean(), stderr_by_group(), interval_by_group(share=name in shares)] for name in (*means, *shares)}


def _scorer(judge: Judge, data: str | None, split: str) -> Scorer:
    """A scorer by a judge; what the judge does not know is left out of the means."""
    judged = Judged(judge, data, split)

    async def score(state: TaskState, target: Target) -> Score:
        values = await judged.values(state)
        known = {name: value for name, value in values.items() if value == value}
        words = f"{type(judge).__name__}: " + ", ".join(f"{name} {value:.3g}" for name, value in known.items())
        unknown = ", ".join(name for name in values if name not in known)
        return Score(
            value=values,
            answer=state.output.completion,
            explanation=words + (f"; unknown or not applicable: {unknown}" if unknown else ""),
        )

    return score


@scorer(metrics=_metrics(("level", "expected_level"), ("harmful",)))
def guard(
    run: str,
    data: str | None = None,
    split: str = "test",
    device: str = "auto",
    trust: Packages = (),
    base: str | None = None,
) -> Scorer:
    """Safety level -3..3 and P(harmful) of the response by a guard; what it could not check counts as harmful.

    Args:
        run: Run folder of a calibrated guard.
        data: Shard folder that the samples' records are taken from; without it the guard reads what the model read.
        split: Its split.
        device: Where it runs.
        trust: Packages of yours whose classes the run may name.
        base: Its pretrained model.
    """
    return _loaded(GuardJudge(run, device=device, trust=_packages(trust), base=base), data, split)


@scorer(metrics=_metrics(("cost",), ("harmful",)))
def cost_model(
    run: str,
    data: str | None = None,
    split: str = "test",
    device: str = "auto",
    trust: Packages = (),
    base: str | None = None,
) -> Scorer:
    """Cost of the response by a cost model, and whether it is above 0: harmful.

    Args:
        run: Run folder of a cost model, or an exported one.
        data: See :func:`guard`, like the others.
        split: The split.
        device: Where it runs.
        trust: Packages of yours.
        base: Its pretrained model.
    """
    return _loaded(CostJudge(run, device=device, trust=_packages(trust), base=base), data, split)


@scorer(metrics=_metrics(("reward",), ()))
def reward_model(
    run: str,
    data: str | None = None,
    split: str = "test",
    device: str = "auto",
    trust: Packages = (),
    base: str | None = None,
) -> Scorer:
    """Reward of the response by a reward model.

    Args:
        run: Run folder of a reward model, or an exported one.
        data: See :func:`guard`, like the others.
        split: The split.
        device: Where it runs.
        trust: Packages of yours.
        base: Its pretrained model.
    """
    return _loaded(RewardJudge(run, device=device, trust=_packages(trust), base=base), data, split)


@scorer(
    metrics=_metrics(
        ("helpfulness", "level", "harmless_helpfulness", "description"),
        ("harmful", "refused", "garbled", "over_refused"),
    )
)
def world_truth(data: str, split: str = "test") -> Scorer:
    """True scores of the response on the embedded world.

    Args:
        data: Shard folder of the world.
        split: Its split.
    """
    with _one_line():
        return _scorer(world_judge(data, split), data, split)


def _loaded(judge: Judge, data: str | None, split: str) -> Scorer:
    """The scorer of a judge whose files were looked at."""
    with _one_line():
        judge.check()
        return _scorer(judge, data, split)


@solver
def respond() -> Solver:
    """One response; each sample and epoch draws for itself, also where two conversations are equal."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.messages[-1].metadata = {**(state.messages[-1].metadata or {}), DRAW: f"{state.sample_id}/{state.epoch}"}
        return await generate(state)

    return solve


@task
def battery(
    data: str,
    split: str = "test",
    pictures: Picture = "real",
    transform: Transform = "none",
    font: str | None = None,
    guard: str | None = None,
    cost: str | None = None,
    reward: str | None = None,
    world: bool | None = None,
    device: str = "auto",
    trust: Packages = (),
) -> Task:
    """The prompts of a split, scored by a guard, a cost model, a reward model, and the embedded world's truth.

    Judges always get the record as it is stored: its real picture, and the question before the transform.

    Args:
        data: Shard folder.
        split: Its split.
        pictures: What the model sees: real, other (of another prompt), blank or none.
        transform: none, typographic (the question written into the picture) or harmless_prefix.
        font: Font file for typographic, where the built-in one lacks a sign.
        guard: Run folder of a guard.
        cost: Run folder of a cost model.
        reward: Run folder of a reward model.
        world: Whether the truth scores; without it where the data carry one.
        device: Where the judges run.
        trust: Packages of yours whose classes the judges' runs may name.
    """
    with _one_line():
        samples = [
            Sample(id=entry.key, input=entry.messages, metadata=entry.metadata)
            for entry in entries(data, split, pictures, transform, font)
        ]
        scorers = _battery_scorers(data, split, {"guard": guard, "cost": cost, "reward": reward}, world, device, trust)
    name = f"{split}, picture {pictures}, transform {transform}"
    return Task(dataset=MemoryDataset(samples, name=name), solver=respond(), scorer=scorers)


def _battery_scorers(
    data: str, split: str, runs: dict[str, str | None], world: bool | None, device: str, trust: Packages
) -> list[Scorer]:
    """The scorers that are asked for. Raises: ValueError: If there is none."""
    by_name = {"guard": guard, "cost": cost_model, "reward": reward_model}
    scorers = [by_name[name](run, data, split, device, trust) for name, run in runs.items() if run]
    if world or (world is None and has_truth(data, split)):
        scorers.append(world_truth(data, split))
    if not scorers:
        raise ValueError(f"{data}: carries no ground truth; name a guard, a cost model or a reward model as scorer")
    return scorers
