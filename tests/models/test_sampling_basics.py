"""The sampler against recomputation from scratch, and its randomness against the distribution it claims."""

import pytest
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.models import ClipDecoder, sampling
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.records.batches import Prompts


@pytest.fixture(scope="module")
def backbone(world):
    torch.manual_seed(3)
    decoder = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.4,
    }  # fmt: skip
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    return ClipDecoder(str(world / "tokenizer"), tower, decoder, SlotSettings(3, 16)).eval()


@pytest.fixture(scope="module")
def prompts(world):
    found = next(iter(PreferenceDataModule(str(world), batch_size=4).train_dataloader())).prompts
    long = (found.questions[0] + " " + found.questions[1], *found.questions[1:])  # ragged: left padding matters
    no_image = ((), *found.images[1:]), ((), *found.image_ids[1:])
    return Prompts(*no_image, long)


def one(prompts, i):
    return Prompts(*(part[i : i + 1] for part in prompts))


def forced(backbone, prompts, generation):
    """Teacher-forced log-probabilities of drawn tokens, one row at a time."""
    rows = []
    for i in range(len(prompts.questions)):
        prepared = backbone.prepare(one(prompts, i), [[generation.text[i]]])
        ids = generation.tokens[i][generation.mask[i]]
        if not generation.finished[i]:
            ids = torch.cat([ids, torch.tensor([backbone.eos_id])])
        torch.testing.assert_close(prepared.tokens.input_ids[0, prepared.tokens.response_index[0]], ids)
        states = backbone.response_states(prepared, log_probs=True)
        rows.append(states.log_probs[0, : int(generation.mask[i].sum())])
    return rows


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_log_probs_are_those_of_a_full_pass(temperature, backbone, prompts):
    options = SamplingOptions(max_new_tokens=9, temperature=temperature)
    drawn = sample(backbone, prompts, options, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for i, row in enumerate(forced(backbone, prompts, drawn)):
            torch.testing.assert_close(drawn.log_probs[i][drawn.mask[i]], row, rtol=1e-4, atol=1e-4)
    assert not (set(drawn.tokens[drawn.mask].tolist()) & set(backbone.banned_ids))


def test_a_row_does_not_depend_on_the_others(backbone, prompts, monkeypatch):
    options, table = SamplingOptions(max_new_tokens=9), torch.rand(4, 9, generator=torch.Generator().manual_seed(1))
    rand = torch.rand

    def given(rows):
        monkeypatch.setattr(torch, "rand", lambda n, r, generator=None, dtype=None: table[rows, :r])

    given(slice(None))
    together = sample(backbone, prompts, options)
    for i in range(4):
        given(slice(i, i + 1))
        alone = sample(backbone, one(prompts, i), options)
        length = int(together.mask[i].sum())
        assert alone.tokens[0, :length].tolist() == together.tokens[i, :length].tolist()
        assert not together.mask[i, length:].any()
        torch.testing.assert_close(alone.log_probs[0, :length], together.log_probs[i, :length], rtol=1e-4, atol=1e-5)
    given(slice(None))
    copies = Prompts(*(part[:1] * 4 for part in prompts))
    repeated, shared = sample(backbone, copies, options), sample(backbone, one(prompts, 0), options, samples=4)
    assert torch.equal(repeated.tokens, shared.tokens) and repeated.text == shared.text
    monkeypatch.setattr(torch, "rand", rand)


def test_first_tokens_follow_the_distribution(backbone, prompts):
    """Chi-square over the likelier tokens, at temperature and top-p too."""
    n = 4000
    with torch.no_grad():
        prepared = backbone.prepare(one(prompts, 1), [["x"]])
        state = backbone.response_states(prepared).prompt
        logits = backbone.lm_head(state)[0].double()
    logits[list(backbone.banned_ids)] = -torch.inf
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.6)):
        p = (logits / temperature).softmax(-1)
        if top_p < 1:
            ordered, index = p.sort(descending=True)
            inside = index[ordered.cumsum(0) - ordered < top_p]
            p = torch.zeros_like(p).index_copy(0, inside, p[inside]) / p[inside].sum()
        options = SamplingOptions(1, temperature, top_p)
        drawn = sample(backbone, one(prompts, 1), options, torch.Generator().manual_seed(2), samples=n)
        counts = torch.bincount(drawn.tokens[:, 0], minlength=len(p)).double()
        assert not counts[p == 0].any()
        common = p * n >= 5
        chi = ((counts - n * p)[common].square() / (n * p)[common]).sum()
        degrees = int(common.sum())
        assert chi < degrees + 5 * (2 * degrees) ** 0.5


def test_banned_tokens_are_never_drawn(backbone, prompts):
    weight = backbone.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[backbone.image_id] = 50 * weight[backbone.eos_id + 5]
        weight[backbone.image_id + 0] = kept.abs().sum(0)
        drawn = sample(backbone, prompts, SamplingOptions(8), torch.Generator().manual_seed(0), samples=8)
        weight.copy_(kept)
    assert backbone.image_id in backbone.banned_ids
    assert backbone.image_id not in drawn.tokens[drawn.mask].tolist()


def test_training_mode_comes_back_and_options_are_checked(backbone, prompts):
    backbone.train()
    sample(backbone, one(prompts, 1), SamplingOptions(2))
    assert backbone.training
    backbone.eval()
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="needs"):
            SamplingOptions(**wrong)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_logits_are_named(value: float, temperature: float, backbone, prompts) -> None:
    from safe_rlhf_v.functional.finite import NonFiniteError

    weight = backbone.lm_head.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[backbone.eos_id + 5] = value
        with pytest.raises(NonFiniteError, match="policy's probabilities"):
            sample(backbone, prompts, SamplingOptions(3, temperature))
        weight.copy_(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_asking_less_often_whether_rows_have_finished_changes_nothing(temperature, backbone, prompts, monkeypatch):
    options = SamplingOptions(max_new_tokens=12, temperature=temperature)
    drawn = []
    for between in (1, 3, 12, 50):
        monkeypatch.setitem(sampling.STEPS_BETWEEN_CHECKS, "cpu", between)
        drawn.append(sample(backbone, prompts, options, torch.Generator().manual_seed(4), samples=3))
    first = drawn[0]
    assert len(set(first.mask.sum(1).tolist())) > 1  # rows end at different tokens
    for other in drawn[1:]:
        assert torch.equal(first.tokens, other.tokens) and torch.equal(first.mask, other.mask)
        assert torch.equal(first.finished, other.finished) and first.text == other.text
        torch.testing.assert_close(first.log_probs, other.log_probs, rtol=1e-5, atol=1e-6)


def test_a_token_of_no_probability_is_never_chosen():
    """The smallest and the largest uniform, with impossible tokens at both ends and between."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -1e9, -torch.inf]]).repeat(2, 1)
    extremes = torch.tensor([0.0, 1 - 2**-24])
    for top_p in (1.0, 0.999):
        chosen, finite = sampling._choose(logits, extremes, SamplingOptions(1, 1.0, top_p), torch.tensor([3]))
        assert chosen.tolist() == [1, 1] and finite
        chosen, _ = sampling._choose(
            logits, extremes, SamplingOptions(1, 1.0, top_p), torch.tensor([], dtype=torch.long)
        )
        assert sorted(chosen.tolist()) == [1, 3]
