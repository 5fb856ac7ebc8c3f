"""A record that decodes but that the model cannot take: named, or masked everywhere; cut responses are counted."""

import logging
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tests.shards.conftest import picture

from safe_rlhf_v.callbacks.evaluation import agreement
from safe_rlhf_v.callbacks.split_report import SplitReport
from safe_rlhf_v.data_modules import PreferenceDataModule, PTXPreferenceDataModule, SupervisedDataModule
from safe_rlhf_v.functional.shares import loss_of
from safe_rlhf_v.models import HFVLM, ClipDecoder, ScalarHead
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import (
    CostModule,
    GuardModule,
    PreferenceOptimisationModule,
    RewardModule,
    SupervisedModule,
)
from safe_rlhf_v.modules.admission import MOST_IN_A_ROW, Admission
from safe_rlhf_v.objectives import DPO, BradleyTerry, CostObjective, SafeDPO, SignTerm
from safe_rlhf_v.policy.rollout import draw, generator
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, without_rows
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardedSplit, ShardError, ShardWriter, probe
from safe_rlhf_v.world import WORLD

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONG = "is it safe to touch this knife ? " * 40


@pytest.fixture(scope="module")
def make(world):
    def backbone(max_length=None):
        torch.manual_seed(0)
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        return ClipDecoder(str(world / "tokenizer"), tower, DECODER, SlotSettings(3, 16), max_length=max_length)

    return backbone


MODULES = {
    "supervised": (SupervisedModule, SupervisedDataModule, {}),
    "reward": (partial(RewardModule, objective=BradleyTerry), PreferenceDataModule, {}),
    "cost": (partial(CostModule, objective=partial(CostObjective, [SignTerm()])), PreferenceDataModule, {}),
    "guard": (partial(GuardModule, categories=WORLD.categories), PreferenceDataModule, {}),
    "DPO": (partial(PreferenceOptimisationModule, objective=partial(DPO, "safer")), PreferenceDataModule, {}),
    "SafeDPO": (
        partial(PreferenceOptimisationModule, objective=SafeDPO, ptx_weight=0.5),
        PTXPreferenceDataModule,
        {"demonstrations": "supervised"},
    ),
}  # fmt: skip


def build(name, make, world, max_length, skip=False):
    """A module of a kind, and a batch of six for it."""
    kind, data, options = MODULES[name]
    torch.manual_seed(1)
    module = kind(partial(make, max_length))
    module.configure_model()
    with torch.no_grad():  # an offline policy that is still its own reference has the same loss on everything
        for parameter in module.backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = next(iter(data(str(world), batch_size=6, **options).train_dataloader()))
    if skip:
        module.admit = lambda b, prepare: module.admission.admit(b, prepare, "skip-and-count")
    return module, batch


def asked(batch, row, question):
    """The batch with another question in one row."""
    questions = tuple(question if i == row else text for i, text in enumerate(batch.prompts.questions))
    return batch._replace(prompts=batch.prompts._replace(questions=questions))


def loss(module, batch):
    torch.manual_seed(2)
    value = loss_of(module.shares(*module.prepare(batch)))
    module.zero_grad()
    value.backward()
    return value, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("question", [LONG, "half of \ud83d a smile"])
@pytest.mark.parametrize("name", MODULES)
def test_a_prompt_the_model_cannot_take_is_named_or_masked(name, question, make, world, caplog):
    module, batch = build(name, make, world, 60)
    bad, key = asked(batch, 2, question), batch.keys[2]
    with pytest.raises(
        ShardError, match=rf"world/train-000000\.tar: record '{key}': the model cannot take it: .*skip-and-count"
    ):
        module.prepare(bad)
    module, batch = build(name, make, world, 60, skip=True)
    with caplog.at_level(logging.WARNING):
        found, gradients = loss(module, bad)
    assert module.admission.refused == 1 and f"record '{key}'" in caplog.text
    expected, wanted = loss(module, without_rows(batch, {2}))
    assert torch.equal(found, expected) and not torch.equal(found, loss(module, batch)[0])
    assert gradients.keys() == wanted.keys() and all(torch.equal(gradients[n], wanted[n]) for n in wanted)


