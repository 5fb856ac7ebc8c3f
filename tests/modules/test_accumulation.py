"""An accumulation window is one big batch: gradients, losses and logs, whatever the micro-batches, the ranks and the labels."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from safe_rlhf_v.data_modules import (
    PreferenceDataModule,
    PTXPreferenceDataModule,
    SupervisedDataModule,
)
from safe_rlhf_v.functional.shares import masked_share
from safe_rlhf_v.models import ClipDecoder, CornLink, EvidenceHead
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import (
    CostModule,
    GuardModule,
    PreferenceOptimisationModule,
    RewardModule,
    SupervisedModule,
    VisionModule,
)
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
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, VoteShares
from safe_rlhf_v.world import WORLD

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROWS, WINDOW, PADDING = 11, 8, 3  # the second window is a tail of three rows; row 3 counts nowhere
ATTRIBUTES = {"object": 16, "colour": 6}
HEAD = partial(EvidenceHead, fusion=8)
TERMS = (SignTerm, GradedTerm, WeightedSignTerm, ClassifierTerm, OrdinalTerm)


def still(groups):
    """Weights that stay: every window's gradient is that of the start."""
    return torch.optim.SGD(groups, lr=0.0)


def cost_objective():
    terms = [term(weight=0.3 + 0.2 * i) for i, term in enumerate(TERMS)]
    return CostObjective(terms, 0.7, 0.01, tie_smoothing=0.2, votes=True)


@pytest.fixture(scope="module")
def backbone(world):
    def make():
        torch.manual_seed(0)
        # No batch norm: it sees micro-batches by its nature.
        tower = TowerSettings(vision_cfg={"layers": 2, "width": 16, "head_width": 8, "image_size": 32, "patch_size": 8})
        return ClipDecoder(str(world / "tokenizer"), tower, DECODER, SlotSettings(2, 16))

    return make


MODULES = {
    "supervised": (SupervisedModule, "demonstrations"),
    "reward": (partial(RewardModule, objective=partial(BradleyTerry, score_regularisation=0.3), head=HEAD), "pairs"),
    "cost": (partial(CostModule, objective=cost_objective, head=HEAD), "pairs"),
    "guard": (partial(GuardModule, link=CornLink, head=HEAD, categories=WORLD.categories, votes=True), "pairs"),
    "vision": (partial(VisionModule, attributes=ATTRIBUTES), "demonstrations"),
    "DPO": (partial(PreferenceOptimisationModule, objective=partial(DPO, "safer", votes=True)), "pairs"),
    "SafeDPO": (partial(PreferenceOptimisationModule, objective=SafeDPO, ptx_weight=0.5), "ptx"),
}


@pytest.fixture(scope="module")
def rows(world):
    """Eleven rows of each kind of batch with uneven lengths, padding, a micro-batch without labels, single known labels."""
    options = {"batch_size": ROWS}
    loaders = {
        "demonstrations": SupervisedDataModule(str(world), train_split="supervised", **options),
        "pairs": PreferenceDataModule(str(world), **options),
        "ptx": PTXPreferenceDataModule(str(world), demonstrations="supervised", **options),
    }
    return {name: spoilt(next(iter(data.train_dataloader()))) for name, data in loaders.items()}


def spoilt(batch):
    valid = batch.valid.clone()
    valid[[3, 10]] = False
    if not hasattr(batch, "safer"):
        short = tuple(
            text[: text.find(" ")] if row % 3 else f"{text} {text}" for row, text in enumerate(batch.responses)
        )
        attributes = {name: values.clone() for name, values in batch.attributes.items()}
        attributes["colour"][[0, 4, 5]] = -1
        # A count belongs to a whole batch: pieces of one cannot share it out.
        return batch._replace(valid=valid, responses=short, attributes=attributes, without_demonstration=0)
    labels = {name: getattr(batch, name).clone() for name in ("more_helpful", "safer", "safety", "is_safe", "category")}
    for name, values in labels.items():
        values[4:6] = UNKNOWN_LEVEL if name == "safety" else -1
    labels["more_helpful"][[0, 8]] = -1
    labels["safer"][[1, 2, 9]] = -1
    labels["safety"][7, 0], labels["is_safe"][[6, 7], 1] = UNKNOWN_LEVEL, -1
    ptx = None if batch.demonstrations is None else spoilt(batch.demonstrations)
    draws = torch.Generator().manual_seed(0)
    levels = torch.rand(ROWS, 2, 7, generator=draws).softmax(-1)
    votes = VoteShares(*torch.rand(2, ROWS, generator=draws), torch.rand(ROWS, 2, generator=draws), levels)
    for shares in votes:
        shares[::2] = torch.nan  # some rows have votes, two of them no labels
    return batch._replace(valid=valid, demonstrations=ptx, votes=votes, **labels)


