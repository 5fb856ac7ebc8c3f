"""Offline policies: log-probabilities to the last token, a reference that stays, exact resume, lean checkpoints."""

import math
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tests.modules.offline import DECODER, build, disturb, same, sgd, start, train

from safe_rlhf_v.data_modules import PreferenceDataModule, PTXPreferenceDataModule
from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import PreferenceOptimisationModule
from safe_rlhf_v.modules.preference_optimisation import with_true_labels
from safe_rlhf_v.objectives import DPO, SafeDPO
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL


def test_policy_and_reference_drop_nothing(world, batch):
    """The same batch twice in training mode: equal, and before the first step exactly 0."""
    decoder = {**DECODER, "attention_dropout": 0.5}
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    lora = LoraSettings(r=2, alpha=4.0, dropout=0.5)
    module = build(lambda: ClipDecoder(str(world / "tokenizer"), tower, decoder, SlotSettings(3, 16), lora=lora))
    module.train()
    assert not module.log_ratios(batch.prompts, batch.responses).any()
    disturb(module.backbone)
    first, second = (module.log_ratios(batch.prompts, batch.responses) for _ in range(2))
    assert torch.equal(first, second) and first.any()


def ptx(world):
    return PTXPreferenceDataModule(str(world), batch_size=6, demonstrations="supervised", demonstration_batch_size=5)


def by_hand(network, batch, row, k):
    """Summed log-probability of one response, alone, from full float64 logits: every token and the end token."""
    prompts = type(batch.prompts)(*(part[row : row + 1] for part in batch.prompts))
    prepared = network.prepare(prompts, [(batch.responses[row][k],)])
    start = len(network.prepare_prompts(prompts)[0].ids[0])
    ids = prepared.tokens.input_ids[0].tolist()
    assert ids[start:] == [*network.text_ids(batch.responses[row][k]), network.eos_id]
    with torch.no_grad():
        hidden = network(prepared.tokens, network.encode(prepared.images))[0]  # (S, D)
        log_probs = network.lm_head(hidden).double().log_softmax(-1)
    return sum(log_probs[t - 1, ids[t]].item() for t in range(start, len(ids)))


@pytest.mark.parametrize("packed", [True, False])
def test_log_ratios_score_every_token_and_the_end_token(packed, backbone, batch):
    module = build(backbone, packed=packed)
    disturb(module.backbone)
    with torch.no_grad():
        found = module.log_ratios(batch.prompts, batch.responses)
    assert found.shape == (6, 2) and found.dtype == torch.float32
    for row in range(3):
        for k in (0, 1):
            policy, reference = (by_hand(n, batch, row, k) for n in (module.backbone, module.reference.network))
            assert found[row, k].item() == pytest.approx(policy - reference, abs=2e-4)
    assert found.abs().min() > 1e-3


def test_training_starts_at_the_reference(backbone, batch):
    module = build(backbone)
    assert torch.equal(module.log_ratios(batch.prompts, batch.responses), torch.zeros(6, 2))
    losses = module.objective(module.log_ratios(batch.prompts, batch.responses), batch)
    assert losses["loss"].item() == pytest.approx(math.log(2))
    assert losses["margin"].item() == losses["accuracy"].item() == 0.0  # equal is not yet right


@pytest.mark.parametrize("objective", [DPO, partial(DPO, "safer"), SafeDPO])
def test_every_trainable_tensor_gets_a_gradient_and_the_reference_none(objective, backbone, batch):
    module = build(backbone, objective)
    module.objective(module.log_ratios(batch.prompts, batch.responses), batch)["loss"].backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in module.reference.parameters())
    optimised = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert not optimised & {id(p) for p in module.reference.parameters()}


