"""The cost model's objective: order two responses by harm, and place the boundary of harm at 0."""

from torch import Tensor, nn

from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.functional.soft_labels import has_votes
from safe_rlhf_v.objectives.base import PreferenceObjective, check_range, checked_scores
from safe_rlhf_v.objectives.bradley_terry import BradleyTerry
from safe_rlhf_v.objectives.pointwise import PointwiseTerm
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch


class CostObjective(PreferenceObjective):
    r"""The less safe response gets the higher cost (pair term), harmful ones a cost above 0 (pointwise terms).

    Safe RLHF (arXiv 2310.12773) is one :class:`SignTerm` of weight 1, the released Safe RLHF-V (arXiv 2503.17682) one
    :class:`GradedTerm` of weight 1. Several terms add up.

    Parts: ``pair``, ``regularisation`` and each term's ``name``.

    YAML::

        objective:
          class_path: safe_rlhf_v.objectives.CostObjective
          init_args:
            pair_weight: 1.0
            tie_smoothing: 0.5
            terms:
              - class_path: safe_rlhf_v.objectives.SignTerm
                init_args: {weight: 0.5}
              - class_path: safe_rlhf_v.objectives.OrdinalTerm
                init_args: {weight: 0.5}
    """

    def __init__(
        self,
        terms: list[PointwiseTerm],
        pair_weight: float = 1.0,
        score_regularisation: float = 1e-3,
        tie_smoothing: float = 0.0,
        votes: bool = False,
    ) -> None:
        """Choose the options.

        Args:
            terms: Pointwise terms; each kind at most once.
            pair_weight: Weight of the pair term; 0 gives a plain classifier, which also takes single responses.
            score_regularisation: Weight of the mean squared cost of the labelled rows.
            tie_smoothing: Label smoothing in [0, 0.5] of pairs with equal safety ratings; 0.5 removes their information.
            votes: Learn from the shares of annotators who gave each label, where the records have votes: the pair term and all
                pointwise terms.

        Raises:
            ValueError: If an option is outside its range, two terms have the same name, or nothing has a weight.
        """
        super().__init__()
        names = [term.name for term in terms]
        if len({*names, "loss", "pair", "regularisation"}) < len(names) + 3:
            raise ValueError(f"terms are named {names}: each name once, and none of loss, pair, regularisation")
        if not pair_weight and not any(term.weight for term in terms):
            raise ValueError("pair_weight is 0 and no term has a weight: there is nothing to learn from")
        self.terms = nn.ModuleList(terms)
        self.pair_weight = check_range("pair_weight", pair_weight, 0.0)
        self.score_regularisation = check_range("score_regularisation", score_regularisation, 0.0)
        self.pair = BradleyTerry(tie_smoothing=tie_smoothing, preference="safer", votes=votes)
        self.votes = votes

    def shares(self, scores: Tensor, batch: PreferenceBatch) -> dict[str, Share]:
        """Costs (B, K), higher = more harmful; K = 2 unless ``pair_weight`` is 0. See :class:`PreferenceObjective`."""
        if not self.votes:
            batch = batch._replace(votes=None)
        squares = checked_scores(scores, batch).square().mean(1)  # (B,)
        shares = {"regularisation": masked_share(squares, _labelled(batch), self.score_regularisation)}
        if self.pair_weight:
            shares["pair"] = self.pair.pair_share(-scores, batch, self.pair_weight)  # safety is minus cost
        for term in self.terms:
            assert isinstance(term, PointwiseTerm)
            shares[term.name] = term(scores, batch)
        return shares


def _labelled(batch: PreferenceBatch) -> Tensor:
    """(B,) bool: the row counts and has at least one safety label, or vote."""
    labelled = ((batch.is_safe >= 0) | (batch.safety != UNKNOWN_LEVEL)).any(1) | (batch.safer >= 0)
    if (votes := batch.votes) is not None:
        labelled |= (has_votes(votes.safety) | ~votes.is_safe.isnan()).any(1) | ~votes.safer.isnan()
    return batch.valid & labelled
