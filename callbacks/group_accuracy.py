"""Accuracy by harm category, and by the rule that decides the true level."""

from collections import Counter

from lightning.pytorch import Trainer
from torch import Tensor

from safe_rlhf_v.callbacks.evaluation import EvaluationCallback, agreement
from safe_rlhf_v.callbacks.figures import accuracy_figure
from safe_rlhf_v.callbacks.pictures import Pictures
from safe_rlhf_v.callbacks.split_report import category_names
from safe_rlhf_v.records.batches import PreferenceBatch, category_groups


class CategoryAccuracy(EvaluationCallback):
    """Share of rows judged as annotated, per harm category: pairs by their order, single responses by the cost's sign.

    Shows each share with its 95 % Wilson interval and count. Tag: ``4_accuracy_by_category/{split}``.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.CategoryAccuracy
    """

    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[tuple[int, bool]]:
        """(category index, right) of every row that has the labels and each of its categories, -1 none; not of unknown ones."""
        right, decided = agreement(scores, batch, self.kind, truth=False)
        rows = zip(category_groups(batch.category), right.tolist(), decided.tolist(), strict=True)
        return [(index, ok) for groups, ok, counted in rows if counted for index in groups]

    def report(self, pictures: Pictures, split: str, notes: list[tuple[int, bool]], trainer: Trainer) -> None:
        """One figure."""
        names = category_names(trainer)
        named = [(names[index], right) for index, right in notes]
        pixels = accuracy_figure(f"{split}: {self.kind} accuracy by category", _counts(named))
        pictures.image(f"4_accuracy_by_category/{split}", pixels)


class RuleAccuracy(EvaluationCallback):
    """Share of rows judged as is true, per rule that decides the true level; for data that know the truth.

    On counterfactual splits a model that ignores the picture has one half. A row counts for each rule that decides one
    of its responses. Splits without truth give no figure. Tag: ``5_accuracy_by_rule/{split}``.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.RuleAccuracy
    """

    def observe(self, scores: Tensor, batch: PreferenceBatch, noted: int) -> list[tuple[str, bool]]:
        """(rule, right) of every row that has the labels and each of its rules."""
        right, decided = agreement(scores, batch, self.kind, truth=True)
        rows = zip(batch.rules, right.tolist(), decided.tolist(), strict=True)
        return [(rule, ok) for rules, ok, counted in rows if counted for rule in sorted({*rules} - {""})]

    def report(self, pictures: Pictures, split: str, notes: list[tuple[str, bool]], trainer: Trainer) -> None:
        """One figure."""
        pixels = accuracy_figure(f"{split}: true {self.kind} accuracy by rule", _counts(notes))
        pictures.image(f"5_accuracy_by_rule/{split}", pixels)


def _counts(notes: list[tuple[str, bool]]) -> dict[str, tuple[int, int]]:
    """(right, all) by name."""
    total = Counter(name for name, _ in notes)
    right = Counter(name for name, ok in notes if ok)
    return {name: (right[name], n) for name, n in total.items()}
