"""No metric that a module logs of a split depends on how the split was cut into batches, whatever labels are missing."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from safe_rlhf_v.models import CornLink
from safe_rlhf_v.modules import CostModule, GuardModule, PreferenceOptimisationModule, RewardModule, SupervisedModule
from safe_rlhf_v.modules.guard import GuardOutputs
from safe_rlhf_v.objectives import (
    DPO,
    BradleyTerry,
    ClassifierTerm,
    CostObjective,
    GradedTerm,
    OrdinalTerm,
    SafeDPO,
    SignTerm,
    WeightedSignTerm,
)
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, SupervisedBatch, TrueValues

N, C = 41, 3
GENERATOR = torch.Generator().manual_seed(0)


def pick(low, high, *shape):
    return torch.randint(low, high, shape, generator=GENERATOR)


def nothing(*shape, unknown, values):
    """Values of which a third are unknown, and all of the first four rows."""
    gone = torch.rand(shape, generator=GENERATOR) < 0.3
    gone[:4] = True
    return values.masked_fill(gone, unknown)


CATEGORY = pick(0, 2, N, C) * (torch.rand(N, 1, generator=GENERATOR) < 0.6)
CATEGORY[::4] = -1
VALID = torch.rand(N, generator=GENERATOR) < 0.8
PAIRS = PreferenceBatch(
    prompts=Prompts(
        tuple((torch.zeros(1, 1, 3, dtype=torch.uint8),) for _ in range(N)),
        tuple((str(i),) for i in range(N)),
        tuple(map(str, range(N))),
    ),
    responses=(("a", "b"),) * N,
    more_helpful=nothing(N, unknown=-1, values=pick(0, 2, N)),
    safer=nothing(N, unknown=-1, values=pick(0, 2, N)),
    safety_tie=pick(0, 2, N).bool(),
    safety=nothing(N, 2, unknown=UNKNOWN_LEVEL, values=pick(-3, 4, N, 2)),
    is_safe=nothing(N, 2, unknown=-1, values=pick(0, 2, N, 2)),
    category=CATEGORY.long(),
    valid=VALID,
    keys=tuple(map(str, range(N))),
    truth=TrueValues(
        helpfulness=nothing(N, 2, unknown=torch.nan, values=torch.randn(N, 2, generator=GENERATOR)),
        safety=nothing(N, 2, unknown=UNKNOWN_LEVEL, values=pick(-3, 4, N, 2)),
        rules=(("", ""),) * N,
    ),
)
OTHER = 3 * torch.randn(N, N + 1, 2, generator=GENERATOR)  # of a row with the picture of another, or a blank one
SCORES = 30 * torch.randn(N, 2, generator=GENERATOR)
TOKENS = torch.rand(N, 9, generator=GENERATOR) < 0.6
LIKELIHOODS = -torch.rand(N, 9, generator=GENERATOR)
OUTPUTS = GuardOutputs(
    torch.log_softmax(2 * torch.randn(N * 3, 7, generator=GENERATOR), -1),
    4 * torch.randn(N * 3, generator=GENERATOR),
    torch.randn(N * 3, C, generator=GENERATOR),
)
CUT = pick(0, 3, N)
TERMS = (SignTerm, GradedTerm, WeightedSignTerm, ClassifierTerm, OrdinalTerm)
MODULES = {
    "reward": partial(RewardModule, objective=partial(BradleyTerry, score_regularisation=0.3)),
    "cost": partial(CostModule, objective=partial(CostObjective, [t() for t in TERMS], 0.7, 0.01, tie_smoothing=0.2)),
    "guard": partial(GuardModule, link=CornLink, categories=("a", "b", "c")),
    "DPO": partial(PreferenceOptimisationModule, objective=partial(DPO, "safer")),
    "SafeDPO": partial(PreferenceOptimisationModule, objective=SafeDPO),
    "supervised": SupervisedModule,
}


def rows(value, chosen):
    """Some rows of a batch."""
    if isinstance(value, torch.Tensor):
        return value[chosen]
    if hasattr(value, "_fields"):
        return type(value)(*(rows(part, chosen) for part in value))
    return tuple(value[i] for i in chosen) if isinstance(value, tuple) and value else value


def logged(name, sizes):
    """Everything a module logs of a split in batches of these sizes, from outputs that are known beforehand."""
    module, seen = MODULES[name](lambda: None), {}
    if hasattr(module, "make_objective"):
        module.objective = module.make_objective()
    module.log = lambda key, value, **_: seen.update({key: float(value)})
    module.split_name = lambda *_: "test"
    batch = PAIRS
    if name == "supervised":
        batch = SupervisedBatch(PAIRS.prompts, ("a",) * N, {}, VALID, PAIRS.keys)
    module.admitted = lambda batch: (batch, Rows(int(key) for key in batch.keys))
    module.seen = lambda batch, inputs: {"truncated_responses": CUT[inputs].sum(), "equal_pairs": CUT[inputs].sum()}
    module.prepared_log_ratios = lambda inputs, _: SCORES[inputs]
    module.backbone = SimpleNamespace(prepare=lambda prompts, responses, packed: prompts)  # with other pictures
    module.score_prepared = lambda inputs, _: beside_others(inputs) if isinstance(inputs, Prompts) else SCORES[inputs]
    module.judge_prepared = lambda inputs: GuardOutputs(
        *(part.view(N, 3, -1)[inputs].flatten(0, 1).squeeze(-1) for part in OUTPUTS)
    )
    module.demonstration_inputs = lambda batch: (i := [int(k) for k in batch.keys], TOKENS[i] & batch.valid[:, None])
    module.likelihood_share = lambda inputs, mask, *_: SupervisedModule.likelihood_share(Known(inputs), None, mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safe_rlhf_v.modules.preference_optimisation.pairs_seen", lambda b, i: module.seen(b, i))
        start = 0
        for size in sizes:
            module.test_step(rows(batch, list(range(start, min(start + size, N)))), 0)
            start += size
    assert start >= N
    module.log_split("test")
    return seen


def beside_others(prompts):
    """Scores with the pictures of these prompts."""
    names = [int(ids[0]) if ids and ids[0].isdigit() else N for ids in prompts.image_ids]
    return torch.stack([OTHER[int(q), name] for q, name in zip(prompts.questions, names, strict=True)])


class Rows(list):
    """Numbers of the rows of a batch, in the place of what a backbone reads."""

    @property
    def same(self):
        return torch.zeros(len(self), dtype=torch.bool)


class Known:
    """Stands for a module whose network's log-probabilities are known."""

    def __init__(self, inputs):
        states = type("States", (), {"log_probs": LIKELIHOODS[inputs]})
        self.backbone = type("Backbone", (), {"response_states": staticmethod(lambda *_, **__: states)})
        self.move = lambda value: value


@pytest.mark.parametrize("name", MODULES)
def test_every_logged_value_is_that_of_one_batch(name):
    whole = logged(name, [N])
    assert len(whole) >= (1 if name == "supervised" else 8)
    for sizes in ([1] * N, [7] * 6, [3, 30, 8]):
        found = logged(name, sizes)
        assert found == pytest.approx(whole, rel=1e-4, abs=1e-6), sizes
