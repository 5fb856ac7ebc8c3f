"""A policy that responds to conversations of inspect: which options it honours, its batches, its random numbers, its counts."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from safe_rlhf_v.inspecting.gathering import Gathered
from safe_rlhf_v.inspecting.messages import record_of
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.records import Record

DRAW = "draw"
"""Name in the metadata of the last message: any text; other texts are other draws of the response."""
MAX_TOKENS = 64
HONOURED = ("temperature", "top_p", "max_tokens", "seed")
HARNESS = frozenset({
    "adaptive_connections", "attempt_timeout", "cache", "fail_on_refusal", "max_connections", "max_retries", "max_tool_output",
    "stream_idle_timeout", "system_message", "timeout",
})  # fmt: skip
"""Options that inspect itself carries out."""


class Asked(NamedTuple):
    """One request.

    Attributes:
        record: The conversation.
        options: How to sample.
        seed: Of the random numbers.
        draw: Which draw this is.
    """

    record: Record
    options: SamplingOptions
    seed: int
    draw: str


class Responded(NamedTuple):
    """One response.

    Attributes:
        text: The response.
        prompt_tokens: Tokens of the conversation, those of the pictures included.
        response_tokens: Tokens that were sampled, the end token included.
        finished: Whether it ended by itself; else it reached the most tokens.
        fault: Why there is no response; "" with one.
    """

    text: str
    prompt_tokens: int
    response_tokens: int
    finished: bool
    fault: str = ""


def sampling_of(config: Any) -> SamplingOptions:
    """How to sample by inspect's options of a generation.

    Args:
        config: ``GenerateConfig``; without a temperature it is 1, without ``max_tokens`` :data:`MAX_TOKENS`.

    Raises:
        ValueError: If an option is set that this model does not honour, or to a value that it cannot have.
    """
    named = config.model_dump(exclude_none=True)
    unknown = [
        name for name, value in named.items() if name not in HONOURED and name not in HARNESS and value is not False
    ]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: this model honours {', '.join(HONOURED)}; leave the others out")
    seed = named.get("seed", 0)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, it must be in 0..2^63-1")
    return SamplingOptions(named.get("max_tokens", MAX_TOKENS), named.get("temperature", 1.0), named.get("top_p", 1.0))


class Policy:
    """A loaded policy. A response depends on the seed, the conversation and the number of the draw, not on the batch."""

    def __init__(
        self,
        source: str,
        device: str = "auto",
        trust: Sequence[str] = (),
        base: str | None = None,
        batch_size: int = 16,
    ) -> None:
        """Load it.

        Args:
            source: Run folder of any stage that trains a policy, or the folder or hub name of a model, exported or not.
            device: Where it runs: auto (a GPU if there is one), cpu, cuda or cuda:N.
            trust: Packages of yours whose classes a run may name, beside this library's.
            base: Folder or hub name of the pretrained model, in place of the one that a run names.
            batch_size: Most conversations at a time.

        Raises:
            CheckpointError: If it cannot be read, or is no policy.
            ValueError: If an option has an impossible value.
        """
        from safe_rlhf_v.training.devices import find_device
        from safe_rlhf_v.training.runs import load_backbone

        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
        place = find_device(device)
        self.batch_size = batch_size
        self._network: Any = load_backbone(source, trust=trust, base=base).to(place)
        self._gathered: Gathered[Asked, Responded] = Gathered(self.responses, batch_size)
        self._times: Counter[bytes] = Counter()

    async def respond(self, messages: Sequence[Any], config: Any) -> Responded:
        """The response to a conversation; waiting requests with the same options run as one batch.

        The same conversation asked again is another draw, so that the epochs of an evaluation differ.

        Args:
            messages: Chat messages of inspect.
            config: ``GenerateConfig``.

        Raises:
            ValueError: If the conversation or an option is none that this model can take.
        """
        options = sampling_of(config)
        record = record_of(messages)
        content = record.to_json()
        draw = (getattr(messages[-1], "metadata", None) or {}).get(DRAW, self._times[content])
        self._times[content] += 1
        digest = hashlib.sha256(content).hexdigest()
        responded = await self._gathered.ask(Asked(record, options, config.seed or 0, f"{digest}/{draw}"), options)
        if responded.fault:
            raise ValueError(responded.fault)
        return responded

    def responses(self, requests: Sequence[Asked]) -> list[Responded]:
        """One response per request.

        Args:
            requests: With the same options.
        """
        from safe_rlhf_v.construct.models import prompts_of
        from safe_rlhf_v.policy.responses import respond, stream

        prompts = prompts_of([request.record for request in requests])
        streams = [stream(request.seed, request.draw) for request in requests]
        answers = respond(self._network, prompts, requests[0].options, streams)
        readable = [row for row, answer in enumerate(answers) if not answer.fault]
        tokens = self._network.checked_prompts(prompts.take(readable))[0].ids if readable else ()
        lengths = dict(zip(readable, map(len, tokens), strict=True))
        return [
            Responded(
                answer.text,
                lengths.get(row, 0),
                int(answer.values.get("length", 0)),
                not answer.values.get("unfinished"),
                f"{answer.fault}: {answer.reason}" if answer.fault else "",
            )
            for row, answer in enumerate(answers)
        ]
