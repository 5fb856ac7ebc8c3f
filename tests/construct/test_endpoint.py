"""Endpoints: every outcome has its class, nothing hangs, nothing is lost, and the key is nowhere."""

import asyncio
import base64
import json
import logging
import pickle
import sys
from dataclasses import asdict

import pytest
from tests.construct.misbehaving_server import BODIES, misbehaving_server

from safe_rlhf_v.construct.endpoint import Endpoint, EndpointError
from safe_rlhf_v.construct.replies import FAILURES, Message, Reply, Request, chat_message

KEY = "sk-THE-SECRET-KEY-0123456789"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with misbehaving_server() as running:
        yield running


def endpoint(server, **settings):
    settings = {"key_variable": "TEST_ENDPOINT_KEY", "retries": 0, "timeout": 60.0, "give_up_after": 1000, **settings}
    return Endpoint("tiny", server.url, **settings)


def asked(*behaviours):
    return [Request(f"{i}", (Message("user", f"please be {name}"),)) for i, name in enumerate(behaviours)]


def one(server, behaviour, **settings) -> Reply:
    (reply,) = endpoint(server, **settings).replies(asked(behaviour))
    check(reply)
    return reply


def check(reply):
    assert reply.failed == (reply.kind in FAILURES)
    assert (reply.text is not None) == (reply.kind in ("complete", "truncated"))
    assert bool(reply.error) == reply.failed
    assert "\n" not in reply.error


