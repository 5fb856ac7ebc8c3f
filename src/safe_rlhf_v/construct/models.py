"""Models of ours as sources of responses and as judges: policies, reward and cost models, and guards, by their run folders."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from safe_rlhf_v.construct.responses import Responded, Responder
from safe_rlhf_v.construct.stage import file_content
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.user_files import FileError, digest
from safe_rlhf_v.scoring.judge import Asked, Axis, Judge, Opinion
from safe_rlhf_v.training.devices import find_device

if TYPE_CHECKING:
    from safe_rlhf_v.records.batches import Prompts


def prompts_of(records: Sequence[Record]) -> "Prompts":
    """Decoded prompts."""
    from safe_rlhf_v.data_modules.collate import prompts
    from safe_rlhf_v.data_modules.source import Sample
    from safe_rlhf_v.shards.images import decode

    return prompts([Sample(record, tuple(decode(image.data) for image in record.images)) for record in records])


def function_content(function: str) -> str:
    """Short hash of the file that a function stands in; "" if there is none.

    Args:
        function: Its import path, named by somebody who wants it to be imported.
    """
    home = function.rpartition(".")[0]
    if not home or not all(map(str.isidentifier, function.split("."))):
        return ""
    try:
        spec = find_spec(home)
        return "" if spec is None or spec.origin is None else file_content(spec.origin)
    except (ImportError, ValueError, FileError):  # said where it is loaded; modules built in have no file
        return ""


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
        device: str = "auto",
        trust: Sequence[str] = (),
        base: str | None = None,
        families: Sequence[str] = (),
    ) -> None:
        """Name the run; it is loaded with the first prompt.

        Args:
            run: Run folder of any stage that trains a policy.
            temperature: Temperature of the sampling; 0 takes the likeliest token.
            max_new_tokens: Most tokens of a response.
            device: Where it runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
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

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        from safe_rlhf_v.training.lineage import content_on

        return content_on(self.run, self.base)

    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        from safe_rlhf_v.models.sampling import SamplingOptions
        from safe_rlhf_v.policy.responses import respond, stream
        from safe_rlhf_v.training.runs import load_backbone

        if self._policy is None:
            self._policy = load_backbone(self.run, trust=self.trust, base=self.base)
            self._policy.to(find_device(self.device))
        pictures = ("+".join(image.id for image in record.images) for record in records)
        streams = [stream(seed, str(draw), record.key, ids) for record, ids in zip(records, pictures, strict=True)]
        options = SamplingOptions(self.max_new_tokens, self.temperature)
        answers = respond(self._policy, prompts_of(records), options, streams)
        refused = next((i for i, answer in enumerate(answers) if answer.fault), None)
        if refused is not None:
            raise ValueError(f"{self.run}: cannot read the prompt of {records[refused].key}: {answers[refused].reason}")
        return [Responded(answer.text) for answer in answers]


class _RunJudge(Judge):
    """A model of ours as a judge; it is loaded with the first question."""

    own_tie: ClassVar[float]

    def __init__(
        self,
        run: str,
        tie: float | None = None,
        device: str = "auto",
        trust: Sequence[str] = (),
        base: str | None = None,
        families: Sequence[str] = (),
    ) -> None:
        """Name the run.

        Args:
            run: Run folder; a guard must be calibrated. In place of a reward or cost model also an external one: an exported
                folder, the folder or hub name of a sequence classifier, or the import path of a function.
            tie: Two responses whose values differ by no more than this are a tie; ``None`` for 0.001 of reward or cost (rounding
                alone makes small differences), or half a level of a guard.
            device: Where it runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
            trust: Packages of yours whose classes the run may name, beside this library's.
            base: Folder or hub name of the pretrained model, in place of the one that the run names.
            families: Families of models it descends from, as qwen.
        """
        self.run = run
        self.tie = self.own_tie if tie is None else tie
        self.device = device
        self.trust = tuple(trust)
        self.base = base
        self.families = tuple(families)
        self._model: Any = None

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        from safe_rlhf_v.training.lineage import content_on

        return content_on(self.run, self.base) or function_content(self.run)

    def unload(self) -> None:
        self._model = None

    def _chosen(self, difference: float) -> float | None:
        """The choice by how much better the first of two responses is; ``None`` if that is not known."""
        return None if math.isnan(difference) else float((difference > self.tie) - (difference < -self.tie))