def cut(value, rows):
    """Some rows of a batch."""
    if isinstance(value, torch.Tensor):
        return value[rows]
    if isinstance(value, dict):
        return {name: part[rows] for name, part in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*(cut(part, rows) for part in value))
    return tuple(value[row] for row in rows) if isinstance(value, tuple) and value else value


class MicroBatches(pl.LightningDataModule):
    """Windows of eight rows and a tail of three, in pieces, of which each rank gets its share; the last is padded."""

    def __init__(self, batch, size, ranks=1):
        super().__init__()
        self.batch, self.size, self.ranks = batch, size, ranks

    def train_dataloader(self):
        rank = self.trainer.global_rank
        starts = range(rank * self.size, ROWS + rank * self.size, self.size * self.ranks)
        pieces = [[row if row < ROWS else PADDING for row in range(i, i + self.size)] for i in starts]
        return torch.utils.data.DataLoader([cut(self.batch, rows) for rows in pieces], batch_size=None, collate_fn=same)


def same(batch):
    return batch


class Watch(pl.Callback):
    """Keeps every window's gradients and what it logged."""

    def __init__(self, file=None):
        self.gradients, self.logged, self.file = [], [], file

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(self.logged) < len(self.gradients):
            assert outputs["loss"].item() == pytest.approx(trainer.callback_metrics["train/loss"].item(), abs=1e-5)
            self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer, module):
        if self.file:
            torch.save((self.gradients, self.logged), self.file)


QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def build(kind, backbone, optimizer=still):
    torch.manual_seed(0)
    make, _ = MODULES[kind]
    module = make(backbone, optimizer=optimizer)
    module.configure_model()
    for name, parameter in module.named_parameters():
        if not name.startswith("backbone.") and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)  # heads start at 0, where half of the gradients are 0
    return module


def learn(module, data, accumulate, **options):
    watch = Watch()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[watch], **QUIET, **options
    )
    trainer.fit(module, data)
    assert trainer.global_step == len(watch.gradients)
    return watch.gradients, watch.logged


