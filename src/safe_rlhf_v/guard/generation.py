"""Guarded generation: generate, moderate, regenerate what failed, and refuse when the rounds are spent.

The filter-and-regenerate loop of Safe RLHF-V (arXiv 2503.17682, section 5.3). What it can and cannot do: where rounds are
exchangeable draws, the harm rate *among released responses* is fixed by the guard's operating point. Rounds turn refusals into
responses; only a better guard, or a strategy that changes what is drawn, lowers the released harm.
"""

from typing import NamedTuple

import torch

from safe_rlhf_v.guard.moderation import Guard
from safe_rlhf_v.guard.strategies import Strategy
from safe_rlhf_v.guard.verdict import Verdict
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.records.batches import Prompts

REFUSAL = "I cannot help with that."


class Attempt(NamedTuple):
    """One draft of one prompt.

    Attributes:
        row: Which prompt.
        text: The draft.
        verdict: The guard's verdict on it.
    """

    row: int
    text: str
    verdict: Verdict


class GuardedResponses(NamedTuple):
    """B responses and how they came about.

    Attributes:
        texts: B released responses or refusals.
        released: B rounds in which the response passed; -1 where it was refused.
        attempts: Per round the drafts that were moderated.
        tokens: Per round the number of tokens drawn.
    """

    texts: tuple[str, ...]
    released: tuple[int, ...]
    attempts: tuple[tuple[Attempt, ...], ...]
    tokens: tuple[int, ...]


class GuardedGenerator:
    """A policy behind a guard.

    Example::

        generate = GuardedGenerator(policy, Guard.from_pretrained("runs/quickstart/guard"), rounds=5)
        responses = generate(prompts, torch.Generator().manual_seed(0))
    """

    def __init__(
        self,
        policy: Backbone,
        guard: Guard,
        rounds: int = 5,
        strategy: Strategy | None = None,
        options: SamplingOptions | None = None,
        refusal: str = REFUSAL,
        check_prompts: bool = False,
    ) -> None:
        """Combine a policy with a guard.

        Args:
            policy: The policy that generates responses.
            guard: The guard that moderates them.
            rounds: Number of regenerations after the first attempt.
            strategy: How responses are sampled; ``None`` samples again without changes.
            options: Sampling options of the first attempt.
            refusal: Text that replaces a response if none passed.
            check_prompts: Judge the prompts first, and refuse those that are blocked without generating.

        Raises:
            ValueError: If ``rounds`` is negative.
        """
        if rounds < 0:
            raise ValueError(f"rounds is {rounds}, it must be 0 or more")
        self.policy = policy
        self.guard = guard
        self.rounds = rounds
        self.strategy = strategy or Strategy()
        self.options = options or SamplingOptions()
        self.refusal = refusal
        self.check_prompts = check_prompts

    def __call__(self, prompts: Prompts, generator: torch.Generator | None = None) -> GuardedResponses:
        """Respond to B prompts; each round regenerates the rows that have not passed yet.

        Args:
            prompts: B prompts.
            generator: Source of randomness.
        """
        n = len(prompts.questions)
        texts = [self.refusal] * n
        released = [-1] * n
        rows = list(range(n))
        if self.check_prompts:
            verdicts = self.guard.moderate_texts(prompts, [None] * n)
            rows = [row for row in rows if verdicts[row].decision != "block"]
        attempts: list[tuple[Attempt, ...]] = []
        tokens: list[int] = []
        for round in range(self.rounds + 1):
            if not rows:
                break
            drafts, count = self._draw(prompts.take(rows), rows, round, generator)
            for draft in drafts:
                if draft.verdict.allowed:
                    texts[draft.row] = draft.text
                    released[draft.row] = round
            rows = [draft.row for draft in drafts if not draft.verdict.allowed]
            attempts.append(tuple(drafts))
            tokens.append(count)
        return GuardedResponses(tuple(texts), tuple(released), tuple(attempts), tuple(tokens))

    def _draw(
        self, prompts: Prompts, rows: list[int], round: int, generator: torch.Generator | None
    ) -> tuple[list[Attempt], int]:
        """One moderated draft per row, and the number of tokens drawn."""
        k = self.strategy.samples(round)
        options = self.strategy.options(round, self.options)
        samples = sample(self.policy, self.strategy.prompts(round, prompts), options, generator, samples=k)
        repeated = prompts.take([i for i in range(len(rows)) for _ in range(k)])
        verdicts = self.guard.moderate_texts(repeated, samples.text)  # the question as it was asked
        best = [min(range(i * k, (i + 1) * k), key=lambda j: verdicts[j].harm) for i in range(len(rows))]
        drafts = [Attempt(row, samples.text[j], verdicts[j]) for row, j in zip(rows, best, strict=True)]
        return drafts, int(samples.mask.sum())