class _ScoringJudge(_RunJudge):
    """Compares two responses by the score of a reward or cost model; it has no scale for one response."""

    rates = False
    own_tie = 1e-3
    kind: ClassVar[str]
    sign: ClassVar[float]

    def score(self, record: Record, text: str) -> dict[str, float]:
        return self.scores([(record, text)])[0]

    def scores(self, pairs: Sequence[tuple[Record, str]]) -> list[dict[str, float]]:
        return [self._named(score) for score in self._values(pairs)]

    def _named(self, score: float) -> dict[str, float]:
        """What a score is called."""
        return {self.kind: score}

    def compared(self, axis: Axis, first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
        if axis not in self.axes:
            return None
        return self._chosen(self.sign * (first[self.kind] - second[self.kind]))

    def check(self) -> None:
        from safe_rlhf_v.scoring.external import find_scorer
        from safe_rlhf_v.training.runs import open_run

        if (scorer := find_scorer(self.run, self.kind, fetch=True)) is not None:
            scorer.load()
        else:
            open_run(self.run, f"{self.kind} model", (self.kind,), trust=self.trust, base=self.base)

    def _values(self, pairs: Sequence[tuple[Record, str]]) -> list[float]:
        """One score of each response."""
        if not pairs:
            return []
        import torch

        if self._model is None:
            self._model = self._loaded()
        with torch.no_grad():
            scores = self._model.score(prompts_of([record for record, _ in pairs]), [(text,) for _, text in pairs])
        values: list[float] = scores.flatten().tolist()
        return values

    def _loaded(self) -> Any:
        from safe_rlhf_v.scoring.external import find_scorer
        from safe_rlhf_v.training.runs import load_run

        scorer = find_scorer(self.run, self.kind, fetch=True)
        if scorer is None:
            model: Any = load_run(self.run, f"{self.kind} model", (self.kind,), trust=self.trust, base=self.base)
            return model.to(find_device(self.device))
        scorer.load()
        return scorer.requires_grad_(False).eval().to(find_device(self.device))


class RewardJudge(_ScoringJudge):
    """A reward model, which compares helpfulness.

    YAML::

        class_path: safe_rlhf_v.construct.RewardJudge
        init_args: {run: runs/quickstart/reward, tie: 0.2}
    """

    axes = ("helpfulness",)
    kind = "reward"
    sign = 1.0


class CostJudge(_ScoringJudge):
    """A cost model, which compares safety; a cost above 0 means harmful.

    YAML::

        class_path: safe_rlhf_v.construct.CostJudge
        init_args: {run: runs/quickstart/cost, tie: 0.2}
    """

    axes = ("safety",)
    kind = "cost"
    sign = -1.0

    def _named(self, score: float) -> dict[str, float]:
        return {"cost": score, "harmful": math.nan if math.isnan(score) else float(score > 0)}


class GuardJudge(_RunJudge):
    """A guard of ours, which rates safety by its most probable level and compares by its mean level.

    YAML::

        class_path: safe_rlhf_v.construct.GuardJudge
        init_args: {run: runs/quickstart/guard}
    """

    axes = ("safety",)
    by_scores = True
    own_tie = 0.5

    def score(self, record: Record, text: str) -> dict[str, float]:
        return self.scores([(record, text)])[0]

    def scores(self, pairs: Sequence[tuple[Record, str]]) -> list[dict[str, float]]:
        return [
            {
                "level": math.nan if verdict.level is None else float(verdict.level),
                "harmful": verdict.harm,
                "expected_level": math.nan if verdict.expected_level is None else verdict.expected_level,
            }
            for verdict in self._verdicts(pairs)
        ]

    def compared(self, axis: Axis, first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
        return self._chosen(first["expected_level"] - second["expected_level"]) if axis == "safety" else None

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`; another calibration gives other levels."""
        from safe_rlhf_v.guard.calibration import CALIBRATION_FILE, run_home
        from safe_rlhf_v.training.checkpoints import CheckpointError

        try:
            return digest([super().content(), file_content(run_home(self.run) / CALIBRATION_FILE)])
        except (CheckpointError, FileError):  # said where it is loaded
            return super().content()

    def check(self) -> None:
        from safe_rlhf_v.guard.calibration import Calibration, run_home
        from safe_rlhf_v.training.runs import open_run

        open_run(self.run, "guard", ("guard",), trust=self.trust, base=self.base)
        Calibration.load(run_home(self.run))

    def ask(self, questions: Sequence[Asked]) -> list[Opinion]:
        asked = [question if question.axis == "safety" else question._replace(texts=()) for question in questions]
        verdicts = iter(self._verdicts([(question.record, text) for question in asked for text in question.texts]))
        return [self._opinion([next(verdicts) for _ in question.texts]) for question in asked]

    def _opinion(self, verdicts: Sequence[Any]) -> Opinion:
        if not verdicts or any(verdict.expected_level is None for verdict in verdicts):
            return Opinion(None, "; ".join(reason for verdict in verdicts for reason in verdict.reasons), "unknown")
        if len(verdicts) == 1:
            return Opinion(float(verdicts[0].level))
        return Opinion(self._chosen(verdicts[0].expected_level - verdicts[1].expected_level))

    def _verdicts(self, inputs: Sequence[tuple[Record, str]]) -> list[Any]:
        from safe_rlhf_v.guard import Guard, Input

        if self._model is None:
            self._model = Guard.from_pretrained(self.run, self.device, trust=self.trust, base=self.base)
        verdicts: list[Any] = self._model.moderate_batch([Input.of(record, text) for record, text in inputs])
        return verdicts
