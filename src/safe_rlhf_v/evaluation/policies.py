"""Policies as components: whatever gives responses to prompts can be evaluated."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from safe_rlhf_v.policy.answers import Answer as Answer
from safe_rlhf_v.records import Record
from safe_rlhf_v.scoring.judge import Judge
from safe_rlhf_v.scoring.loadable import Loadable
from safe_rlhf_v.training.devices import find_device

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.models.sampling import SamplingOptions

STREAM = "evaluation"
"""Names the random streams of evaluations: training draws others."""


class Policy(Loadable, ABC):
    """Gives responses to prompts. A policy of your own is a subclass in a package of yours, named by its class path.

    Example::

        class Refuses(Policy):  # the baseline that is never harmful
            samples = False

            def respond(self, records, sampling, seed, reference=None):
                return [Answer("I can not help with that.") for _ in records]
    """

    families: Collection[str] = ()
    """Families of models it descends from, as ``qwen``; a judge that shares one is not independent of it."""
    series: str | None = None
    """Policies of one series are joined by a line in the report: checkpoints of one run, or one method with several budgets."""
    step: int | None = None
    """Training step, of a checkpoint in a series."""
    samples: ClassVar[bool] = True
    """Whether it responds to what it is shown, by sampling; else its texts are fixed, without modes and other pictures."""
    greedy: ClassVar[bool] = True
    """Whether it has a greedy form; selection among samples has none."""
    knows_entropy: ClassVar[bool] = False
    """Whether it tells the entropy of what it samples from, so that its start can be sampled at the temperature that matches."""

    @property
    def about(self) -> str:
        """What it is, in a few words."""
        return type(self).__name__

    @abstractmethod
    def respond(
        self, records: Sequence[Record], sampling: "SamplingOptions", seed: int, reference: "Policy | None" = None
    ) -> list[Answer]:
        """One response to each prompt; the same seed gives the same responses.

        Args:
            records: Prompts with their image bytes.
            sampling: How responses are drawn.
            seed: Of the sampling.
            reference: From which the divergence is measured, where it can be.
        """


class ModelPolicy(Policy):
    """A policy that was trained here, or any model that generates: every prompt has a random stream of its own.

    YAML::

        policies:
          ppo_lag: {class_path: safe_rlhf_v.evaluation.ModelPolicy, init_args: {run: runs/quickstart/ppo_lag}}
    """

    knows_entropy = True

    def __init__(
        self,
        run: str,
        base: str | None = None,
        seed: int = 0,
        families: Sequence[str] = (),
        device: str = "auto",
        trust: Sequence[str] = (),
        series: str | None = None,
        step: int | None = None,
    ) -> None:
        """Name the run; it is loaded with the first prompt.

        Args:
            run: Run folder of any stage that trains a policy, or the folder or hub name of a model: exported, of Hugging Face, or
                an adapter of peft.
            base: Folder or hub name of the pretrained model, in place of the one that the run or the adapter names.
            seed: Added to the seed of the evaluation: two entries of one run with different seeds are independent samples.
            families: Families of models it descends from, as qwen, beside those that the names of its bases tell.
            device: Where it runs: auto (as the evaluation says), cpu, cuda or cuda:N.
            trust: Packages of yours whose classes the run may name, beside this library's; see docs/security.md.
            series: Name of a series; its policies are joined by a line in the report.
            step: Training step, where the policies of a series are checkpoints of one run.
        """
        self.run = run
        self.base = base
        self.seed = seed
        self.families = tuple(families)
        self.device = device
        self.trust = tuple(trust)
        self.series = series
        self.step = step
        self._network: Any = None

    @property
    def about(self) -> str:
        """See :class:`Policy`."""
        return self.run

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        from safe_rlhf_v.training.lineage import content_on

        return content_on(self.run, self.base)

    def check(self) -> None:
        """A run is read; a model's folder has to be loaded, as nothing else tells whether it can be."""
        from safe_rlhf_v.training.models import is_model
        from safe_rlhf_v.training.runs import open_run

        find_device(self.device)
        if is_model(self.run):
            self.network()
        else:
            open_run(self.run, "policy", ("policy",), trust=self.trust, base=self.base, parts=("backbone",))

    def network(self) -> Any:
        """The network, loaded if it is not."""
        from safe_rlhf_v.training.runs import load_backbone

        if self._network is None:
            network = load_backbone(self.run, trust=self.trust, base=self.base)
            self._network = network.to(find_device(self.device))
        return self._network

    def unload(self) -> None:
        self._network = None

    def respond(
        self, records: Sequence[Record], sampling: "SamplingOptions", seed: int, reference: Policy | None = None
    ) -> list[Answer]:
        from safe_rlhf_v.construct.models import prompts_of
        from safe_rlhf_v.policy.responses import comparable, respond, stream

        network = self.network()
        other = None if reference is self or not isinstance(reference, ModelPolicy) else reference.network()
        if other is not None and not comparable(network, other):
            other = None
        streams = [stream(seed + self.seed, STREAM, record.key) for record in records]
        answers = respond(network, prompts_of(records), sampling, streams, other)
        if reference is not self:
            return answers
        return [one if one.fault else one._replace(values={**one.values, "kl": 0.0}) for one in answers]


