"""What an engine says of one prompt: its token ids, and the sampled tokens with their log-probabilities."""

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from safe_rlhf_v.construct.endpoint import Endpoint
from safe_rlhf_v.construct.replies import Reply

# vLLM writes -9999 where it has no probability.
_LEAST_LOG_PROB = -9000.0
_MOST_LOG_PROB = 1e-3
"""Above 0 by rounding at most."""


class Sampled(NamedTuple):
    """One response.

    Attributes:
        ids: Its tokens.
        log_probs: Of each token, by the engine.
        reason: Why it ended: ``stop`` or ``length``.
    """

    ids: list[int]
    log_probs: list[float]
    reason: str


@dataclass(frozen=True, slots=True)
class EngineReply(Reply):
    """A chat completion with token ids.

    Attributes:
        prompt_ids: Tokens of the prompt as the engine read it.
        responses: In the order of their numbers.
    """

    prompt_ids: tuple[int, ...] = ()
    responses: tuple[Sampled, ...] = ()


class EngineEndpoint(Endpoint):
    """The chat route of an engine; a reply that lacks anything of :class:`EngineReply` is ``garbled``."""

    def read(self, key: str, body: bytes) -> Reply:
        try:
            content = json.loads(body.decode())
            prompt_ids = tuple(_ids(_field(content, "prompt_token_ids"), "prompt_token_ids"))
            choices = _field(content, "choices")
            if not isinstance(choices, list):
                raise _Malformed("choices is no list")
            numbered = sorted((_number(choice), i) for i, choice in enumerate(choices))
            if [number for number, _ in numbered] != list(range(len(choices))):
                raise _Malformed("its choices are not numbered 0, 1, ...")
            return EngineReply(
                key, "complete", prompt_ids=prompt_ids, responses=tuple(_sampled(choices[i]) for _, i in numbered)
            )
        except (_Malformed, ValueError, RecursionError) as error:  # of the decoding and of the JSON
            reason = str(error) if isinstance(error, _Malformed) else f"not JSON ({error})"
            return Reply(key, "garbled", error=f"the reply is none of an engine: {reason}")


class _Malformed(Exception):
    """Something of a reply is missing, or of another type."""


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or value.get(name) is None:
        raise _Malformed(f"it has no {name}")
    return value[name]


def _ids(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise _Malformed(f"{name} is no list of token ids")
    return value


def _number(choice: Any) -> int:
    number = _field(choice, "index")
    if type(number) is not int:
        raise _Malformed("the index of a choice is no number")
    return number


def _sampled(choice: Any) -> Sampled:
    ids = _ids(_field(choice, "token_ids"), "token_ids")
    tokens = _field(_field(choice, "logprobs"), "content")
    if not isinstance(tokens, list) or len(tokens) != len(ids):
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise _Malformed(f"{len(ids)} tokens, but {count} log-probabilities")
    log_probs = [_field(token, "logprob") for token in tokens]
    for value in log_probs:
        usable = type(value) in (int, float) and math.isfinite(value) and _LEAST_LOG_PROB < value <= _MOST_LOG_PROB
        if not usable:
            raise _Malformed(f"the log-probability of a token is {value!r:.40}")
    return Sampled(ids, [float(value) for value in log_probs], str(_field(choice, "finish_reason"))[:40])
