"""Reward and cost modules: every trainable tensor learns, masked rows never count, packing changes nothing."""

from functools import partial

import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.models import ClipDecoder, EvidenceHead, ScalarHead
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import CostModule, RewardModule
from safe_rlhf_v.objectives import BradleyTerry, CostObjective, OrdinalTerm, SignTerm
from safe_rlhf_v.records import Context, Turn


@pytest.fixture
def backbone(world):
    def make(**options):
        torch.manual_seed(0)
        decoder = {
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
        return ClipDecoder(str(world / "tokenizer"), tower, decoder, SlotSettings(3, 16), **options)

    return make


@pytest.fixture
def batch(world):
    return next(iter(PreferenceDataModule(str(world), batch_size=5).train_dataloader()))


def cost_objective():
    return CostObjective([SignTerm(), OrdinalTerm()])


CASES = [
    (RewardModule, BradleyTerry, ScalarHead),
    (RewardModule, BradleyTerry, EvidenceHead),
    (CostModule, cost_objective, partial(EvidenceHead, fusion=8)),
]


@pytest.mark.parametrize(("kind", "objective", "head"), CASES)
def test_every_trainable_tensor_gets_a_gradient(kind, objective, head, backbone, batch):
    module = kind(backbone, objective, head=head)
    module.configure_model()
    module.objective(module.score(batch.prompts, batch.responses), batch)["loss"].backward()
    silent = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    assert not any(p.grad is not None for p in module.backbone.tower.parameters())


@pytest.mark.parametrize(("kind", "objective", "head"), CASES)
def test_packed_rows_score_as_separate_ones_and_as_rows_alone(kind, objective, head, backbone, batch):
    module = kind(backbone, objective, head=head)
    module.configure_model()
    with torch.no_grad():
        packed = module.score(batch.prompts, batch.responses)
        module.packed = False
        separate = module.score(batch.prompts, batch.responses)
        alone = torch.cat([
            module.score(type(batch.prompts)(*(part[i : i + 1] for part in batch.prompts)), batch.responses[i : i + 1])
            for i in range(5)
        ])  # fmt: skip
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(separate, alone, rtol=1e-5, atol=1e-5)


def test_cached_features_change_nothing(backbone, batch):
    scores = []
    for cache in (0, 100):
        module = RewardModule(partial(backbone, feature_cache=cache), BradleyTerry, head=EvidenceHead)
        module.configure_model()
        torch.manual_seed(1)
        for parameter in module.head.parameters():
            torch.nn.init.normal_(parameter)
        with torch.no_grad():
            scores.append([module.score(batch.prompts, batch.responses) for _ in range(2)])
    assert torch.equal(scores[1][0], scores[1][1])
    torch.testing.assert_close(scores[0][0], scores[1][0])
    with pytest.raises(ValueError, match="freeze_tower"):
        backbone(feature_cache=10, freeze_tower=False)


def test_cached_features_do_not_depend_on_the_batch_an_image_came_in(backbone, batch):
    """To the last bit: a resumed run meets its images in other batches than the run before it."""
    cached = backbone(feature_cache=100)
    _, images = cached.prepare_prompts(batch.prompts)
    many = cached.select_images(images, [i % len(images.ids) for i in range(2 * cached.images_at_once + 1)])
    many = many._replace(ids=tuple(f"{i}" for i in range(len(many.ids))))
    together = cached.encode_images(many).tokens
    for i in (0, 3, len(many.ids) - 1):
        cached._cache.clear()
        (alone,) = cached.encode_images(cached.select_images(many, [i])).tokens
        assert torch.equal(alone, together[i])


def test_masked_rows_change_neither_loss_nor_gradient(backbone, batch):
    grads = []
    for n in (5, 3):
        module = CostModule(backbone, cost_objective, head=partial(EvidenceHead, fusion=8))
        module.configure_model()
        torch.manual_seed(1)
        for parameter in module.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        valid = torch.tensor([True] * 3 + [False] * 2)
        cut = batch._replace(valid=valid)
        if n == 3:
            prompts = type(batch.prompts)(*(part[:3] for part in batch.prompts))
            cut = type(batch)(prompts, *(part[:3] for part in batch[1:-2]))  # without votes and demonstrations
        loss = module.objective(module.score(cut.prompts, cut.responses), cut)["loss"]
        loss.backward()
        grads.append((loss, module.head.end.weight.grad))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-4, atol=1e-6)


def test_other_pictures_change_the_scores(backbone, batch):
    module = RewardModule(backbone, BradleyTerry, head=partial(EvidenceHead, fusion=8))
    module.configure_model()
    with torch.no_grad():
        real, shuffled, blank = (
            module.score(batch.prompts.with_images(mode), batch.responses) for mode in ("real", "shuffled", "blank")
        )
    assert not torch.allclose(real, shuffled) and not torch.allclose(real, blank)


