"""Models of ours as sources of responses and as judges: policies, reward and cost models, and guards, by their run folders."""

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from safe_rlhf_v.construct.responses import Responded, Responder
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.scoring.judge import Asked, Axis, Judge, Opinion


def prompts_of(records: Sequence[Record]) -> Prompts:
    """Decoded prompts."""
    from safe_rlhf_v.data_modules.collate import prompts
    from safe_rlhf_v.data_modules.source import Sample
    from safe_rlhf_v.shards.images import decode

    return prompts([Sample(record, tuple(decode(image.data) for image in record.images)) for record in records])


class PolicyResponder(Responder):
    """A policy of ours.

    YAML::

        class_path: safe_rlhf_v.construct.PolicyResponder
        init_args: {run: runs/quickstart/ppo_lag, temperature: 1.0}
    """

    def __init__(
        self,
        run: str,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        device: str = "cpu",
        trust: Sequence[str] = (),
        base: str | None = None,
        families: Sequence[str] = (),
    ) -> None:
        """Name the run; it is loaded with the first prompt.

        Args:
            run: Run folder of any stage that trains a policy.
            temperature: Temperature of the sampling; 0 takes the likeliest token.
            max_new_tokens: Most tokens of a response.
            device: Where it runs: cpu, cuda or cuda:N.
            trust: Packages of yours whose classes the run may name, beside this library's.
            base: Folder or hub name of the pretrained model, in place of the one that the run names.
            families: Families of models it descends from, as qwen.
        """
        self.run = run
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.device = device
        self.trust = tuple(trust)
        self.base = base
        self.families = tuple(families)
        self._policy: Any = None

    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        from safe_rlhf_v.models.sampling import SamplingOptions, sample
        from safe_rlhf_v.policy.rollout import generator
        from safe_rlhf_v.training.runs import load_backbone

        if self._policy is None:
            self._policy = load_backbone(self.run, trust=self.trust, base=self.base).to(self.device)
        pictures = "\0".join(f"{record.key}/{'+'.join(image.id for image in record.images)}" for record in records)
        words = hashlib.sha256(pictures.encode()).digest()[:8]
        options = SamplingOptions(self.max_new_tokens, self.temperature)
        generation = sample(self._policy, prompts_of(records), options, generator(seed, draw, *words))
        return [Responded(text) for text in generation.text]


class _ScoringJudge(Judge):
    """Compares two responses by the score of a reward or cost model; it has no scale for one response."""

    rates = False
    kind: ClassVar[str]
    axis: ClassVar[Axis]
    sign: ClassVar[float]

    def __init__(
        self,
        run: str,
        tie: float = 1e-3,
        device: str = "cpu",
        trust: Sequence[str] = (),
        base: str | None = None,
        families: Sequence[str] = (),
    ) -> None:
        """Name the run; it is loaded with the first question.

        Args:
            run: Run folder.
            tie: Two responses whose scores differ by no more than this are a tie; rounding alone makes small differences.
            device: Where it runs: cpu, cuda or cuda:N.
            trust: Packages of yours whose classes the run may name, beside this library's.
            base: Folder or hub name of the pretrained model, in place of the one that the run names.
            families: Families of models it descends from, as qwen.
        """
        self.run = run
        self.tie = tie
        self.device = device
        self.trust = tuple(trust)
        self.base = base
        self.families = tuple(families)
        self._model: Any = None

    def score(self, record: Record, text: str) -> dict[str, float]:
        return {self.kind: self._scores([record], [(text,)])[0][0]}

    def ask(self, questions: Sequence[Asked]) -> list[Opinion]:
        own = [question for question in questions if question.axis == self.axis and len(question.texts) == 2]
        scores = iter(self._scores([question.record for question in own], [question.texts for question in own]))
        return [
            self._compared(*next(scores))
            if question.axis == self.axis and len(question.texts) == 2
            else Opinion(None, fault="unknown")
            for question in questions
        ]

    def _compared(self, first: float, second: float) -> Opinion:
        difference = self.sign * (first - second)
        return Opinion(float((difference > self.tie) - (difference < -self.tie)))

    def _scores(self, records: Sequence[Record], texts: Sequence[tuple[str, ...]]) -> list[list[float]]:
        """One score of each text; K texts of each record."""
        if not records:
            return []
        import torch

        from safe_rlhf_v.training.runs import load_run

        if self._model is None:
            self._model = load_run(self.run, f"{self.kind} model", (self.kind,), trust=self.trust, base=self.base)
            self._model.to(self.device)
        with torch.no_grad():
            scores: list[list[float]] = self._model.score(prompts_of(records), texts).tolist()
        return scores


