"""A server that fails, or replies what is no response of this policy, ends the run in one line."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.conftest import Made, prompts

from safe_rlhf_v.engine import EngineError, EngineSampler
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.policy.rollout import draw, generator

Reply = dict[str, Any]


def choice(reply: Reply, **fields: Any) -> Reply:
    """The reply with other fields in its first choice; a function changes the old value."""
    first, *others = reply["choices"]
    new = {name: value(first[name]) if callable(value) else value for name, value in fields.items()}
    return {**reply, "choices": [{**first, **new}, *others]}


def log_prob(value: Any) -> Callable[[Reply], Reply]:
    def spoil(reply: Reply) -> Reply:
        content = reply["choices"][0]["logprobs"]["content"]
        return choice(reply, logprobs={"content": [{"logprob": value}, *content[1:]]})

    return spoil


def tokens(change: Callable[[list[int]], list[int]], **fields: Any) -> Callable[[Reply], Reply]:
    """Other tokens, with as many log-probabilities."""

    def spoil(reply: Reply) -> Reply:
        ids = change(reply["choices"][0]["token_ids"])
        return choice(reply, token_ids=ids, logprobs={"content": [{"logprob": -1.0} for _ in ids]}, **fields)

    return spoil


def without(name: str) -> Callable[[Reply], Reply]:
    return lambda reply: {key: value for key, value in reply.items() if key != name}


SPOILED: dict[str, tuple[Callable[[Reply], Any], str]] = {
    "another prompt": (lambda r: {**r, "prompt_token_ids": [*r["prompt_token_ids"][:-1], 5]}, "differs at token"),
    "a longer prompt": (lambda r: {**r, "prompt_token_ids": [*r["prompt_token_ids"], 5]}, "cut or longer"),
    "a cut prompt": (lambda r: {**r, "prompt_token_ids": r["prompt_token_ids"][:-1]}, "cut or longer"),
    "no prompt ids": (without("prompt_token_ids"), "no prompt_token_ids"),
    "null prompt ids": (lambda r: {**r, "prompt_token_ids": None}, "no prompt_token_ids"),
    "prompt ids as text": (lambda r: {**r, "prompt_token_ids": "1 2"}, "no list of token ids"),
    "no choices": (without("choices"), "no choices"),
    "choices as an object": (lambda r: {**r, "choices": {}}, "no choices|no list"),
    "no samples": (lambda r: {**r, "choices": []}, "0 responses came"),
    "fewer samples": (lambda r: {**r, "choices": [{**r["choices"][0], "index": 0}]}, "1 responses came"),
    "more samples": (lambda r: {**r, "choices": [*r["choices"], {**r["choices"][0], "index": 2}]}, "3 responses came"),
    "one sample twice": (lambda r: {**r, "choices": [r["choices"][0]] * 2}, "not numbered"),
    "an index of true": (lambda r: choice(r, index=True), "no number"),
    "no token ids": (lambda r: choice(r, token_ids=None), "no token_ids"),
    "tokens as floats": (lambda r: choice(r, token_ids=[1.0]), "no list of token ids"),
    "a negative token": (lambda r: choice(r, token_ids=[-1]), "no list of token ids"),
    "no log-probabilities": (lambda r: choice(r, logprobs=None), "no logprobs"),
    "fewer log-probabilities": (lambda r: choice(r, logprobs={"content": []}), "but 0 log-probabilities"),
    "NaN": (log_prob(math.nan), "nan"),
    "infinity": (log_prob(-math.inf), "-inf"),
    "null": (log_prob(None), "no logprob"),
    "text": (log_prob("-1.0"), "'-1.0'"),
    "true": (log_prob(True), "True"),
    "above 1": (log_prob(0.5), "0.5"),
    "no probability": (log_prob(-9999.0), "-9999.0"),
    "nothing": (tokens(lambda ids: []), "holds nothing"),
    "too long": (tokens(lambda ids: [7] * 9), "longer than the 4"),
    "cut": (tokens(lambda ids: [7], finish_reason="length"), "not whole"),
    "aborted": (tokens(lambda ids: [7] * 4, finish_reason="abort"), "not whole: it ended by 'abort'"),
    "no end": (tokens(lambda ids: [7, 8], finish_reason="stop"), "without the end token"),
    "a token outside the vocabulary": (tokens(lambda ids: [2**30] * 4), "must not be sampled"),
    "a placeholder": (tokens(lambda ids: [-2, 7, 7, 7]), "must not be sampled"),
    "on after the end": (tokens(lambda ids: [7, -3, 7]), "goes on after its end"),
    "a list": (lambda r: [r], "no prompt_token_ids"),
    "an error with status 200": (lambda r: {"error": {"message": "overloaded"}}, "no prompt_token_ids"),
    "a page": (lambda r: "<html>busy</html>", "not JSON"),
    "half": (lambda r: '{"choices": [', "not JSON"),
}


@pytest.fixture(scope="module")
def steady(made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> EngineSampler:
    """A sampler whose adapter is loaded once for all tests."""
    return EngineSampler(made("llava")[1].url, str(tmp_path_factory.mktemp("adapters")), retries=0, timeout=60.0)


@pytest.mark.parametrize("name", SPOILED)
def test_a_reply_that_is_no_response_of_this_policy_is_refused(
    name: str, made: Callable[[str], Made], steady: EngineSampler
) -> None:
    policy, server = made("llava")
    change, words = SPOILED[name]
    special = {-2: policy.banned_ids[0], -3: policy.eos_id}

    def spoil(handler: Any, body: Reply, reply: Reply) -> Any:
        spoiled = change(reply)
        for one in spoiled.get("choices") or [] if isinstance(spoiled, dict) else []:
            if isinstance(one.get("token_ids"), list):
                one["token_ids"] = [special.get(i, i) for i in one["token_ids"]]
        return spoiled

    server.spoil = spoil
    with pytest.raises(EngineError, match=words) as refusal:
        one_rollout(policy, steady)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(server.url)


def one_rollout(policy: HFVLM, sampler: EngineSampler) -> None:
    draw(policy, prompts().take([2]), SamplingOptions(max_new_tokens=4), generator(0), 2, sampler=sampler)


def status(code: int) -> Callable[..., None]:
    return lambda handler, body, reply: handler.reply(code, {"error": {"message": "no"}})


def silent(handler: Any, body: Reply, reply: Reply) -> None:
    handler.server.released.wait(20)


def hang_up(handler: Any, body: Reply, reply: Reply) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (status(400), "rejected: .*400"), (status(401), "does not know the key|unauthorized"), (status(413), "rejected"),
        (status(429), "rate_limit"), (status(500), "server_error"), (status(503), "server_error"),
        (silent, "timeout: no whole reply within 0.3 s"), (hang_up, "connection"),
    ],
)  # fmt: skip
def test_a_server_that_gives_no_reply_ends_the_run(
    spoil: Any, words: str, made: Callable[[str], Made], steady: EngineSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, server = made("llava")
    one_rollout(policy, steady)  # the adapter is loaded
    server.spoil = spoil
    monkeypatch.setitem(steady.settings, "timeout", 0.3 if spoil is silent else 60.0)
    with pytest.raises(EngineError, match=words) as refusal:
        one_rollout(policy, steady)
    assert "\n" not in str(refusal.value)


def test_a_short_fault_is_waited_for(made: Callable[[str], Made], sampler_of: Any) -> None:
    policy, server = made("llava")
    tries = []

    def once(handler: Any, body: Reply, reply: Reply) -> Reply | None:
        tries.append(body["seed"])
        return handler.reply(503, {"error": "warming up"}) if len(tries) == 1 else reply

    server.spoil = once
    one_rollout(policy, sampler_of(server, retries=1))
    assert tries == tries[:1] * 2


def test_a_server_without_the_route_or_with_another_adapter_is_named(
    made: Callable[[str], Made], sampler_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, server = made("llava")
    sampler = sampler_of(server)
    one_rollout(policy, sampler)
    loaded = server.network.adapters.pop(sampler.adapter.name)  # restarted
    with pytest.raises(EngineError, match=f"not_found|does not know the model '{sampler.adapter.name}'"):
        one_rollout(policy, sampler)
    server.network.adapters[sampler.adapter.name] = loaded
    with pytest.raises(EngineError, match="cannot load the adapter"):
        one_rollout(policy, EngineSampler(f"{server.url}/elsewhere", str(sampler.adapter.folder), retries=0))


def test_a_policy_that_no_server_has_is_refused_before_the_first_step(
    made: Callable[[str], Made], sampler_of: Any
) -> None:
    policy, server = made("llava")
    sampler = sampler_of(server)
    sampler.check(policy, ())
    sampler.check(policy, [name for name in policy.state_dict() if "lora_" in name])
    base = str(server.network.base)
    cases = [
        (HFVLM(base, self_test=False), (), "lora settings"),
        (HFVLM(base, lora=LoraSettings(2, 4), freeze_projector=False, self_test=False), (), "multi_modal_projector"),
        (policy, ["model.lm_head.weight"], "changes model.lm_head.weight of its base"),
        (torch.nn.Linear(1, 1), (), "serves HFVLM, not Linear"),
    ]
    for network, started, words in cases:
        with pytest.raises(ValueError, match=words):
            sampler.check(network, started)
    policy.base, name = None, policy.base
    with pytest.raises(ValueError, match="random weights"):
        sampler.check(policy, ())
    policy.base = name