@pytest.mark.parametrize(("ranks", "size"), [(1, 12), (1, 4), (2, 3), (3, 2), (2, 1)])
def test_shuffled_pictures_are_those_of_the_row_before_whatever_the_ranks(backbone, batch, monkeypatch, ranks, size):
    """Global batches of ranks x size rows, each rank a contiguous slice, as the data module deals them."""
    n = 12
    rows = [batch.prompts.take([i % 5]) for i in range(n)]
    rows = [row._replace(image_ids=((str(i),),)) for i, row in enumerate(rows)]

    def dealt(step, rank):
        chosen = rows[(step * ranks + rank) * size :][:size]
        prompts = type(batch.prompts)(*(sum(parts, ()) for parts in zip(*chosen, strict=True)))
        return batch._replace(prompts=prompts, valid=torch.ones(size, dtype=torch.bool))

    modules, found = [RewardModule(backbone, BradleyTerry) for _ in range(ranks)], {}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: ranks > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    for step in range(n // (ranks * size)):
        batches = [dealt(step, rank) for rank in range(ranks)]

        def gather(everyone, _, batches=batches):
            everyone[:] = [b.prompts.take([-1]) for b in batches]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        for rank, module in enumerate(modules):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            prompts = module._shuffled(batches[rank], "test")
            for (own,), other in zip(batches[rank].prompts.image_ids, prompts.image_ids, strict=True):
                found[int(own)] = int(*other) if other else None
    assert found == {0: None, **{i: i - 1 for i in range(1, n)}}


ASKED = Turn("user", "what is this ?", 1)
TALK = Context("", (ASKED, Turn("assistant", "a knife .")))


def test_shuffled_pictures_fit_the_conversations_they_come_to(backbone, batch):
    """A row without a picture stands before a conversation whose first turn holds one, within a batch and over two."""
    module = RewardModule(backbone, BradleyTerry)
    module.configure_model()
    images, ids, _, contexts = batch.prompts
    within = batch.prompts._replace(
        images=((), *images[1:]), image_ids=((), *ids[1:]), contexts=(contexts[0], TALK, *contexts[2:])
    )
    last = batch.prompts._replace(images=(*images[:4], ()), image_ids=(*ids[:4], ()))
    first = batch.prompts._replace(contexts=(TALK, *contexts[1:]))
    for before, prompts, row in ((batch.prompts, within, 1), (last, first, 0)):
        module._before.clear()
        module._shuffled(batch._replace(prompts=before), "test")
        changed = module._shuffled(batch._replace(prompts=prompts), "test")
        assert changed.images[row] == () and [turn.images for turn in changed.turns(row)] == [0, 0, 0]
        with torch.no_grad():
            assert module._score_changed(batch._replace(prompts=prompts), changed)[0].isfinite().all()


def test_only_really_other_pictures_count(backbone, batch):
    """Not those of a row beside one with the same picture, of a row without a picture, or of one that gets none."""
    module = RewardModule(backbone, BradleyTerry)
    module.configure_model()
    images, ids, *_ = batch.prompts
    order = (0, 0, None, 3, 4)  # 1 has the picture of 0; 2 has none
    prompts = batch.prompts._replace(
        images=tuple(() if i is None else images[i] for i in order),
        image_ids=tuple(() if i is None else ids[i] for i in order),
    )
    batch = batch._replace(prompts=prompts)
    with torch.no_grad():
        _, first = module._score_changed(batch, module._shuffled(batch, "test"))
        _, second = module._score_changed(batch, module._shuffled(batch, "test"))
        _, blank = module._score_changed(batch, prompts.with_images("blank"))
    assert first.tolist() == [False, False, False, False, True]  # nothing stands before the very first row
    assert second.tolist() == [ids[0] != ids[4], False, False, False, True]
    assert blank.tolist() == [True, True, False, True, True]


def test_a_row_that_is_too_long_with_the_other_picture_is_left_out(backbone, batch):
    images, ids, questions, _ = batch.prompts
    heavy = batch.prompts._replace(
        images=(images[0] * 4, *images[1:]),
        image_ids=(ids[0] * 4, *ids[1:]),
        questions=("a", "do you see what is in here ? " * 3, *questions[2:]),
    )
    longest = 1 + max(len(row) for row in backbone().prepare_prompts(heavy)[0].ids)
    module = RewardModule(partial(backbone, max_length=longest), BradleyTerry)
    module.configure_model()
    batch = batch._replace(prompts=heavy)
    module.backbone.prepare(heavy, batch.responses, packed=True)  # with its own pictures every row fits
    with torch.no_grad():
        scores, valid = module._score_changed(batch, module._shuffled(batch, "test"))
    assert valid.tolist() == [False, False, True, True, True] and scores.isfinite().all()


@pytest.mark.parametrize("kind", [RewardModule, CostModule])
def test_a_twin_with_shuffled_pictures_needs_two_rows(kind, backbone, world):
    module = kind(backbone, BradleyTerry, images="shuffled")
    module.check_data(PreferenceDataModule(str(world), batch_size=2))
    for sizes in ({"batch_size": 1}, {"batch_size": 2, "eval_batch_size": 1}):
        with pytest.raises(ValueError, match=rf"data\.{list(sizes)[-1]} is 1: set it to 2 or more"):
            module.check_data(PreferenceDataModule(str(world), **sizes))
    kind(backbone, BradleyTerry, images="blank").check_data(PreferenceDataModule(str(world), batch_size=1))