class RewardJudge(_ScoringJudge):
    """A reward model of ours, which compares helpfulness.

    YAML::

        class_path: safe_rlhf_v.construct.RewardJudge
        init_args: {run: runs/quickstart/reward, tie: 0.2}
    """

    axes = ("helpfulness",)
    kind = "reward"
    axis = "helpfulness"
    sign = 1.0


class CostJudge(_ScoringJudge):
    """A cost model of ours, which compares safety.

    YAML::

        class_path: safe_rlhf_v.construct.CostJudge
        init_args: {run: runs/quickstart/cost, tie: 0.2}
    """

    axes = ("safety",)
    kind = "cost"
    axis = "safety"
    sign = -1.0


class GuardJudge(Judge):
    """A guard of ours, which rates safety by its most probable level and compares by its mean level.

    YAML::

        class_path: safe_rlhf_v.construct.GuardJudge
        init_args: {run: runs/quickstart/guard}
    """

    axes = ("safety",)

    def __init__(
        self,
        run: str,
        tie: float = 0.5,
        device: str = "cpu",
        trust: Sequence[str] = (),
        base: str | None = None,
        families: Sequence[str] = (),
    ) -> None:
        """Name the run; it is loaded with the first question.

        Args:
            run: Run folder of a calibrated guard.
            tie: Two responses whose mean levels differ by no more than this are a tie.
            device: Where it runs: cpu, cuda or cuda:N.
            trust: Packages of yours whose classes the run may name, beside this library's.
            base: Folder or hub name of the pretrained model, in place of the one that the run names.
            families: Families of models it descends from, as qwen.
        """
        self.run = run
        self.tie = tie
        self.device = device
        self.trust = tuple(trust)
        self.base = base
        self.families = tuple(families)
        self._guard: Any = None

    def score(self, record: Record, text: str) -> dict[str, float]:
        verdict = self._verdicts([(record, text)])[0]
        level = float("nan") if verdict.level is None else float(verdict.level)
        return {"level": level, "harmful": verdict.harm}

    def ask(self, questions: Sequence[Asked]) -> list[Opinion]:
        asked = [question if question.axis == "safety" else question._replace(texts=()) for question in questions]
        verdicts = iter(self._verdicts([(question.record, text) for question in asked for text in question.texts]))
        return [self._opinion([next(verdicts) for _ in question.texts]) for question in asked]

    def _opinion(self, verdicts: Sequence[Any]) -> Opinion:
        if not verdicts or any(verdict.expected_level is None for verdict in verdicts):
            return Opinion(None, "; ".join(reason for verdict in verdicts for reason in verdict.reasons), "unknown")
        if len(verdicts) == 1:
            return Opinion(float(verdicts[0].level))
        difference = verdicts[0].expected_level - verdicts[1].expected_level
        return Opinion(float((difference > self.tie) - (difference < -self.tie)))

    def _verdicts(self, inputs: Sequence[tuple[Record, str]]) -> list[Any]:
        from safe_rlhf_v.guard import Guard, Input

        if self._guard is None:
            self._guard = Guard.from_pretrained(self.run, self.device, trust=self.trust, base=self.base)
        entries = [
            Input([image.data for image in record.images] or None, record.question, text) for record, text in inputs
        ]
        verdicts: list[Any] = self._guard.moderate_batch(entries)
        return verdicts
