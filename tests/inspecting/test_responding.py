"""A policy that answers conversations: its options, its random numbers, its counts. inspect itself is not needed."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from safe_rlhf_v.inspecting.responding import DRAW, MAX_TOKENS, Policy, sampling_of
from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.training.checkpoints import CheckpointError


def config(**options):
    """As inspect's ``GenerateConfig``."""
    return SimpleNamespace(seed=options.get("seed"), model_dump=lambda exclude_none: options)


def user(words, **more):
    return SimpleNamespace(role="user", content=words, **more)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    torch.manual_seed(3)
    decoder = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.4,
    }  # fmt: skip
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    target = tmp_path_factory.mktemp("policy") / "exported"
    ClipDecoder(str(world / "tokenizer"), tower, decoder, SlotSettings(3, 16)).save_pretrained(target)
    return str(target)


@pytest.fixture(scope="module")
def policy(folder):
    return Policy(folder, batch_size=3)


def responses(policy, conversations, **options):
    async def all_of_them():
        asked = (policy.respond(conversation, config(**options)) for conversation in conversations)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_options_are_honoured():
    assert sampling_of(config()).max_new_tokens == MAX_TOKENS and sampling_of(config()).temperature == 1
    options = sampling_of(config(temperature=0.0, top_p=0.5, max_tokens=3, seed=2, max_connections=8, timeout=3))
    assert (options.temperature, options.top_p, options.max_new_tokens) == (0.0, 0.5, 3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"top_k": 5}, "top_k: this model honours temperature, top_p, max_tokens, seed"),
        ({"stop_seqs": ["x"], "num_choices": 2}, "stop_seqs, num_choices"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {1: 2}}, "logit_bias"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"an_option_of_a_later_version": 1}, "an_option_of_a_later_version"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
    ],
)
def test_options_that_are_not_honoured_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        sampling_of(config(**options))


def test_an_option_that_is_switched_off_asks_for_nothing():
    sampling_of(config(logprobs=False, batch=False, adaptive_connections=True))


def test_a_response_depends_on_seed_and_conversation_and_not_on_the_batch(folder, policy):
    conversations = [[user(f"how do i use {what} ?")] for what in ("this", "it", "that", "the knife")]
    together = responses(policy, conversations, max_tokens=8, seed=5)
    assert len({one.text for one in together}) > 2
    alone = Policy(folder, batch_size=1)
    assert responses(alone, conversations[::-1], max_tokens=8, seed=5) == together[::-1]
    assert responses(Policy(folder), conversations, max_tokens=8, seed=6) != together
    shorter = responses(Policy(folder), conversations, max_tokens=4, seed=5)
    assert all(one.text.startswith(other.text) for one, other in zip(together, shorter, strict=True))


def test_asked_again_it_draws_again_unless_the_message_names_the_draw(folder):
    conversation = [user("how do i use this ?")]
    first = responses(Policy(folder), [conversation] * 4, max_tokens=8)
    assert len({one.text for one in first}) > 2
    assert responses(Policy(folder), [conversation] * 4, max_tokens=8) == first
    policy = Policy(folder)
    named = [[user("how do i use this ?", metadata={DRAW: draw})] for draw in ("a/1", "a/2", "a/1", "b/1")]
    texts = [one.text for one in responses(policy, named, max_tokens=8)]
    assert texts[0] == texts[2] and len(set(texts)) == 3


def test_greedy_is_always_the_same_and_other_options_run_beside_it(policy):
    conversation = [user("how do i use this ?")]

    async def both():
        cold = [policy.respond(conversation, config(temperature=0.0, max_tokens=8)) for _ in range(3)]
        hot = [policy.respond(conversation, config(temperature=2.0, max_tokens=8)) for _ in range(3)]
        return await asyncio.gather(*cold, *hot)

    texts = [one.text for one in asyncio.run(both())]
    assert len(set(texts[:3])) == 1 and len(set(texts[3:])) > 1


def test_tokens_are_counted(policy):
    short, long = responses(policy, [[user("this")], [user("how do i use this ?")]], max_tokens=3, temperature=0.0)
    assert long.prompt_tokens == short.prompt_tokens + 5
    assert {short.response_tokens, long.response_tokens} <= {1, 2, 3}
    assert short.finished == (short.response_tokens < 3) or short.response_tokens == 3


def test_a_conversation_that_cannot_be_read_fails_alone(policy):
    policy_of_few = policy._network.max_length
    policy._network.max_length = 12
    try:
        good, bad, worse = responses(policy, [[user("this")], [user("use this " * 40)], []], max_tokens=4)
    finally:
        policy._network.max_length = policy_of_few
    assert good.text is not None and not good.fault
    assert isinstance(bad, ValueError) and "unreadable" in str(bad)
    assert isinstance(worse, ValueError) and "does not end" in str(worse)


def test_what_is_no_policy_is_refused(world, folder):
    with pytest.raises(CheckpointError):
        Policy(str(world))
    with pytest.raises(CheckpointError):
        Policy("no/such/folder/anywhere")
    with pytest.raises(ValueError, match="batch_size is 0"):
        Policy(folder, batch_size=0)
    with pytest.raises(ValueError, match="device"):
        Policy(folder, device="toaster")
