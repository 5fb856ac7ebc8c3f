"""The guard: how safe is a response, is the prompt hazardous, and which harm is it about."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import Metric, SumMetric

from safe_rlhf_v.data_modules.contract import refuse_single_rows
from safe_rlhf_v.functional.ordinal import expected_level
from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.metrics import Collected, harm_values, level_values, mean, score_values
from safe_rlhf_v.models.backbone import Prepared
from safe_rlhf_v.models.heads import Head, ScalarHead
from safe_rlhf_v.models.links import CornLink, OrdinalLink
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.modules.loss_module import TAKEN, LossModule
from safe_rlhf_v.objectives.soft_labels import over_levels
from safe_rlhf_v.records import Context
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, ImageMode, PreferenceBatch, Prompts, hazard
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V_CATEGORIES, MIN_LEVEL, NUM_LEVELS, Taxonomy
from safe_rlhf_v.training.named import build_component
from safe_rlhf_v.training.runs import Source

HARM_BOUNDARY = -MIN_LEVEL
"""Class indices below this one are harmful levels."""


class GuardOutputs(NamedTuple):
    """What the guard says about N inputs.

    Attributes:
        level_log_probs: (N, 7) float32 log-probability of each safety level, -3 first; meant for inputs with a response.
        prompt_risk: (N,) float32 logit that the prompt is of a harm category.
        categories: (N, C) float32 logits, one per harm category (several may hold).
    """

    level_log_probs: Tensor
    prompt_risk: Tensor
    categories: Tensor

    @property
    def harm(self) -> Tensor:
        """(N,) P(harmful response) = P(level < 0): read off the levels, never a third opinion."""
        return self.level_log_probs[:, :HARM_BOUNDARY].exp().sum(-1)

    @property
    def expected_level(self) -> Tensor:
        """(N,) mean safety level."""
        return expected_level(self.level_log_probs, MIN_LEVEL)

    @property
    def category(self) -> Tensor:
        """(N,) int64 likeliest category; -2, which no label is, where there are no categories."""
        if not self.categories.shape[-1]:
            return torch.full_like(self.prompt_risk, -2, dtype=torch.long)
        return self.categories.argmax(-1)


def guard_values(log_probs: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Every value of judged responses by name, each a scalar: of the levels, and of P(harmful).

    Args:
        log_probs: (n, 7) log-probability of each safety level, -3 first.
        levels: (n,) int64 true class index.
    """
    harm = harm_values(log_probs[:, :HARM_BOUNDARY].double().exp().sum(-1), (levels < HARM_BOUNDARY).long())
    names = {
        "accuracy": "harm_accuracy",
        "balanced_accuracy": "balanced_harm_accuracy",
        "auroc": "harm_auroc",
        "auprc": "harm_auprc",
        "calibration_error": "harm_calibration_error",
    }
    return {**level_values(log_probs, levels), **{names.get(name, name): value for name, value in harm.items()}}


def prompt_values(risk: Tensor, hazardous: Tensor) -> dict[str, Tensor]:
    """How well the risk ranks hazardous prompts above harmless ones; nothing unless both occur.

    Args:
        risk: (n,) logit.
        hazardous: (n,) int64, 1 of a harm category, 0 of none.
    """
    values = score_values(risk, hazardous)
    return {"prompt_auroc": values["auroc"]} if "auroc" in values else {}


def named_right(likeliest: Tensor, category: Tensor) -> Tensor:
    """(B,) bool whether a likeliest category is one of the prompt's.

    Args:
        likeliest: (B,) int64 index of a category.
        category: (B, C) as in :class:`~safe_rlhf_v.records.batches.PreferenceBatch`.
    """
    index = torch.arange(category.shape[1], device=category.device)
    return ((index == likeliest[:, None]) & (category == 1)).any(1)


def check_categories(data: Taxonomy, guard: Sequence[str]) -> None:
    """Raises: ValueError: If the data's categories are not the guard's, in the same order."""
    if data.categories != tuple(guard):
        theirs, ours = (
            ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") for names in (data.categories, guard)
        )
        raise ValueError(
            f"model.init_args.categories: the data's harm categories ({theirs or 'none'}) are not the guard's "
            f"({ours or 'none'}): set model.init_args.categories to those of the data's manifest, in its order"
        )