def test_training_moves_the_policy_and_never_the_reference(backbone, batches, world, tmp_path):
    module = build(backbone)
    start = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    train(module, world, tmp_path / "x.ckpt", 24)
    for name, value in module.reference.network.state_dict().items():
        assert torch.equal(value, start[name])
    moved = {name for name, value in module.backbone.named_parameters() if not torch.equal(value, start[name])}
    assert moved == {name for name, value in module.backbone.named_parameters() if value.requires_grad}
    with torch.no_grad():
        losses = [module.objective(module.log_ratios(b.prompts, b.responses), b) for b in batches]
    assert all(loss["loss"] < 0.6 and loss["margin"] > 0.2 for loss in losses)


def test_masked_rows_change_neither_loss_nor_gradient(backbone, batch):
    grads = []
    for cut in (False, True):
        module = build(backbone)
        disturb(module.backbone)
        used = batch._replace(valid=torch.tensor([True] * 4 + [False] * 2))
        if cut:
            prompts = type(batch.prompts)(*(part[:4] for part in batch.prompts))
            used = type(batch)(prompts, *(part[:4] for part in used[1:-2]))  # without votes and demonstrations
        loss = module.objective(module.log_ratios(used.prompts, used.responses), used)["loss"]
        loss.backward()
        grads.append((loss, module.backbone.lm_head.weight.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-4, atol=1e-6)


def test_a_picture_is_encoded_once_for_both(backbone, batch, monkeypatch):
    plain = build(backbone)
    disturb(plain.backbone)
    module = build(partial(backbone, feature_cache=50))
    disturb(module.backbone)
    calls = []
    encode = ClipDecoder.encode
    monkeypatch.setattr(
        ClipDecoder, "encode", lambda self, images: calls.append(set(images.ids)) or encode(self, images)
    )
    with torch.no_grad():
        found = module.log_ratios(batch.prompts, batch.responses)
    encoded = sorted(name for names in calls for name in names)  # a group is filled up with a picture of its own
    assert encoded == sorted({name for row in batch.prompts.image_ids for name in row})
    with torch.no_grad():
        torch.testing.assert_close(found, plain.log_ratios(batch.prompts, batch.responses), rtol=1e-5, atol=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(backbone, world, tmp_path):
    train(supervised := start(backbone, tmp_path), world, tmp_path / "half.ckpt", 2)
    whole = start(backbone, tmp_path)
    train(whole, world, tmp_path / "whole.ckpt", 4)
    resumed = PreferenceOptimisationModule(partial(backbone, seed=9), DPO, optimizer=sgd)  # other random weights
    train(resumed, world, tmp_path / "resumed.ckpt", 4, resume=tmp_path / "half.ckpt")
    assert same(resumed, whole) and same(resumed.reference, supervised.reference)
    assert same(resumed.reference.network, whole.reference.network)
    assert not same(resumed.backbone, resumed.reference.network)
    loaded = PreferenceOptimisationModule.load_from_checkpoint(
        tmp_path / "whole.ckpt", backbone=partial(backbone, seed=8), objective=DPO, weights_only=True
    )
    assert same(loaded, whole) and same(loaded.reference.network, whole.reference.network)


def test_metrics_of_a_split_and_rows_of_predictions(backbone, world):
    data = PreferenceDataModule(str(world), eval_batch_size=5, test_splits=("validation",))
    module = build(backbone, partial(SafeDPO, beta=0.5))
    disturb(module.backbone)
    quiet = {k: False for k in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    trainer = pl.Trainer(accelerator="cpu", **quiet)
    found = trainer.validate(module, data, verbose=False)[0]
    rows = [row for part in trainer.predict(module, data) for row in part]
    rewards = {row["key"]: row["rewards"] for row in rows}
    records = [data.split("validation")[i] for i in range(12)]
    assert len(rows) == 12 and set(rewards) == {record.key for record in records}  # no padding row

    def accuracy(winner):
        """By plain Python, over the records where ``winner`` names one."""
        decided = [(rewards[r.key], winner(r)) for r in records if winner(r) is not None]
        return sum(pair[w] > pair[1 - w] for pair, w in decided) / len(decided)

    def learned(record):
        safe = [response.is_safe for response in record.responses]
        if all(safe):
            return record.more_helpful
        return safe.index(True) if any(safe) else None

    assert found["validation/helpful_accuracy"] == pytest.approx(accuracy(lambda r: r.more_helpful))
    safer = accuracy(lambda r: None if r.safety_tie else r.safer)
    assert found["validation/safe_accuracy"] == pytest.approx(safer)
    assert found["validation/accuracy"] == pytest.approx(accuracy(learned))
    kept = [record for record in records if learned(record) is not None]
    margins = [rewards[r.key][learned(r)] - rewards[r.key][1 - learned(r)] for r in kept]
    assert 0 < len(kept) < 12
    assert found["validation/margin"] == pytest.approx(sum(margins) / len(kept), rel=1e-4)
    assert 0 <= found["validation/true_accuracy"] <= 1 and 0 < found["validation/decided_pairs"] <= 12


def test_true_labels_by_hand():
    level = torch.tensor([[2, -1], [-2, -2], [0, 1], [UNKNOWN_LEVEL, 3]])
    fields = dict.fromkeys(("more_helpful", "safer", "safety_tie", "safety", "is_safe"))
    batch = SimpleNamespace(
        true_safety=level,
        true_helpfulness=torch.tensor([[1.0, 2.0], [0.5, 0.5], [3.0, 1.0], [torch.nan, 1.0]]),
        _replace=lambda **new: fields.update(new) or SimpleNamespace(**fields),
    )
    exact = with_true_labels(batch)
    assert exact.more_helpful.tolist() == [1, -1, 0, -1]
    assert exact.safer.tolist() == [0, -1, 1, -1]
    assert exact.safety_tie.tolist() == [False, True, False, False]
    assert exact.is_safe.tolist() == [[1, 0], [0, 0], [1, 1], [-1, 1]]


def test_ptx_adds_the_demonstrations_loss(backbone, world, monkeypatch):
    batch = next(iter(ptx(world).train_dataloader()))
    assert len(batch.demonstrations.keys) == 5 and len(batch.keys) == 6
    module = build(backbone, ptx_weight=0.5)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    found = module.training_step(batch, 0)
    demonstrations = batch.demonstrations
    tokens = [
        (len(module.backbone.text_ids(text)) + 1, sum_log_prob(module.backbone, demonstrations, row))
        for row, text in enumerate(demonstrations.responses)
        if demonstrations.valid[row]
    ]
    by_token = -sum(value for _, value in tokens) / sum(count for count, _ in tokens)
    assert found.item() == pytest.approx(math.log(2) + 0.5 * by_token, rel=1e-4)
    with pytest.raises(ValueError, match="set both"):
        module.training_step(batch._replace(demonstrations=None), 0)
    with pytest.raises(ValueError, match="set both"):
        build(backbone).training_step(batch, 0)


def sum_log_prob(network, demonstrations, row):
    """As :func:`by_hand`, for a demonstration."""
    pairs = demonstrations._replace(responses=[(text,) for text in demonstrations.responses])
    return by_hand(network, pairs, row, 0)


def test_resumed_ptx_goes_on_with_the_next_demonstrations(backbone, world, tmp_path):
    def module():
        return PreferenceOptimisationModule(backbone, DPO, optimizer=sgd, ptx_weight=0.5)

    train(module(), world, tmp_path / "first.ckpt", 2, data=ptx(world))
    resumed = train(module(), world, tmp_path / "a.ckpt", 4, tmp_path / "first.ckpt", ptx(world))
    whole = train(module(), world, tmp_path / "b.ckpt", 4, data=ptx(world))
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    plain = train(build(backbone), world, tmp_path / "c.ckpt", 4)
    assert any(not torch.equal(value, plain["state_dict"][name]) for name, value in whole["state_dict"].items())
