"""The only client of OpenAI-compatible endpoints: asynchronous, patient, and silent about its key."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from safe_rlhf_v.construct.families import model_families
from safe_rlhf_v.construct.replies import Reply, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class EndpointError(RuntimeError):
    """The endpoint cannot be used as it is configured, or keeps failing; the message never holds the key."""


class Usage(NamedTuple):
    """What some replies used.

    Attributes:
        replies: How many there are, failures included.
        prompt_tokens: Tokens of the prompts.
        completion_tokens: Tokens of the replies.
        uncounted: Replies that came without a count of tokens, so that the sums are too low.
        cost: Price of the counted tokens.
    """

    replies: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    cost: float


class Endpoint:
    """A model behind an OpenAI-compatible chat-completions interface.

    Requests are tried again by the ``openai`` package after time-outs, cut connections, 408, 409, 429 and 5xx, with growing waits
    or the wait that the server asks for (``Retry-After``, up to two minutes). Every request ends as one
    :class:`~safe_rlhf_v.construct.replies.Reply`, whose ``kind`` says how.

    Example::

        endpoint = Endpoint("Qwen/Qwen2.5-VL-7B-Instruct", "http://127.0.0.1:8000/v1", key_variable=None)
        for reply in endpoint.replies(Request(key, messages) for key, messages in todo):
            file.write(json.dumps(asdict(reply)) + "\\n")

    YAML::

        class_path: safe_rlhf_v.construct.Endpoint
        init_args: {model: gpt-4o-2024-08-06, base_url: https://api.openai.com/v1, key_variable: OPENAI_API_KEY, temperature: 0}
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
        ...

    async def ask(self, requests: Iterable[Request]) -> AsyncIterator[Reply]:
        """Ask and give each reply as it comes, in the order of arrival; ``Reply.key`` says to which request it belongs.

        Requests are taken from the iterable as they can be sent, so it may read its pictures then. Whoever stops early gives up
        the requests in flight.

        Args:
            requests: What to ask; the keys are unique.

        Raises:
            EndpointError: If the key is missing, if the endpoint knows neither the key nor the model, or after too many failures
                in a row. What was in flight is still given first.
        """
        yield Reply("", "empty")

    def replies(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """:meth:`ask` for code that is not asynchronous.

        Args:
            requests: See :meth:`ask`.

        Raises:
            EndpointError: See :meth:`ask`.
        """
        ...

    def usage(self, replies: Iterable[Reply]) -> Usage:
        """Tokens and cost of replies, new or stored.

        Args:
            replies: Replies of this endpoint.
        """
        ...
