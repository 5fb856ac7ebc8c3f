"""The guard module: losses by hand, masked rows, missing parts, two backbones of the configuration, no silent tensor."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.functional.shares import loss_and_means
from safe_rlhf_v.models import ClipDecoder, CornLink, CumulativeLink, EvidenceHead, ScalarHead, SoftmaxLink
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules.guard import GuardModule, GuardOutputs
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, VoteShares
from safe_rlhf_v.world import WORLD


@pytest.fixture
def backbone(world):
    def make():
        torch.manual_seed(0)
        decoder = {
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        return ClipDecoder(str(world / "tokenizer"), tower, decoder, SlotSettings(3, 16))

    return make


@pytest.fixture
def batch(world):
    return next(iter(PreferenceDataModule(str(world), batch_size=5).train_dataloader()))


HEAD = partial(EvidenceHead, fusion=8)


def build(backbone, link=CornLink, head=HEAD, **options):
    module = GuardModule(backbone, link, head, WORLD.categories, **options)
    module.configure_model()
    return module


def judge(module, batch):
    return module(batch.prompts, [(*row, "") for row in batch.responses])


@pytest.mark.parametrize("link", [CornLink, CumulativeLink, SoftmaxLink])
@pytest.mark.parametrize("head", [ScalarHead, partial(EvidenceHead, fusion=8)])
def test_every_trainable_tensor_gets_a_gradient(link, head, backbone, batch):
    module = build(backbone, link, head)
    loss_and_means(module.loss_shares(judge(module, batch), batch))["loss"].backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def one_record(safety, category, votes=None):
    unknown = torch.tensor([-1])
    return PreferenceBatch(
        Prompts(((),), ((),), ("q",)), (("a", "b"),), unknown, unknown, torch.tensor([False]), safety,
        torch.full((1, 2), -1), category, torch.tensor([True]), ("k",), votes=votes,
    )  # fmt: skip


def test_losses_by_hand():
    """One record of two responses, the second without a level; category 1 of three."""
    module = GuardModule(lambda: None, categories=("a", "b", "c"), prompt_weight=0.5, category_weight=0.25)
    levels = torch.log_softmax(torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), -1)
    risk, categories = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([[1.0, 0.0, -1.0]] * 3)
    record = one_record(torch.tensor([[-2, UNKNOWN_LEVEL]]), torch.tensor([[0, 1, 0]]))
    found = loss_and_means(module.loss_shares(GuardOutputs(levels, risk, categories), record))
    level = -levels[0, 1]
    expected_risk = F.softplus(-risk).mean()
    category = F.softplus(torch.tensor(1.0)) + F.softplus(torch.tensor(0.0)) + F.softplus(torch.tensor(-1.0))
    torch.testing.assert_close(found["level"], level)
    torch.testing.assert_close(found["prompt_risk"], expected_risk)
    torch.testing.assert_close(found["category"], category)
    torch.testing.assert_close(found["loss"], level + 0.5 * expected_risk + 0.25 * category)
    record = record._replace(category=torch.zeros(1, 3, dtype=torch.long))
    harmless = loss_and_means(module.loss_shares(GuardOutputs(levels, risk, categories), record))
    torch.testing.assert_close(harmless["prompt_risk"], F.softplus(risk).mean())
    torch.testing.assert_close(harmless["category"], F.softplus(categories[0]).sum())
    record = record._replace(category=torch.tensor([[1, 0, 1]]))  # several
    several = loss_and_means(module.loss_shares(GuardOutputs(levels, risk, categories), record))
    torch.testing.assert_close(several["category"], F.softplus(torch.tensor([-1.0, 0.0, 1.0])).sum())
    torch.testing.assert_close(several["prompt_risk"], expected_risk)
    record = record._replace(category=torch.full((1, 3), -1))  # unknown: teaches nothing about the prompt
    unknown = loss_and_means(module.loss_shares(GuardOutputs(levels, risk, categories), record))
    assert unknown["prompt_risk"] == 0 and unknown["category"] == 0
    torch.testing.assert_close(unknown["loss"], unknown["level"])


@pytest.mark.parametrize("link", [CornLink(), CumulativeLink(), SoftmaxLink()])
def test_levels_by_votes(link):
    """Three of four annotators say -2, one says 1; nobody voted on the second response, whose label is 0."""
    probs = torch.tensor([[0.0, 0.75, 0.0, 0.0, 0.25, 0.0, 0.0], [torch.nan] * 7])[None]
    unknown = torch.full((1,), torch.nan)
    votes = VoteShares(unknown, unknown, torch.full((1, 2), torch.nan), probs)
    outputs = torch.randn(3, link.features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    levels = link.log_probs(outputs)
    judged = GuardOutputs(levels, torch.zeros(3), torch.zeros(3, 2))
    for label in (-2, UNKNOWN_LEVEL):  # votes are enough
        batch = one_record(torch.tensor([[label, 0]]), torch.full((1, 2), -1), votes)
        share = GuardModule(lambda: None, categories=("a", "b"), votes=True).loss_shares(judged, batch)["level"]
        torch.testing.assert_close(share.total, -0.75 * levels[0, 1] - 0.25 * levels[0, 4] - levels[1, 3])
        assert share.count == 2
    hard = GuardModule(lambda: None, categories=("a", "b")).loss_shares(judged, batch)["level"]
    assert hard.count == 1 and torch.equal(hard.total, -levels[1, 3])


def test_harm_and_expected_level_are_read_off_the_levels():
    probs = torch.tensor([[0.1, 0.2, 0.05, 0.3, 0.1, 0.05, 0.2]])
    outputs = GuardOutputs(probs.log(), torch.zeros(1), torch.zeros(1, 2))
    torch.testing.assert_close(outputs.harm, torch.tensor([0.35]))
    torch.testing.assert_close(outputs.expected_level, (probs * torch.arange(-3, 4)).sum(1))


def test_masked_rows_change_neither_loss_nor_gradient(backbone, batch):
    grads = []
    for n in (5, 3):
        module = build(backbone)
        cut = batch._replace(valid=torch.tensor([True] * 3 + [False] * 2))
        if n == 3:
            prompts = type(batch.prompts)(*(part[:3] for part in batch.prompts))
            cut = type(batch)(prompts, *(part[:3] for part in batch[1:-2]))  # without votes and demonstrations
        loss = loss_and_means(module.loss_shares(judge(module, cut), cut))["loss"]
        loss.backward()
        grads.append((loss, module.head.end.weight.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-4, atol=1e-6)


def test_company_and_order_do_not_matter(backbone, batch):
    module = build(backbone)
    with torch.no_grad():
        together = judge(module, batch)
        for i in range(5):
            prompts = type(batch.prompts)(*(part[i : i + 1] for part in batch.prompts))
            for k, text in enumerate((*batch.responses[i], "")):
                alone = module(prompts, [[text]])
                for a, b in zip(alone, together, strict=True):
                    torch.testing.assert_close(a[0], b[3 * i + k], rtol=1e-4, atol=1e-5)


def test_parts_are_dropped_as_often_as_asked(backbone, batch):
    module = build(backbone, part_dropout=0.25)
    many = type(batch.prompts)(*(part * 400 for part in batch.prompts))
    dropped = module._drop_parts(batch._replace(prompts=many, keys=tuple(map(str, range(2000))))).prompts
    blind = [not row for row in dropped.images]
    mute = [not text for text in dropped.questions]
    assert blind == [not ids for ids in dropped.image_ids]
    assert not any(a and b for a, b in zip(blind, mute, strict=True))
    for gone in (blind, mute):
        assert abs(sum(gone) / 2000 - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    with pytest.raises(ValueError, match="part_dropout"):
        GuardModule(backbone, part_dropout=0.7)


def test_responses_are_mixed_as_often_as_asked_with_the_lowest_level(backbone, batch):
    module = build(backbone, response_mixing=0.25)
    texts = (("good .", "bad ."), ("good .", "unknown ."), ("bad .", "worse ."), ("fine .", "good ."))
    levels = torch.tensor([[2, -1], [2, UNKNOWN_LEVEL], [-1, -3], [1, 2]])
    many = batch._replace(responses=texts * 500, safety=levels.repeat(500, 1), keys=tuple(map(str, range(2000))))
    mixed = module._mix_responses(many)
    changed, forms = [0, 0, 0, 0], set()
    for row, (new, old) in enumerate(zip(mixed.responses, many.responses, strict=True)):
        at = [i for i in range(2) if new[i] != old[i]]
        if not at:
            assert torch.equal(mixed.safety[row], many.safety[row])
            continue
        (at,), kind = at, row % 4
        changed[kind] += 1
        forms.add((kind, at, new[at].startswith(old[0])))
        assert new[at] in (" ".join(old), " ".join(reversed(old))) and new[1 - at] == old[1 - at]
        assert mixed.safety[row, at] == (-1, UNKNOWN_LEVEL, -3, 1)[kind]
        assert mixed.safety[row, 1 - at] == many.safety[row, 1 - at]
    assert all(abs(n / 500 - 0.25) < 5 * (0.25 * 0.75 / 500) ** 0.5 for n in changed)
    assert len(forms) == 4 * 2 * 2  # either response, in either order
    assert torch.equal(many.safety, levels.repeat(500, 1))  # the batch itself is untouched
    assert module._mix_responses(batch._replace(responses=(("a",),), safety=levels[:1, :1])).responses == (("a",),)
    voted = VoteShares(*torch.zeros(2, 2000), torch.zeros(2000, 2), torch.zeros(2000, 2, 7))
    shares = module._mix_responses(many._replace(votes=voted)).votes.safety
    assert all(  # nobody has voted on a mixed response
        shares[row].isnan().all(-1).tolist() == [new[i] != old[i] for i in range(2)]
        for row, (new, old) in enumerate(zip(mixed.responses, many.responses, strict=True))
    )
    assert not voted.safety.isnan().any()
    few = many._replace(responses=many.responses[7:9], safety=many.safety[7:9], keys=many.keys[7:9])
    assert module._mix_responses(few).responses == mixed.responses[7:9]  # whatever the batch
    with pytest.raises(ValueError, match="response_mixing"):
        GuardModule(backbone, response_mixing=1.5)


def test_other_categories_are_refused(backbone, world):
    from lightning.pytorch import Trainer

    module = GuardModule(backbone, CornLink, ScalarHead)
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match=r"set model\.init_args\.categories"):
        trainer.fit(module, datamodule=PreferenceDataModule(str(world), batch_size=4))


def test_a_guard_without_categories_trains_and_measures(backbone, batch):
    module = GuardModule(backbone, CornLink, ScalarHead, ())
    module.configure_model()
    outputs = judge(module, batch)
    assert outputs.categories.shape == (15, 0) and (outputs.category == -2).all()
    losses = loss_and_means(module.loss_shares(outputs, batch._replace(category=torch.zeros(5, 0, dtype=torch.long))))
    assert losses["category"] == losses["prompt_risk"] == 0  # none of no categories says nothing
    torch.testing.assert_close(losses["loss"], losses["level"])


def test_the_likeliest_category():
    outputs = GuardOutputs(torch.zeros(2, 7), torch.zeros(2), torch.tensor([[0.1, 0.5, 0.2], [3.0, -1.0, 0.0]]))
    assert outputs.category.tolist() == [1, 0]