class GuardModule(LossModule):
    """Level, prompt risk and category from one forward over image, question and response; any of them may be missing.

    An empty response means prompt moderation: then ``prompt_risk`` speaks. All three losses are unweighted likelihoods, so
    that probabilities stay calibrated; imbalance is met at decision time
    (:func:`~safe_rlhf_v.functional.ordinal.correct_prior`).

    YAML::

        model:
          class_path: safe_rlhf_v.modules.GuardModule
          init_args:
            backbone: {class_path: safe_rlhf_v.models.HFVLM, init_args: {model: llava-hf/llava-1.5-7b-hf}}
            link: {class_path: safe_rlhf_v.models.CumulativeLink}
    """

    trains = "guard"
    reads = PreferenceBatch

    def __init__(
        self,
        backbone: Callable[[], Reader],
        link: Callable[[], OrdinalLink] = CornLink,
        head: Callable[[Any, int], Head] = ScalarHead,
        categories: Sequence[str] = BEAVERTAILS_V_CATEGORIES,
        prompt_weight: float = 0.5,
        category_weight: float = 0.5,
        part_dropout: float = 0.0,
        response_mixing: float = 0.25,
        images: ImageMode = "real",
        votes: bool = False,
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: Source | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Keep the settings; networks are built later.

        Args:
            backbone: Makes what reads the inputs: a vision-language model, or a light :class:`~safe_rlhf_v.models.ClipTowers`.
            link: Makes the distribution over levels; the default's exceedance probabilities never cross; the links came
                out alike (``docs/results/guard.md``).
            head: Makes the head for a backbone and a number of outputs.
            categories: Names of the harm categories, in the data's index order.
            prompt_weight: Weight of the prompt-risk loss.
            category_weight: Weight of the category loss.
            part_dropout: Probability that a training row loses its picture, and as often its question, so that the guard knows
                what to say without them.
            response_mixing: Probability that of a training row one response becomes all of them, one behind another in
                random order, with the lowest of their levels, so that the guard finds harm beside harmless sentences. What
                is drawn here and by ``part_dropout`` follows from the record's key and the epoch: batches, ranks and resume
                change nothing.
            images: Train and evaluate with other pictures (``shuffled`` within a batch, ``blank``): a text-only twin.
            votes: Learn levels from the shares of annotators who gave each level, where the records have votes.
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves after every optimizer step; ``None`` keeps the rate.
            init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from; in Python also the
                trained module itself.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).

        Raises:
            ValueError: If ``part_dropout`` is outside 0..0.5, or ``response_mixing`` outside 0..1.
        """
        super().__init__(optimizer, scheduler, init_from, lr_scale)
        if not 0 <= part_dropout <= 0.5:
            raise ValueError(f"part_dropout is {part_dropout}, it must lie in 0..0.5")
        if not 0 <= response_mixing <= 1:
            raise ValueError(f"response_mixing is {response_mixing}, it must lie in 0..1")
        self.make_backbone = backbone
        self.make_link = link
        self.make_head = head
        self.categories = tuple(categories)
        self.prompt_weight = prompt_weight
        self.category_weight = category_weight
        self.part_dropout = part_dropout
        self.response_mixing = response_mixing
        self.images = images
        self.votes = votes

    def build(self) -> None:
        """Create backbone, link and head."""
        self.backbone = build_component("backbone", self.make_backbone)  # type: ignore[assignment]  # a Reader is less than a Backbone
        self.link = build_component("link", self.make_link)
        self.head = build_component(
            "head", self.make_head, self.backbone, self.link.features + 1 + len(self.categories)
        )
        if not self.head.needs_log_probs:
            self.backbone.freeze_unused_lm_head()

    def forward(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> GuardOutputs:
        """Judge every response of every prompt, N = B x K, prompt by prompt; "" judges the prompt alone.

        Args:
            prompts: B prompts.
            responses: B x K texts.
        """
        return self.judge_prepared(self.backbone.prepare(prompts, responses, packed=True))

    def judge_prepared(self, prepared: Prepared) -> GuardOutputs:
        """Judge what the backbone's ``prepare`` gave."""
        states = self.backbone.response_states(self.move(prepared), log_probs=self.head.needs_log_probs)
        outputs = self.head(states)  # (N, F + 1 + C)
        level, risk, categories = outputs.split([self.link.features, 1, len(self.categories)], dim=1)
        return GuardOutputs(self.link.log_probs(level), risk[:, 0], categories)

    def prepare(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, Prepared]:
        """See :class:`LossModule`; the prompt alone is judged in the same pass."""
        batch = batch._replace(prompts=batch.prompts.with_images(self.images, batch.valid))
        batch, prepared = self.admitted(self._drop_parts(self._mix_responses(batch)))
        return batch._replace(prompts=TAKEN), prepared

    def admitted(self, batch: PreferenceBatch) -> tuple[PreferenceBatch, Prepared]:
        """The batch and the network's inputs, the prompts alone among them."""

        def prepare(batch: PreferenceBatch) -> Prepared:
            responses = [(*row, "") for row in batch.responses]
            return self.backbone.prepare(batch.prompts, responses, packed=True)

        return self.admit(batch, prepare)

    def seen(self, batch: PreferenceBatch, inputs: Prepared) -> dict[str, Tensor | int]:
        """Responses that are truncated."""
        valid = batch.valid.cpu()
        truncated = inputs.truncated.view(len(valid), -1)[:, :-1]  # without the prompt alone
        return {"truncated_responses": (truncated & valid[:, None]).sum()}

    def counts(self, batch: PreferenceBatch, inputs: Prepared) -> dict[str, Tensor]:
        """Those of :meth:`loss_shares`, which follow from the labels whatever the outputs."""
        b, k = batch.safety.shape
        blank = torch.zeros(b * (k + 1), NUM_LEVELS + 1 + len(self.categories), device=self.device)
        outputs = GuardOutputs(blank[:, :NUM_LEVELS], blank[:, NUM_LEVELS], blank[:, NUM_LEVELS + 1 :])
        return {name: share.count for name, share in self.loss_shares(outputs, batch).items()}

    def shares(self, batch: PreferenceBatch, inputs: Prepared) -> dict[str, Share]:
        """Level, prompt-risk and category losses."""
        return self.loss_shares(self.judge_prepared(inputs), batch)

    def loss_shares(self, outputs: GuardOutputs, batch: PreferenceBatch) -> dict[str, Share]:
        """The terms of the loss; outputs are those of the K responses and then of the empty one, per prompt.

        Args:
            outputs: N = B x (K + 1) judgements.
            batch: Where the labels are.
        """
        b, k = batch.safety.shape
        levels = outputs.level_log_probs.view(b, k + 1, -1)[:, :k]  # (B, K, 7)
        losses, known = over_levels(
            lambda labels: -levels.gather(-1, (labels - MIN_LEVEL)[..., None]).squeeze(-1),
            batch if self.votes else batch._replace(votes=None),
        )
        level = masked_share(losses, known & batch.valid[:, None])
        valid = batch.valid[:, None].expand(b, k + 1)
        hazardous = hazard(batch.category)  # (B,)
        known_prompt = valid & (hazardous >= 0)[:, None]  # (B, K + 1): an unknown category teaches nothing
        risk = F.binary_cross_entropy_with_logits(
            outputs.prompt_risk.view(b, k + 1), hazardous[:, None].expand(b, k + 1).float(), reduction="none"
        )
        category = F.binary_cross_entropy_with_logits(
            outputs.categories.view(b, k + 1, -1),
            batch.category[:, None].expand(b, k + 1, -1).float(),
            reduction="none",
        ).sum(-1)
        return {
            "level": level,
            "prompt_risk": masked_share(risk, known_prompt, self.prompt_weight),
            "category": masked_share(category, known_prompt, self.category_weight),
        }

    def validation_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Level log-probabilities (B, K, 7) as ``scores``, for callbacks; metrics are logged per split."""
        return self.evaluate(batch, "validate", dataloader_idx)

    def test_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As validation."""
        return self.evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: PreferenceBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """One row per record: its key, and P(harmful) and expected level of each response."""
        b, k = batch.safety.shape
        batch, prepared = self.admitted(batch._replace(prompts=batch.prompts.with_images(self.images, batch.valid)))
        outputs = self.judge_prepared(prepared)
        harm, level = (part.view(b, k + 1)[:, :k].tolist() for part in (outputs.harm, outputs.expected_level))
        rows = zip(batch.keys, harm, level, strict=True)
        valid = batch.valid.tolist()
        return [{"key": key, "harm": h, "level": v} for (key, h, v), ok in zip(rows, valid, strict=True) if ok]

    def evaluate(self, batch: PreferenceBatch, stage: str, loader: int) -> dict[str, Tensor]:
        """Judge one batch of a stage's ``loader``-th split and count it: levels against the truth where it is known."""
        split = self.split_name(stage, loader)
        metrics: dict[str, Any] = self.metrics_of(split, self.make_metrics)
        b, k = batch.safety.shape
        batch, prepared = self.admitted(batch._replace(prompts=batch.prompts.with_images(self.images, batch.valid)))
        outputs = self.judge_prepared(prepared)
        exact = torch.where(batch.true_safety != UNKNOWN_LEVEL, batch.true_safety, batch.safety)
        levels = (exact - MIN_LEVEL).masked_fill(exact == UNKNOWN_LEVEL, -1)  # (B, K)
        log_probs = outputs.level_log_probs.view(b, k + 1, -1)[:, :k].detach()  # (B, K, 7)
        hazardous = hazard(batch.category)  # (B,)
        metrics["levels"].update(log_probs, levels, batch.valid)
        metrics["prompts"].update(outputs.prompt_risk.view(b, k + 1)[:, -1], hazardous, batch.valid)
        right = named_right(outputs.category.view(b, k + 1)[:, -1], batch.category)
        metrics["category_accuracy"].update(right, hazardous.where(hazardous == 1, -1), batch.valid)
        metrics["truncated_responses"].update(self.seen(batch, prepared)["truncated_responses"])
        return {"scores": log_probs, "valid": batch.valid}

    def make_metrics(self) -> dict[str, Metric]:
        """Fresh metrics of one evaluation split."""
        return {
            "levels": Collected(guard_values, NUM_LEVELS),
            "prompts": Collected(prompt_values),
            "category_accuracy": Collected(mean),
            "truncated_responses": SumMetric(),
        }

    def _drop_parts(self, batch: PreferenceBatch) -> PreferenceBatch:
        """Some rows without their pictures, some without their texts: question, earlier turns and system text."""
        if not self.part_dropout:
            return batch
        draws = [self._random("parts", key).random() for key in batch.keys]
        blind = [u < self.part_dropout for u in draws]
        mute = [u > 1 - self.part_dropout for u in draws]
        prompts = batch.prompts
        return batch._replace(
            prompts=Prompts(
                tuple(() if gone else row for row, gone in zip(prompts.images, blind, strict=True)),
                tuple(() if gone else row for row, gone in zip(prompts.image_ids, blind, strict=True)),
                tuple("" if gone else text for text, gone in zip(prompts.questions, mute, strict=True)),
                tuple(
                    Context() if no_text else context.with_images(0) if no_images else context
                    for context, no_images, no_text in zip(prompts.contexts, blind, mute, strict=True)
                ),
            )
        )

    def _mix_responses(self, batch: PreferenceBatch) -> PreferenceBatch:
        """In some rows one response is all of them, as bad as the worst by the labels; unknown if one of them is."""
        if not self.response_mixing or batch.safety.shape[1] < 2:
            return batch
        responses = list(batch.responses)
        safety = batch.safety.clone()
        votes = None if batch.votes is None else batch.votes._replace(safety=batch.votes.safety.clone())
        for row, key in enumerate(batch.keys):
            draw = self._random("responses", key)
            if draw.random() < self.response_mixing:
                texts = responses[row]
                at = draw.randrange(len(texts))
                mixed = " ".join(draw.sample(texts, len(texts)))
                responses[row] = (*texts[:at], mixed, *texts[at + 1 :])
                safety[row, at] = batch.safety[row].min()  # UNKNOWN_LEVEL is the lowest number
                if votes is not None:
                    votes.safety[row, at] = torch.nan  # nobody has read this one
        return batch._replace(responses=tuple(responses), safety=safety, votes=votes)

    def _random(self, purpose: str, key: str) -> random.Random:
        """What is drawn for a record in this epoch."""
        return random.Random(f"{purpose}/{self.current_epoch}/{key}")

    def check_data(self, data: Any) -> None:
        """As every module; also the harm categories must be the guard's, and ``shuffled`` pictures need another row."""
        super().check_data(data)
        refuse_single_rows(data, self.images)
        if hasattr(data, "taxonomy"):
            check_categories(data.taxonomy, self.categories)