class BestOf(Policy):
    """The best of several responses of a policy: the one with the largest R - lam C by the given judges.

    It stands for what can be had without training; the divergence of the selection from its policy is at most
    log K - (K - 1) / K (Beirami et al., arXiv 2401.01879), given as ``kl_bound``. Its ``reward`` and ``cost`` by these judges are
    given, too: with them the best samples can be imitated (``shards demonstrate``). There is no greedy form: equal draws leave no
    choice.

    YAML::

        policies:
          best_of_8:
            class_path: safe_rlhf_v.evaluation.BestOf
            init_args:
              policy: {class_path: safe_rlhf_v.evaluation.ModelPolicy, init_args: {run: runs/quickstart/supervised}}
              reward: {class_path: safe_rlhf_v.construct.RewardJudge, init_args: {run: runs/quickstart/reward}}
              cost: {class_path: safe_rlhf_v.construct.CostJudge, init_args: {run: runs/quickstart/cost}}
              draws: 8
    """

    greedy = False

    def __init__(
        self,
        policy: Policy,
        reward: Judge | None = None,
        cost: Judge | None = None,
        lam: float = 1.0,
        draws: int = 8,
        most_cost: float | None = None,
    ) -> None:
        """Choose the policy and who chooses.

        Args:
            policy: Whose responses are drawn.
            reward: Judge whose score ``reward`` is R; without it R is 0.
            cost: Judge whose score ``cost`` is C; without it C is 0.
            lam: Weight of the cost.
            draws: K, responses to each prompt; at temperature 0 they are all the same, and one is drawn.
            most_cost: Largest C of a response that is chosen; where every response has a larger one, that with the least C is.

        Raises:
            ValueError: If nobody chooses, or nothing is drawn.
        """
        if reward is None and cost is None:
            raise ValueError("reward, cost: name at least one judge, by which the best response is chosen")
        if draws < 1:
            raise ValueError(f"draws is {draws}; it must be at least 1")
        if most_cost is not None and cost is None:
            raise ValueError(f"most_cost is {most_cost:g}, but no judge gives a cost; name one")
        self.policy = policy
        self.reward = reward
        self.cost = cost
        self.lam = lam
        self.draws = draws
        self.most_cost = most_cost
        self.families = sorted({family for part in self._parts for family in part.families})

    @property
    def _parts(self) -> list[Policy | Judge]:
        return [part for part in (self.policy, self.reward, self.cost) if part is not None]

    @property
    def about(self) -> str:
        """See :class:`Policy`."""
        limit = "" if self.most_cost is None else f", C at most {self.most_cost:g}"
        return f"best of {self.draws} of {self.policy.about}, by R - {self.lam:g} C{limit}"

    def check(self) -> None:
        for part in self._parts:
            part.check()

    def unload(self) -> None:
        for part in self._parts:
            part.unload()

    def respond(
        self, records: Sequence[Record], sampling: "SamplingOptions", seed: int, reference: Policy | None = None
    ) -> list[Answer]:
        count = self.draws if sampling.temperature > 0 else 1
        # Seeds far apart, so that no draw is that of the policy alone under a neighbouring seed.
        drawn_answers = [self.policy.respond(records, sampling, seed + 1_000_003 * draw) for draw in range(count)]
        scores = [self._scores(records, answers) for answers in drawn_answers]
        chosen: list[Answer] = []
        for row in range(len(records)):
            best = max(range(count), key=lambda draw: self._rank(scores[draw][row]))
            answer = drawn_answers[best][row]
            score = scores[best][row]
            if not score:  # no draw has a response that can be scored
                chosen.append(answer if answer.fault else Answer("", "failed", {}, "no response could be scored"))
                continue
            values = {name: value for name, value in answer.values.items() if name in ("length", "unfinished")}
            bound = math.log(count) - (count - 1) / count
            chosen.append(answer._replace(values={**values, **score, "kl_bound": bound}))
        return chosen

    def _scores(self, records: Sequence[Record], answers: Sequence[Answer]) -> list[dict[str, float]]:
        """What the judges say of each response, by name; {} where there is none, or a judge does not know."""
        pairs = [(record, one.text) for record, one in zip(records, answers, strict=True) if not one.fault]
        known: list[dict[str, float]] = [{} for _ in pairs]
        for name, judge in (("reward", self.reward), ("cost", self.cost)):
            for values, scores in zip(known, judge.scores(pairs) if judge else (), strict=judge is not None):
                values[name] = scores[name]
        rest = iter(values if not any(map(math.isnan, values.values())) else {} for values in known)
        return [{} if one.fault else next(rest) for one in answers]

    def _rank(self, scores: Mapping[str, float]) -> tuple[int, float]:
        """What is chosen first: responses within ``most_cost`` by R - lam C, then the others by their cost, then the unscored."""
        if not scores:
            return -1, 0.0
        cost = scores.get("cost", 0.0)
        if self.most_cost is not None and cost > self.most_cost:
            return 0, -cost
        return 1, scores.get("reward", 0.0) - self.lam * cost


def runs_of(components: Iterable[Policy | Judge | None]) -> Iterator[str]:
    """Runs and models that these components, and those within them, are made of.

    Args:
        components: Policies and judges; ``None`` is left out.
    """
    for component in components:
        if component is not None:
            run = getattr(component, "run", None)
            yield from [run] if isinstance(run, str) else []
            yield from runs_of(parts_of(component))


def parts_of(component: Policy | Judge) -> list[Policy | Judge]:
    """Policies and judges within one, as those of :class:`BestOf`."""
    return [one for one in vars(component).values() if isinstance(one, (Policy, Judge))]