def test_a_demonstration_the_model_cannot_take_is_left_out_of_ptx(make, world):
    module, batch = build("SafeDPO", make, world, 60, skip=True)
    row = int(batch.demonstrations.valid.nonzero()[0])
    bad = batch._replace(demonstrations=asked(batch.demonstrations, row, LONG))
    good = batch._replace(demonstrations=without_rows(batch.demonstrations, {row}))
    assert torch.equal(loss(module, bad)[0], loss(module, good)[0])


def test_a_batch_of_nothing_else_still_has_a_gradient(make, world):
    module, batch = build("reward", make, world, 60, skip=True)
    for row in range(6):
        batch = asked(batch, row, LONG)
    value, gradients = loss(module, batch)
    assert value == 0 and gradients and not any(g.any() for g in gradients.values())


def test_too_many_in_a_row_stop():
    from safe_rlhf_v.models.reader import RefusedRows

    admission = Admission()
    prompts = SimpleNamespace(questions=("",) * 10)

    def refuse(batch):
        if batch.valid.any():
            raise RefusedRows(dict.fromkeys(range(10), "too long"))
        return prompts

    from safe_rlhf_v.records.batches import Prompts, SupervisedBatch

    batch = SupervisedBatch(
        Prompts(((),) * 10, ((),) * 10, ("q",) * 10), ("",) * 10, {}, torch.ones(10, dtype=torch.bool), ("k",) * 10
    )
    for _ in range(MOST_IN_A_ROW // 10 - 1):
        admission.admit(batch, refuse, "skip-and-count")
    with pytest.raises(ShardError, match="100 records in a row are refused, the last: record 'k'"):
        admission.admit(batch, refuse, "skip-and-count")


def rows(count, bad, valid=None):
    """A batch, and a model that refuses some of its rows."""
    from safe_rlhf_v.models.reader import RefusedRows
    from safe_rlhf_v.records.batches import Prompts, SupervisedBatch

    valid = torch.ones(count, dtype=torch.bool) if valid is None else valid
    prompts = Prompts(((),) * count, ((),) * count, ("q",) * count)

    def prepare(batch):
        if refused := {row: "too long" for row in bad if batch.valid[row]}:
            raise RefusedRows(refused)
        return True

    return SupervisedBatch(prompts, ("",) * count, {}, valid, ("k",) * count), prepare, "skip-and-count"


def test_only_refused_rows_behind_each_other_are_in_a_row():
    admission = Admission()
    admission.admit(*rows(256, range(0, 256, 2)))  # 128 of them, each between two good ones
    admission.admit(*rows(100, range(99)))
    assert admission.refused == 128 + 99
    admission.admit(*rows(90, range(30, 90)))  # the last 60 are carried on
    admission.admit(*rows(10, (), torch.zeros(10, dtype=torch.bool)))  # padding stands between no records
    with pytest.raises(ShardError, match="103 records in a row"):
        admission.admit(*rows(60, range(43)))
    admission = Admission()
    admission.admit(*rows(90, range(30, 90)))
    admission.admit(*rows(60, range(1, 44)))  # one good row in front of them
    admission.admit(*rows(60, ()))
    admission.admit(*rows(60, range(60)))
    with pytest.raises(ShardError, match="150 records in a row"):
        admission.admit(*rows(200, [*range(5), *range(10, 160)]))


# --- what is cut ------------------------------------------------------------------------------------------------------


def cut_batch(module, batch):
    """Pairs 0 and 1 become equal, of pair 2 both and of pair 3 one response are cut; 4 is masked; 5 stays."""
    head = " ".join(["keep away from it now please"] * 12)
    pairs = [(f"{head} a", f"{head} b"), (f"{head} knife", f"{head} dog"), (f"a {head}", f"knife {head}")]
    pairs += [("a knife", f"a {head}"), (f"{head} a", f"{head} b"), ("a knife", "a dog")]
    valid = torch.tensor([True, True, True, True, False, True])
    labels = {
        "more_helpful": torch.zeros(6, dtype=torch.long), "safer": torch.ones(6, dtype=torch.long),
        "safety_tie": torch.zeros(6, dtype=torch.bool), "is_safe": torch.tensor([[0, 1]] * 6), "valid": valid,
        "safety": torch.tensor([[-1, 2]] * 6),
    }  # fmt: skip
    return batch._replace(responses=tuple(pairs), **labels)


@pytest.mark.parametrize("name", ["reward", "cost", "DPO", "SafeDPO"])
def test_pairs_that_became_equal_have_no_order_and_are_counted(name, make, world):
    module, batch = build(name, make, world, 60)
    batch = cut_batch(module, batch)
    used, inputs = module.prepare(batch)
    seen = {key: int(value) for key, value in module.seen(used, inputs).items()}
    assert (seen["truncated_responses"], seen["equal_pairs"]) == (7, 2)
    assert used.more_helpful.tolist()[:4] == [-1, -1, 0, 0] and used.safer.tolist()[:4] == [-1, -1, 1, 1]
    assert (used.true_safety[:2] == UNKNOWN_LEVEL).all() and used.true_helpfulness[:2].isnan().all()
    if name in ("reward", "cost"):
        assert used.is_safe.tolist() == batch.is_safe.tolist()  # of each response by itself
    counts = module.counts(used, inputs)
    if name in ("reward", "cost"):
        assert int(counts["pair"]) == 3
    if name == "cost":
        assert int(counts["sign"]) == 10  # K x rows: the labels of single responses stay
    if name == "DPO":
        assert int(next(iter(counts.values()))) == 3


class Decided(SplitReport):
    """Which rows a figure has an order for."""

    needs = ("scores", "")

    def note(self, output, batch, noted):
        return agreement(output, batch, "reward", truth=False)[1].tolist()

    def report(self, pictures, split, notes, trainer):
        raise AssertionError("nothing is to be reported")


@pytest.mark.parametrize("name", ["reward", "cost", "DPO"])
def test_figures_leave_out_the_pairs_that_metrics_leave_out(name, make, world):
    module, batch = build(name, make, world, 60)
    batch = cut_batch(module, batch)
    module.split_name = lambda stage, loader: "validation"
    with torch.no_grad():
        outputs = module.evaluate(batch, "validate", 0)
    figure = Decided()
    data = SimpleNamespace(evaluation_splits=lambda stage: ("validation",))
    trainer = SimpleNamespace(sanity_checking=False, fast_dev_run=False, datamodule=data)
    figure._take(trainer, "validate", outputs, batch, 0)
    assert figure._notes["validation"] == [False, False, True, True, False, True]
    if name != "DPO":
        assert int(module.split_metrics["validation"]["accuracy"].total) == 3


def test_pairs_that_became_equal_are_no_pair_for_safe_dpo(make, world):
    """Its order comes from the safety labels, too."""
    module, batch = build("SafeDPO", make, world, 60)
    used, _ = module.prepare(cut_batch(module, batch))
    assert module.objective.pairs(used).target.tolist()[:2] == [-1, -1]
    assert module.objective.pairs(used).target.tolist()[2:4] == [1, 1]


def test_a_guard_and_a_demonstration_count_what_is_cut(make, world):
    module, batch = build("guard", make, world, 60)
    used, inputs = module.prepare(cut_batch(module, batch))
    assert int(module.seen(used, inputs)["truncated_responses"]) == 7
    module, batch = build("supervised", make, world, 60)
    long = tuple("keep away " * 60 if row in (1, 4) else text for row, text in enumerate(batch.responses))
    used, inputs = module.prepare(batch._replace(responses=long, without_demonstration=2))
    assert {key: int(value) for key, value in module.seen(used, inputs).items()} == {
        "truncated_demonstrations": 2, "without_demonstration": 2,
    }  # fmt: skip


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """Shards whose third record is a strip of 300 x 1 pixels, and a tiny Qwen, which refuses such."""
    root = tmp_path_factory.mktemp("strips")
    with ShardWriter(root / "data", name="strips", licence="MIT", taxonomy=Taxonomy("none", ())) as writer:
        for split, start in (("train", 0), ("validation", 8)):
            for i in range(start, start + 8):
                image = probe(picture(i, size=(300, 1) if i % 8 == 2 else (40, 30)))
                answers = (Response(f"yes {i}", 1), Response("no", -1))
                writer.write(split, Record(f"k-{i}", "safe ?", (image,), answers, more_helpful=i % 2, safer=0))
    return root / "data", write_tiny_vlm("qwen2_5_vl", root / "qwen")


class Seen(SplitReport):
    """Which rows callbacks see."""

    needs = ("scores", "")

    def note(self, output, batch, noted):
        return [key for key, ok in zip(batch.keys, batch.valid.tolist(), strict=True) if ok]

    def report(self, pictures, split, notes, trainer):
        raise AssertionError("nothing is to be reported")


def run(strips, policy, steps, resume=None, out=None):
    torch.manual_seed(3)
    data = PreferenceDataModule(str(strips[0]), batch_size=2, eval_batch_size=4, on_bad_sample=policy)
    backbone = partial(HFVLM, str(strips[1]), local_files_only=True)
    module = RewardModule(backbone, BradleyTerry, ScalarHead, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume)
    if out is not None:
        trainer.save_checkpoint(out)
    return module, trainer


def test_a_strip_of_pixels_on_qwen_stops_the_run_by_name(strips):
    with pytest.raises(ShardError, match=r"data/(train|validation)-000000\.tar: record 'k-(2|10)': .*aspect ratio"):
        run(strips, "error", 4)


def test_or_is_left_out_and_a_resumed_run_leaves_out_the_same(strips, tmp_path):
    whole, trainer = run(strips, "skip-and-count", 4)
    assert whole.admission.refused == 2  # one in training, one in validation
    assert float(trainer.callback_metrics["validation/accuracy"]) * 7 == pytest.approx(
        round(float(trainer.callback_metrics["validation/accuracy"]) * 7), abs=1e-4
    )
    assert trainer.callback_metrics["train/truncated_responses"] == trainer.callback_metrics["train/equal_pairs"] == 0
    for stop in (1, 2, 3):
        run(strips, "skip-and-count", stop, out=tmp_path / f"{stop}.ckpt")
        resumed, _ = run(strips, "skip-and-count", 4, resume=tmp_path / f"{stop}.ckpt")
        for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
            assert torch.equal(a, b), name


def test_callbacks_do_not_see_rows_that_were_left_out(strips):
    data = PreferenceDataModule(str(strips[0]), batch_size=2, eval_batch_size=8, on_bad_sample="skip-and-count")
    (batch,) = data.val_dataloader()[0]
    callback = Seen()
    valid = torch.ones(8, dtype=torch.bool)
    valid[2] = False
    trainer = SimpleNamespace(sanity_checking=False, loggers=[], datamodule=data)
    callback._take(trainer, "validate", {"scores": torch.zeros(8, 2), "valid": valid}, batch, 0)
    assert callback._notes["validation"] == [f"k-{i}" for i in range(8, 16) if i != 10]


def test_a_policy_is_not_asked_what_it_cannot_read(make, world):
    """The first thing of a rollout is to read the prompts: no random number is drawn before one is refused."""
    backbone = make(60)
    batch = next(iter(PreferenceDataModule(str(world), batch_size=4).train_dataloader()))
    draws, before = generator(1), generator(1)
    from safe_rlhf_v.models.reader import RefusedRows

    with pytest.raises(RefusedRows, match="row 1 of the batch"):
        draw(backbone, asked(batch, 1, LONG).prompts, SamplingOptions(max_new_tokens=4), draws)
    assert torch.equal(draws.get_state(), before.get_state())


def test_every_batch_knows_where_its_records_are(world):
    data = PreferenceDataModule(str(world), batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.shards == (f"{world}/train-000000.tar",) * 4
    assert ShardedSplit(world, "train").file_of(0) == batch.shards[0]