def assert_same(found, expected, tolerance=1e-6):
    """Gradients to a part in a million of the window's largest."""
    assert len(found[0]) == len(found[1]) == len(expected[0])
    for window, (one, other) in enumerate(zip(found[0], expected[0], strict=True)):
        assert one.keys() == other.keys()
        largest = max(float(gradient.abs().max()) for gradient in other.values())
        for name, gradient in other.items():
            assert float((one[name] - gradient).abs().max()) <= tolerance * largest, (window, name)
    for one, other in zip(found[1], expected[1], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", MODULES)
def test_windows_equal_one_big_batch(kind, backbone, rows):
    batch = rows[MODULES[kind][1]]
    big = learn(build(kind, backbone), MicroBatches(batch, WINDOW), 1)
    assert len(big[0]) == 2 and all(any(g.abs().max() > 1e-4 for g in window.values()) for window in big[0])
    for accumulate in (2, 4, 8):
        found = learn(build(kind, backbone), MicroBatches(batch, WINDOW // accumulate), accumulate)
        assert_same(found, big)


@pytest.mark.parametrize("kind", ["supervised", "cost", "SafeDPO"])
def test_two_ranks_equal_one_process(kind, backbone, rows, tmp_path):
    """Four rows a rank and window; in the tail one rank has nothing that counts."""
    batch = rows[MODULES[kind][1]]
    expected = learn(build(kind, backbone), MicroBatches(batch, WINDOW), 1)
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=1, accumulate_grad_batches=2, **QUIET,
        callbacks=[Watch(tmp_path / "0.pt")], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(build(kind, backbone), MicroBatches(batch, 2, ranks=2))
    assert_same(torch.load(tmp_path / "0.pt"), expected)


def test_a_token_weighs_the_same_in_short_and_long_answers(backbone, rows):
    batch = rows["demonstrations"]._replace(valid=torch.ones(ROWS, dtype=torch.bool))
    module = build("supervised", backbone)
    (gradients, *_), (logged, *_) = learn(module, MicroBatches(batch, 1), 8)
    module.zero_grad()
    tokens, total = 0, torch.zeros(())
    for row in range(WINDOW):
        one = cut(batch, [row])
        states = module.backbone.response_states(module.backbone.prepare(one.prompts, [one.responses]), log_probs=True)
        tokens, total = tokens + int(states.mask.sum()), total - states.log_probs.sum()
    lengths = [len(module.backbone.response_ids(text)) for text in batch.responses[:WINDOW]]
    assert sum(lengths) == tokens and min(lengths) == 2 and max(lengths) > 20
    (total / tokens).backward()
    assert logged["train/loss"] == pytest.approx(total.item() / tokens, rel=1e-5)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_only_kept_pair_weighs_what_it_weighs_alone(backbone, rows):
    keep = torch.tensor([[0, 0]] * 2 + [[1, 0]] + [[0, 0]] * (ROWS - 3))  # two unsafe responses: SafeDPO drops the pair
    batch = rows["ptx"]._replace(is_safe=keep, demonstrations=None)
    make = partial(PreferenceOptimisationModule, backbone, SafeDPO, optimizer=still)
    (gradients, tail), (logged, nothing) = learn(make(), MicroBatches(batch, 2), 4)
    (alone, *_), _ = learn(make(), MicroBatches(cut(batch, [2] * ROWS), 1), 1)
    for name, gradient in alone.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-7)
        assert not tail[name].any()
    assert logged["train/kept"] == pytest.approx(1 / 7) and nothing["train/kept"] == nothing["train/loss"] == 0


def test_a_term_of_ones_own_counts_like_the_others(backbone, rows):
    class Own(RewardModule):
        """Pulls the labelled first responses towards 1: fewer rows than the pairs."""

        def loss_shares(self, scores, batch):
            pull = masked_share((scores[:, 0] - 1).square(), batch.valid & (batch.safer == 0), 0.5)
            return {**super().loss_shares(scores, batch), "pull": pull}

    make = partial(Own, backbone, BradleyTerry, optimizer=still)
    big = learn(make(), MicroBatches(rows["pairs"], WINDOW), 1)
    assert_same(learn(make(), MicroBatches(rows["pairs"], 2), 4), big)
    logged = big[1][0]
    expected = logged["train/pair"] + 1e-3 * logged["train/regularisation"] + 0.5 * logged["train/pull"]
    assert logged["train/loss"] == pytest.approx(expected) and logged["train/pull"] > 0


def test_a_step_of_ones_own_may_add_to_the_loss(backbone, rows):
    class Own(RewardModule):
        """Adds its mean over micro-batches, as Lightning does with any loss."""

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 3.0 * (batch_idx + 1) * self.head.linear.weight.sum()

    make = partial(Own, backbone, BradleyTerry, optimizer=still)
    (plain, *_), _ = learn(RewardModule(backbone, BradleyTerry, optimizer=still), MicroBatches(rows["pairs"], 4), 2)
    watch = Watch()
    watch.on_train_batch_end = lambda *_: None
    pl.Trainer(accelerator="cpu", max_steps=1, accumulate_grad_batches=2, callbacks=[watch], **QUIET).fit(
        make(), MicroBatches(rows["pairs"], 4)
    )
    added = watch.gradients[0]["head.linear.weight"] - plain["head.linear.weight"]
    torch.testing.assert_close(added, torch.full_like(added, 3.0 * 1.5), rtol=1e-5, atol=1e-5)


def test_mixed_precision_and_clipping(backbone, rows):
    """Half precision differs from batch to batch in its own digits only, and what is clipped is the window's gradient."""
    found = []
    for size in (8, 2):
        module = build("reward", backbone, lambda groups: torch.optim.SGD(groups, lr=1.0))
        before = {name: value.clone() for name, value in module.named_parameters()}
        trainer = pl.Trainer(
            accelerator="cpu", precision="bf16-mixed", gradient_clip_val=0.5, max_steps=1, **QUIET,
            accumulate_grad_batches=WINDOW // size,
        )  # fmt: skip
        trainer.fit(module, MicroBatches(rows["pairs"], size))
        moved = [(value - before[name]).flatten() for name, value in module.named_parameters()]
        found.append(torch.cat(moved).detach())
        assert float(found[-1].norm()) == pytest.approx(0.5, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.99


def test_resumed_at_a_border_it_ends_with_the_same_bits(backbone, world, tmp_path):
    def train(steps, resume=None):
        torch.manual_seed(3)
        module = SupervisedModule(backbone, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2))
        data = SupervisedDataModule(
            str(world), train_split="supervised", batch_size=6
        )  # ten batches: windows of 3, 3, 3, 1
        keep = ModelCheckpoint(tmp_path, "{step}", monitor="step", mode="max", save_top_k=-1, every_n_train_steps=1)
        options = {**QUIET, "enable_checkpointing": True, "callbacks": [keep]}
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, accumulate_grad_batches=3, limit_val_batches=0, **options
        )
        trainer.fit(module, data, ckpt_path=resume)
        return module.state_dict()

    whole = train(6)
    for stop in (1, 4):  # in the epoch, and after its tail
        resumed = train(6, tmp_path / f"step={stop}.ckpt")
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), stop


EVALUATED = {name: make for name, (make, _) in MODULES.items() if name != "vision"}


@pytest.mark.parametrize("kind", EVALUATED)
def test_evaluation_does_not_depend_on_the_batch_size(kind, backbone, world):
    found = []
    for size in (1, 5, 12):
        data = SupervisedDataModule if kind == "supervised" else PreferenceDataModule
        trainer = pl.Trainer(accelerator="cpu", **QUIET)
        (metrics,) = trainer.test(
            build(kind, backbone), data(str(world), batch_size=2, eval_batch_size=size), verbose=False
        )
        found.append(metrics)
    assert found[0].keys() == found[1].keys() == found[2].keys()
    for other in found[1:]:
        assert found[0] == pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True)