OUTCOMES = dict(
    [
        ("fine", "complete"), ("parts", "complete"), ("emoji", "complete"), ("html", "complete"), ("no_type", "complete"),
        ("uncounted", "complete"), ("nonsense_usage", "complete"), ("long", "truncated"), ("refusal", "refused"), ("filter", "filtered"), ("blank", "empty"),
        ("null", "empty"), ("thinking", "empty"), ("tool", "empty"), ("choices", "garbled"), ("no_choices", "garbled"),
        ("odd_choices", "garbled"), ("no_message", "garbled"), ("number", "garbled"), ("surrogate", "garbled"),
        ("error_200", "garbled"), ("empty_body", "garbled"), ("garbage", "garbled"), ("half", "garbled"), ("deep", "garbled"),
        ("list", "garbled"), ("digits", "garbled"), ("page", "garbled"), ("bomb", "garbled"), ("huge", "too_large"),
        ("cut", "connection"), ("cut_inside", "connection"), ("400", "rejected"), ("detail", "rejected"), ("403", "rejected"), ("413", "rejected"),
        ("redirect", "rejected"), ("422", "rejected"), ("408", "timeout"), ("429", "rate_limit"), ("500", "server_error"),
        ("503", "server_error"), ("529", "server_error"),
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes():
    """The kinds of all replies, asked at once."""
    with pytest.MonkeyPatch.context() as patch, misbehaving_server() as running:
        patch.setenv("TEST_ENDPOINT_KEY", KEY)
        replies = list(endpoint(running).replies(Request(name, asked(name)[0].messages) for name in OUTCOMES))
        assert len(replies) == len(OUTCOMES)
        assert "redirected" not in running.tries, "a redirect was followed"
        return {reply.key: reply for reply in replies}


@pytest.mark.parametrize("behaviour", OUTCOMES)
def test_each_outcome_has_its_class(outcomes, behaviour):
    check(outcomes[behaviour])
    assert outcomes[behaviour].kind == OUTCOMES[behaviour]


def test_every_body_of_the_server_is_tried():
    assert set(BODIES) <= set(OUTCOMES)


def test_a_reply_says_what_it_used(server):
    reply = one(server, "fine")
    assert (reply.text, reply.finish_reason, reply.model) == ("fine", "stop", "served")
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 3)
    unknown = one(server, "nonsense_usage")
    assert (unknown.kind, unknown.prompt_tokens, unknown.completion_tokens) == ("complete", None, None)
    assert "pinned to another model" in one(server, "detail").error
    assert one(server, "refusal").refusal == "I cannot help with that."
    priced = endpoint(server, price_in=2.0, price_out=10.0)
    assert priced.usage(reply) == (10, 3, pytest.approx((10 * 2 + 3 * 10) / 1e6))
    assert priced.usage(unknown) == priced.usage(one(server, "500")) == (0, 0, 0)


@pytest.mark.parametrize("behaviour", ["slow", "drip"])
def test_a_server_that_never_ends_its_reply_is_left(server, behaviour):
    assert one(server, behaviour, timeout=0.3).kind == "timeout"


@pytest.mark.parametrize(("behaviour", "tries"), [("429x2", 3), ("500x1", 2), ("503x2", 3), ("408x1", 2)])
def test_what_may_pass_is_tried_again(server, behaviour, tries):
    assert one(server, behaviour, retries=2).kind == "complete"
    assert server.tries[behaviour] == tries


def test_a_slow_try_is_followed_by_another(server):
    assert one(server, "slow_once", retries=1, timeout=1.5).kind == "complete"
    assert server.tries["slow_once"] == 2


@pytest.mark.parametrize(("behaviour", "kind"), [("429", "rate_limit"), ("cut_inside", "connection")])
def test_the_tries_end(server, behaviour, kind):
    assert one(server, behaviour, retries=1).kind == kind
    assert server.tries[behaviour] == 2


@pytest.mark.parametrize("behaviour", ["400", "422", "garbage", "huge", "refusal"])
def test_what_will_not_pass_is_not_tried_again(server, behaviour):
    one(server, behaviour, retries=3)
    assert server.tries[behaviour] == 1


def test_nobody_there_is_a_failed_connection(server):
    url = server.url
    server.server_close()
    (reply,) = Endpoint("tiny", url, retries=0).replies(asked("fine"))
    assert reply.kind == "connection"


def test_requests_are_read_as_they_can_be_sent_and_none_is_lost(server):
    read = []

    def source():
        for request in asked(*["nap", "400", "cut", "fine"] * 6):
            read.append(request.key)
            yield request

    keys = []
    for reply in endpoint(server, concurrency=3).replies(source()):
        keys.append(reply.key)
        assert len(read) <= len(keys) + 3
    assert sorted(keys, key=int) == [str(i) for i in range(24)]
    assert 1 < server.most_at_once <= 3


def test_asynchronous_code_gets_the_same(server):
    async def ask():
        return [reply async for reply in endpoint(server).ask(asked("fine", "long"))]

    assert sorted(reply.kind for reply in asyncio.run(ask())) == ["complete", "truncated"]


def test_who_stops_early_leaves_nothing_behind(server):
    replies = endpoint(server).replies(asked("fine", *["slow"] * 7))
    assert next(replies).kind == "complete"
    replies.close()  # does not wait for the slow ones


def test_nothing_to_ask_asks_nothing(server):
    assert list(endpoint(server).replies([])) == []
    assert not server.requests


def test_pictures_are_sent_as_they_are(server):
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    messages = (
        Message("system", "be brief"),
        Message("user", "first", (png, b"\xff\xd8\xff\xe0jpg")),
        Message("assistant", "yes"),
        Message("user", "now fine", (b"RIFF\x00\x00\x00\x00WEBPVP8 ",)),
    )
    list(endpoint(server, extra={"seed": 3}, temperature=0.5, max_tokens=9).replies([Request("k", messages)]))
    (request,) = server.requests
    body = request["body"]
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("tiny", 0.5, 9, 3)
    assert request["path"] == "/v1/chat/completions"
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    parts = body["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert base64.b64decode(parts[0]["image_url"]["url"].removeprefix("data:image/png;base64,")) == png
    assert parts[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert body["messages"][3]["content"][0]["image_url"]["url"].startswith("data:image/webp;base64,")


@pytest.mark.parametrize(
    "message",
    [
        Message("user", "x", (b"GIF89a",)), Message("user", "x", (b"",)), Message("user", "\ud800"),
        Message("assistant", "x", (b"\xff\xd8\xff",)), Message("system", "x", (b"\xff\xd8\xff",)),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_sent_is_refused(message):
    with pytest.raises(ValueError, match=r"picture|surrogate"):
        chat_message(message)


def test_a_fault_of_the_caller_is_raised_after_what_was_in_flight(server):
    requests = [*asked("nap"), Request("bad", (Message("user", "x", (b"no picture",)),)), *asked("fine")]
    replies = []
    with pytest.raises(ValueError, match="10 bytes is not a JPEG"):
        replies.extend(endpoint(server).replies(requests))
    replies = endpoint(server).replies(requests)
    assert next(replies).kind == "complete"
    with pytest.raises(ValueError, match="not a JPEG"):
        next(replies)


@pytest.mark.parametrize(
    ("behaviour", "what"), [("401", "does not know the key in TEST_ENDPOINT_KEY"), ("404", "the model 'tiny'")]
)
def test_an_endpoint_that_knows_neither_key_nor_model_is_left_at_once(server, behaviour, what):
    replies = endpoint(server, concurrency=2).replies(asked("nap", *[behaviour] * 50))
    kinds = []
    with pytest.raises(EndpointError, match=what):
        kinds.extend(reply.kind for reply in replies)
    assert server.tries[behaviour] <= 2


def test_an_endpoint_that_keeps_failing_is_given_up(server):
    replies = endpoint(server, concurrency=2, give_up_after=5).replies(asked(*["500"] * 4, "fine", *["500"] * 50))
    keys = []
    with pytest.raises(EndpointError, match=r"failed \d times in a row, last: server_error"):
        for reply in replies:
            keys.append(reply.key)
    assert 5 <= len(keys) <= 12
    assert server.tries["500"] < 15


def test_the_key_is_nowhere(server, caplog, capfd, tmp_path):
    """Not in replies, errors, logs at the lowest level, representations or pickles."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="openai")
    asking = endpoint(server, concurrency=3)
    replies = list(asking.replies(asked("fine", "echo", "400", "429", "500", "cut", "garbage", "refusal", "403")))
    texts = [json.dumps([asdict(reply) for reply in replies]), repr(replies), repr(asking), str(vars(asking))]
    with pytest.raises(EndpointError) as caught:
        list(asking.replies(asked("401")))
    texts += [str(caught.value), repr(caught.getrepr(showlocals=False)), pickle.dumps(asking).decode("latin-1")]
    output = capfd.readouterr()
    texts += [caplog.text, output.out, output.err]
    assert any("[key]" in text for text in texts), "the server repeated the key, so it was taken out somewhere"
    assert not [text for text in texts if KEY in text or KEY[3:] in text]
    assert all(request["headers"]["authorization"] == f"Bearer {KEY}" for request in server.requests)


@pytest.mark.parametrize("value", [None, "", "  \n", "sk-with\nbreak-in-it", "sk-with space", "sk-ключ-1234567"])
def test_a_key_that_is_none_is_told_by_the_name_of_its_variable(server, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("TEST_ENDPOINT_KEY")
    else:
        monkeypatch.setenv("TEST_ENDPOINT_KEY", value)
    with pytest.raises(EndpointError, match="the environment variable TEST_ENDPOINT_KEY holds") as caught:
        list(endpoint(server).replies(asked("fine")))
    assert not (value or "").strip() or value.strip() not in str(caught.value)
    assert not server.requests


def test_white_space_around_a_key_is_no_part_of_it(server, monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", f" {KEY}\n")
    assert one(server, "fine").kind == "complete"


@pytest.mark.parametrize(
    "settings",
    [
        {"key_variable": KEY}, {"key_variable": "sk_lowercase_key"}, {"key_variable": ""}, {"key_variable": "K" * 65},
        {"base_url": f"http://user:{KEY}@h/v1"}, {"base_url": f"http://h/v1?api-key={KEY}"}, {"extra": {"api_key": KEY}},
        {"extra": {"Authorization": KEY}}, {"extra": {"extra_headers": {}}},
    ],
)  # fmt: skip
def test_a_key_in_the_settings_is_refused_and_not_repeated(settings):
    with pytest.raises(ValueError, match="key") as caught:
        Endpoint(**{"model": "tiny", "base_url": "http://h/v1", **settings})
    assert KEY not in str(caught.value)
    assert "lowercase" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"model": " "}, "model"), ({"base_url": "host/v1"}, "base_url"), ({"base_url": "ftp://h"}, "base_url"),
        ({"base_url": "http://"}, "base_url"), ({"base_url": "http://[::1"}, "base_url"), ({"base_url": "http://h:0"}, "base_url"),
        ({"base_url": "http://h:99999"}, "base_url"),
        ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"max_tokens": 0}, "max_tokens"),
        ({"concurrency": 0}, "concurrency"), ({"timeout": 0}, "timeout"), ({"timeout": float("inf")}, "timeout"),
        ({"retries": -1}, "retries"), ({"price_in": -1}, "price_in"), ({"price_out": float("nan")}, "price_out"),
        ({"give_up_after": 0}, "give_up_after"), ({"extra": {"n": 2}}, "'n'"), ({"extra": {"stream": True}}, "stream"),
        ({"extra": {"x": float("nan")}}, "JSON"), ({"extra": {"x": object()}}, "JSON"), ({"extra": {"x": "\ud800"}}, "JSON"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        Endpoint(**{"model": "tiny", "base_url": "http://h/v1", **settings})


def test_what_is_left_to_the_endpoint_is_not_sent(server):
    one(server, "fine", temperature=None, max_tokens=None, key_variable=None, extra={"prompt_cache_key": "a"})
    body = server.requests[0]["body"]
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert body["prompt_cache_key"] == "a"
    assert "authorization" not in server.requests[0]["headers"]


@pytest.mark.parametrize("variable", [None, "TEST_ENDPOINT_KEY"])
def test_other_secrets_of_the_environment_are_not_sent(server, monkeypatch, variable):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, f"other-secret-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Provider-Key: other-secret-a\nAuthorization: Bearer other-secret-b")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/elsewhere")
    assert one(server, "fine", key_variable=variable).kind == "complete"
    (request,) = server.requests
    assert "other-secret" not in repr(request)
    assert request["headers"].get("authorization") == (f"Bearer {KEY}" if variable else None)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "safe_rlhf_v.construct.bounded", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"endpoints need the package openai: pip install '\.\[construct\]'"):
        list(Endpoint("tiny", "http://127.0.0.1:9/v1").replies([]))


def test_no_part_of_a_key_is_left_where_a_long_error_is_cut(server):
    replies = list(endpoint(server).replies(asked(*(f"pad{length}" for length in range(210, 300, 4)))))
    assert {reply.kind for reply in replies} == {"rejected"}
    assert any("[key]" in reply.error for reply in replies)
    assert any(reply.error.endswith("x") for reply in replies)
    assert not any(KEY[:4] in reply.error for reply in replies)
    assert all(len(reply.error) <= 300 for reply in replies)


def test_an_error_does_nothing_to_a_terminal(server):
    error = one(server, "pad3").error
    assert error.isprintable()
    assert "[31m" in error
