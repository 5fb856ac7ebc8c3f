"""The client of the ``openai`` package with bounds: plain bodies that end, no redirects, and nothing sent but what is asked."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

MAX_REPLY_BYTES = 8 << 20
"""The longest replies of models are below a megabyte."""
_HEADERS = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "transfer-encoding",
        "user-agent",
    )
)
"""What is sent beside the key. The package adds what it finds in the environment (``OPENAI_CUSTOM_HEADERS``, the organisation),
which may be another provider's secret."""


class UnreadableError(OpenAIError):
    """A body that is not read; another try would not mend it."""

    def __init__(self, kind: Literal["too_large", "garbled"], message: str) -> None:
        """Keep the kind.

        Args:
            kind: The kind of reply that this is.
            message: What is wrong with the body.
        """
        super().__init__(message)
        self.kind = kind


class _Bounded(httpx2.AsyncByteStream):
    """A body of which at most :data:`MAX_REPLY_BYTES` are read."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise UnreadableError("too_large", f"the body is larger than {MAX_REPLY_BYTES >> 20} MB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    """Bound a plain body, and refuse a compressed one, which may unfold to any size."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnreadableError(
            "garbled", f"the body is compressed ({encoding!r:.40}) although a plain one was asked for"
        )
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream)


def _only_asked(key: str | None) -> Callable[[httpx2.Request], Awaitable[None]]:
    """A hook that leaves no header in a request but the usual ones and this key."""

    async def strip(request: httpx2.Request) -> None:
        for name in {*request.headers} - _HEADERS:
            if not name.startswith("x-stainless-"):  # the package's own notes, which it reads again
                del request.headers[name]
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"

    return strip


def bounded_client(base_url: str, key: str | None, timeout: float, retries: int) -> AsyncOpenAI:
    """A client whose replies are bounded and that follows no redirect, which could carry pictures to another host.

    Args:
        base_url: See :class:`~safe_rlhf_v.construct.endpoint.Endpoint`.
        key: The key, if the server asks for one.
        timeout: Seconds that connecting, sending and each wait for data may take.
        retries: Further tries after a failed one.
    """
    return AsyncOpenAI(
        api_key=key or "none",
        base_url=base_url,
        timeout=timeout,
        max_retries=retries,
        default_headers={"Accept-Encoding": "identity"},
        http_client=DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"request": [_only_asked(key)], "response": [_bound]}
        ),
    )
