"""An engine with the same weights gives what the policy's own network gives, and follows its adapter."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import Made, move, prompts
from tests.engine.server import EngineServer

from safe_rlhf_v.engine import EngineError, EngineSampler
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.policy.rollout import draw, generator
from safe_rlhf_v.policy.settings import UpdateSettings

OPTIONS = SamplingOptions(max_new_tokens=6)
KEY = "sk-THE-SECRET-KEY-0123456789"


def responses(
    policy: HFVLM, sampler: EngineSampler | None, options: SamplingOptions = OPTIONS, **more: Any
) -> Generation:
    return draw(policy, prompts(), options, generator(3), sampler=sampler, **more)[0]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_greedy_responses_are_those_of_the_network(family: str, made: Callable[[str], Made], sampler_of: Any) -> None:
    policy, server = made(family)
    greedy = SamplingOptions(max_new_tokens=6, temperature=0.0)
    own = responses(policy, None, greedy, samples=2)
    engine = responses(policy, sampler_of(server), greedy, samples=2)
    assert own.engine_log_probs is None
    assert engine.engine_log_probs is not None
    assert torch.equal(engine.tokens, own.tokens)
    assert torch.equal(engine.mask, own.mask)
    assert torch.equal(engine.finished, own.finished)
    assert engine.text == own.text
    torch.testing.assert_close(engine.engine_log_probs, own.log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(engine.log_probs, own.log_probs, rtol=1e-4, atol=1e-5)
    assert {body["n"] for body in server.asked("chat/completions")} == {1}  # of a greedy request vLLM refuses several


@pytest.mark.parametrize("family", ["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_sampled_responses_carry_the_engines_and_the_policys_log_probabilities(
    family: str, made: Callable[[str], Made], sampler_of: Any
) -> None:
    policy, server = made(family)
    sampler = sampler_of(server)
    first = responses(policy, sampler, samples=3, settings=UpdateSettings(micro_batch_size=1))
    assert first.engine_log_probs is not None
    assert first.tokens.shape[0] == len(first.text) == 9
    torch.testing.assert_close(first.engine_log_probs, first.log_probs, rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in first.tokens.tolist()}) > 3  # samples of one prompt differ
    assert not torch.isin(first.tokens[first.mask], torch.tensor(policy.banned_ids)).any()
    assert torch.equal(first.finished, (first.tokens == policy.eos_id).any(1) & first.mask.any(1))
    again = responses(policy, sampler, samples=3)
    assert again.text == first.text  # by the seeds of the requests
    other = draw(policy, prompts(), OPTIONS, generator(4), 3, sampler=sampler)[0]
    assert other.text != first.text


def test_prompts_keep_their_order_whichever_reply_comes_first(made: Callable[[str], Made], sampler_of: Any) -> None:
    policy, server = made("llava")
    expected = responses(policy, sampler_of(server, concurrency=1))
    others = threading.Semaphore(0)

    def late(handler: Any, body: dict[str, Any], reply: dict[str, Any]) -> None:
        if "Be brief." in json.dumps(body):
            assert others.acquire(timeout=60) and others.acquire(
                timeout=60
            )  # the first prompt is the last to be replied to
        handler.reply(200, reply)
        others.release()

    server.spoil = late
    assert responses(policy, sampler_of(server)).text == expected.text


def adapters(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_update_of_the_adapter_is_seen_in_the_next_rollout(
    made: Callable[[str], Made], sampler_of: Any, tmp_path: Path
) -> None:
    policy, server = made("llava")
    sampler = sampler_of(server)
    before = responses(policy, sampler)
    responses(policy, sampler)
    assert len(server.asked("load_lora_adapter")) <= 1  # not again while it has not changed
    (name,) = adapters(tmp_path / "adapters")
    move(policy, 1)
    after = responses(policy, sampler)
    assert after.engine_log_probs is not None
    torch.testing.assert_close(after.engine_log_probs, after.log_probs, rtol=1e-4, atol=1e-5)
    assert before.log_probs.shape != after.log_probs.shape or (before.log_probs - after.log_probs).abs().max() > 1e-2
    assert server.asked("unload_lora_adapter") == [{"lora_name": name}]
    assert adapters(tmp_path / "adapters") != [name]
    assert adapters(tmp_path / "adapters") == [sampler.adapter.name]


def test_what_others_wrote_stays_and_an_adapter_that_is_loaded_already_is_used(
    made: Callable[[str], Made], sampler_of: Any, tmp_path: Path
) -> None:
    policy, server = made("llava")
    responses(policy, sampler_of(server))
    (earlier,) = adapters(tmp_path / "adapters")  # of a run that has ended
    (tmp_path / "adapters" / "notes.txt").write_text("mine")
    resumed = sampler_of(server)
    responses(policy, resumed)
    assert resumed.adapter.name == earlier
    move(policy, 2)
    responses(policy, resumed)
    assert {earlier, "notes.txt"} < {*adapters(tmp_path / "adapters")}


def test_the_key_is_sent_and_stands_nowhere_else(
    made: Callable[[str], Made], sampler_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, server = made("llava")
    monkeypatch.setenv("TEST_ENGINE_KEY", KEY)
    server.keys.clear()
    sampler = sampler_of(server, key_variable="TEST_ENGINE_KEY")
    responses(policy, sampler)
    assert server.keys == {f"Bearer {KEY}"}

    def repeat(handler: Any, body: dict[str, Any], reply: dict[str, Any]) -> None:
        handler.reply(403, {"error": {"message": f"no, {handler.headers['Authorization']}"}})

    server.spoil = repeat
    with pytest.raises(EngineError, match="403") as refusal:
        responses(policy, sampler)
    assert KEY not in str(refusal.value) + repr(vars(sampler))
    monkeypatch.delenv("TEST_ENGINE_KEY")
    with pytest.raises(EngineError, match="TEST_ENGINE_KEY holds no key"):
        responses(policy, sampler)
    with pytest.raises(ValueError, match="never the key itself"):
        sampler_of(server, key_variable=KEY)


@pytest.fixture
def server(made: Callable[[str], Made]) -> EngineServer:
    return made("llava")[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    settings: dict[str, Any], words: str, server: EngineServer, sampler_of: Any
) -> None:
    with pytest.raises(ValueError, match=words):
        sampler_of(server, **settings)


@pytest.mark.parametrize(
    ("address", "folder", "words"),
    [
        ("127.0.0.1:8000", "x", "base_url"),
        ("http://me:key@host/v1", "x", "no user"),
        ("http://host/v1", "", "adapter_folder"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(address: str, folder: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineSampler(address, folder)
