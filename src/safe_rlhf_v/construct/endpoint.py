"""The only client of OpenAI-compatible endpoints: asynchronous, patient, and silent about its key."""

import asyncio
import json
import math
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from safe_rlhf_v.construct.families import model_families
from safe_rlhf_v.construct.replies import Kind, Reply, Request, chat_message, read_completion
from safe_rlhf_v.records.packages import PackageError, package
from safe_rlhf_v.scoring.judge import Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Upper case only, so that a key that was put here by mistake is told from a name.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_OWN_FIELDS = frozenset(("model", "messages", "temperature", "max_tokens", "n", "stream"))
_SECRET = re.compile(r"api_?key|authorization|bearer|password|secret|header|^token$", re.IGNORECASE)
_LONGEST_WAIT = 120.0
"""Seconds that the package waits at most when a server asks it to."""
_LEAST_KEY = 8
"""Letters of the shortest key that is taken out of texts: ``EMPTY`` and ``none`` are no secrets."""
_LONGEST_ERROR = 300
_STATUS: dict[int, Kind] = {401: "unauthorized", 404: "not_found", 408: "timeout", 429: "rate_limit"}


class EndpointError(RuntimeError):
    """The endpoint cannot be used as it is configured, or keeps failing; the message never holds the key."""


class Endpoint:
    r"""A model behind an OpenAI-compatible chat-completions interface.

    The ``openai`` package tries again after time-outs, cut connections, 408, 409, 429 and 5xx, after growing waits or the wait
    that the server asks for (``Retry-After``, up to two minutes). Every request ends as one
    :class:`~safe_rlhf_v.construct.replies.Reply`, whose ``kind`` says how.

    Example::

        endpoint = Endpoint("Qwen/Qwen2.5-VL-7B-Instruct", "http://127.0.0.1:8000/v1")
        for reply in endpoint.replies(Request(key, messages) for key, messages in todo):
            file.write(json.dumps(asdict(reply)) + "\n")

    YAML::

        class_path: safe_rlhf_v.construct.Endpoint
        init_args: {model: gpt-4o-2024-08-06, base_url: https://api.openai.com/v1, key_variable: OPENAI_API_KEY}
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key_variable: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 1024,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        give_up_after: int = 20,
        price_in: float = 0.0,
        price_out: float = 0.0,
        families: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the settings; nothing is asked and no key is read before the first request.

        Args:
            model: Name of the model as the endpoint knows it.
            base_url: Address of the interface, to which ``/chat/completions`` is added.
            key_variable: Environment variable that holds the key; none for a server that asks for no key.
            temperature: Sampling temperature; none leaves it to the endpoint.
            max_tokens: Longest reply, in tokens; none leaves it to the endpoint.
            concurrency: Requests in flight at once.
            timeout: Seconds that one try may take.
            retries: Further tries after a failed one.
            give_up_after: Requests that fail one after another before the endpoint is given up.
            price_in: Price of a million tokens of prompts, in a currency of yours.
            price_out: Price of a million tokens of replies.
            families: Families of models it descends from; by default read from its name.
            extra: Further fields of each request (``{seed: 1}``, ``{max_completion_tokens: 4096}``).

        Raises:
            ValueError: If a setting cannot be used.
        """
        if not model.strip():
            raise ValueError("model must name the model")
        _check_address(base_url)
        # A value that is refused is not repeated: it may be the key itself.
        if key_variable is not None and not _VARIABLE.fullmatch(key_variable):
            raise ValueError(
                "key_variable must be the name of an environment variable (A-Z, 0-9 and _), never the key itself"
            )
        _check_at_least(0, temperature=temperature, retries=retries, price_in=price_in, price_out=price_out)
        _check_at_least(1, max_tokens=max_tokens, concurrency=concurrency, give_up_after=give_up_after)
        _check_at_least(1e-3, timeout=timeout)
        _check_extra(extra or {})
        self.model = model
        self.base_url = base_url
        self.key_variable = key_variable
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.give_up_after = give_up_after
        self.price_in = price_in
        self.price_out = price_out
        self.families = frozenset(families) if families else model_families(model)
        self.extra = dict(extra or {})

    async def ask(self, requests: Iterable[Request]) -> AsyncGenerator[Reply, None]:
        """Ask and give each reply as it comes, in the order of arrival; ``Reply.key`` says to which request it belongs.

        Requests are taken from the iterable as they can be sent, so it may read its pictures then. Whoever stops early gives up
        the requests in flight.

        Args:
            requests: What to ask; the keys are unique.

        Raises:
            EndpointError: If the key is missing, if the endpoint knows neither the key nor the model, or after too many failures
                in a row. What was in flight is given first.
        """
        key = self._key()
        source = iter(requests)
        running: set[asyncio.Task[Reply]] = set()
        failures = 0
        fault: Exception | None = None
        async with self._client(key) as client:
            try:
                while True:
                    while fault is None and len(running) < self.concurrency:
                        try:  # the caller's pictures are read here; if that fails, what is in flight is paid for and given first
                            request = next(source, None)
                            body = request and self._body(request)
                        except Exception as error:
                            fault = error
                            break
                        if request is None or body is None:
                            break
                        running.add(asyncio.create_task(self._reply(client, request.key, body, key)))
                    if not running:
                        break
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for reply in (task.result() for task in done):
                        failures = failures + 1 if reply.failed else 0
                        fault = fault or self._hopeless(reply, failures)
                        yield reply
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        if fault is not None:
            raise fault

    def replies(self, requests: Iterable[Request]) -> Generator[Reply, None, None]:
        """:meth:`ask` for code that is not asynchronous.

        Args:
            requests: See :meth:`ask`.

        Raises:
            EndpointError: See :meth:`ask`.
        """
        with asyncio.Runner() as runner:
            stream = self.ask(requests)

            async def next_reply() -> Reply | None:
                return await anext(stream, None)

            try:
                while (reply := runner.run(next_reply())) is not None:
                    yield reply
            finally:
                runner.run(stream.aclose())

    def post(self, path: str, body: Mapping[str, Any]) -> Reply:
        """Ask another route of the same server once, as patiently; the reply is complete if the status is 200, without its text.

        Args:
            path: Added to the address.
            body: Sent as JSON.

        Raises:
            EndpointError: If the key is missing.
        """

        async def run() -> Reply:
            key = self._key()
            async with self._client(key) as client:

                async def call() -> Reply:
                    await client.post(path, cast_to=object, body=dict(body))
                    return Reply(path, "complete")

                return _clean(await self._outcome(path, call), key)

        with asyncio.Runner() as runner:
            return runner.run(run())

    def read(self, key: str, body: bytes) -> Reply:
        """The reply in the body of a chat completion; a subclass may read more of it.

        Args:
            key: The request's key.
            body: Of the endpoint's 200 response.
        """
        return read_completion(key, body)

    def usage(self, reply: Reply) -> Usage:
        """Tokens and price of a reply, new or stored; what the endpoint does not count is 0.

        Args:
            reply: A reply of this endpoint.
        """
        prompt = reply.prompt_tokens or 0
        completion = reply.completion_tokens or 0
        return Usage(prompt, completion, (prompt * self.price_in + completion * self.price_out) / 1e6)

    def _key(self) -> str | None:
        """The key from the environment; it is never kept."""
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise EndpointError(
                f"the environment variable {self.key_variable} holds no key for {self.base_url}; export it"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise EndpointError(f"the environment variable {self.key_variable} holds characters that no key has")
        return key

    def _client(self, key: str | None) -> "AsyncOpenAI":
        try:
            bounded = package("safe_rlhf_v.construct.bounded", "construct")
        except PackageError as error:
            raise EndpointError(str(error).replace("this needs", "endpoints need")) from None
        client: AsyncOpenAI = bounded.bounded_client(self.base_url, key, self.timeout, self.retries)
        return client

    def _body(self, request: Request) -> dict[str, Any]:
        """The fields of a request."""
        fields: dict[str, Any] = {"model": self.model, "messages": [chat_message(m) for m in request.messages]}
        if self.temperature is not None:
            fields["temperature"] = self.temperature
        if self.max_tokens is not None:
            fields["max_tokens"] = self.max_tokens
        return fields | dict(request.fields)

    async def _reply(self, client: "AsyncOpenAI", name: str, body: dict[str, Any], key: str | None) -> Reply:
        """The outcome of one request, the key taken out of whatever the server sent."""

        async def call() -> Reply:
            raw = await client.chat.completions.with_raw_response.create(**body, extra_body=self.extra)
            return self.read(name, raw.content)

        return _clean(await self._outcome(name, call), key)

    async def _outcome(self, name: str, call: Callable[[], Awaitable[Reply]]) -> Reply:
        """What a call gives, or how it failed."""
        import openai  # here, because the package is optional

        # The package's time-outs hold for each wait for data: a server that sends one byte a second needs a limit of its own.
        limit = (self.retries + 1) * self.timeout + self.retries * _LONGEST_WAIT
        try:
            async with asyncio.timeout(limit):
                return await call()
        except (TimeoutError, openai.APITimeoutError):
            return Reply(
                name, "timeout", error=f"no whole reply within {self.timeout:g} s, {self.retries} retries included"
            )
        except openai.APIStatusError as error:
            kind = _STATUS.get(error.status_code, "server_error" if error.status_code >= 500 else "rejected")
            # The package repeats messages of one form only.
            detail = "" if " - " in error.message else error.response.text
            return Reply(name, kind, error=_line(f"{error.message} {detail}"))
        except openai.APIConnectionError as error:
            return Reply(name, "connection", error=_line(f"{error.message} {error.__cause__ or ''}"))
        except openai.OpenAIError as error:
            return Reply(name, getattr(error, "kind", "garbled"), error=_line(str(error)))

    def _hopeless(self, reply: Reply, failures: int) -> EndpointError | None:
        """Why no further request can succeed, or ``None``.

        Args:
            reply: The newest reply.
            failures: How many failed in a row, this one included.
        """
        if reply.kind in ("unauthorized", "not_found"):
            what = f"the key in {self.key_variable}" if reply.kind == "unauthorized" else f"the model {self.model!r}"
            return EndpointError(f"{self.base_url} does not know {what}: {reply.error}")
        if failures >= self.give_up_after:
            return EndpointError(f"{self.base_url} failed {failures} times in a row, last: {reply.kind}: {reply.error}")
        return None


def _clean(reply: Reply, key: str | None) -> Reply:
    """The reply without the key, and with a short error."""
    if key is not None and len(key) >= _LEAST_KEY:
        texts = ("text", "finish_reason", "refusal", "error", "model")
        clean = {field: value.replace(key, "[key]") for field in texts if (value := getattr(reply, field))}
        reply = replace(reply, **clean)
    # Cut last: of a key that stands at the cut a part would be left.
    return replace(reply, error=reply.error[:_LONGEST_ERROR])


def _line(text: str) -> str:
    """A message of others as one line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))


def _check_address(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError("base_url is not an address such as https://host/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "base_url must hold no user, password or parameters: the key belongs into the variable key_variable names"
        )
    if not usable:
        raise ValueError(f"base_url {base_url!r:.100} is not an address such as https://host/v1")


def _check_at_least(least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} is {value}; it must be at least {least:g}")


def _check_extra(extra: Mapping[str, Any]) -> None:
    try:
        json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"extra cannot be sent as JSON: {error}") from None
    for name in extra:
        if name in _OWN_FIELDS:
            raise ValueError(
                f"extra must not hold {name!r}: it is an option of its own, or would change what a reply is"
            )
        if _SECRET.search(name):
            raise ValueError(
                f"extra must not hold {name!r}: keys belong into the environment variable that key_variable names"
            )
