"""Responses sampled by a vLLM server, over its chat route."""

import io
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from safe_rlhf_v.construct.endpoint import EndpointError
from safe_rlhf_v.construct.replies import Message, Request
from safe_rlhf_v.engine.adapters import ServedAdapter
from safe_rlhf_v.engine.replies import EngineEndpoint, EngineReply, Sampled
from safe_rlhf_v.models.adapters import adapter_of
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.types import Generation
from safe_rlhf_v.policy.samplers import Asked, Sampler
from safe_rlhf_v.records.batches import to_device

# Every setting that a server may take from the model's generation_config.json is stated.
_FIELDS: dict[str, Any] = {
    "return_token_ids": True,
    "ignore_eos": True,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
}
_BAN = -100.0
"""The lowest bias that a server takes: a banned token that it samples all the same is refused."""


class EngineError(ValueError):
    """The engine cannot be used, or does not serve this policy; nothing of the step is saved."""


class EngineSampler(Sampler):
    """A vLLM server samples, with the policy's base and the adapter that is being trained (experimental).

    The adapter is written into a folder and loaded by the server whenever it has changed. Prompts go to the chat route as texts
    and PNG pictures; token ids and log-probabilities come back. A prompt that the server reads as other tokens than the policy is
    refused. Sampling is seeded, but a server need not repeat itself.

    YAML::

        sampler:
          class_path: safe_rlhf_v.engine.EngineSampler
          init_args: {base_url: http://127.0.0.1:8000/v1, adapter_folder: runs/adapters}
    """

    def __init__(
        self,
        base_url: str,
        adapter_folder: str,
        key_variable: str | None = None,
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 2,
    ) -> None:
        """Check the settings; nothing is asked yet.

        Args:
            base_url: Address of the server's interface, such as ``http://127.0.0.1:8000/v1``.
            adapter_folder: Folder for the adapters, which the server can read under the same absolute path.
            key_variable: Environment variable that holds the server's key; none for a server that asks for no key.
            concurrency: Prompts in flight at once.
            timeout: Seconds that one try may take.
            retries: Further tries after a failed one; after the last the run ends.

        Raises:
            ValueError: If a setting cannot be used.
        """
        if not adapter_folder:
            raise ValueError("adapter_folder is empty; name a folder that the server can read")
        self.adapter = ServedAdapter(Path(adapter_folder))
        self.settings: dict[str, Any] = {
            "base_url": base_url,
            "key_variable": key_variable,
            "concurrency": concurrency,
            "timeout": timeout,
            "retries": retries,
        }
        self._endpoint("unnamed")

    def _endpoint(self, model: str, **fields: Any) -> EngineEndpoint:
        return EngineEndpoint(model, **self.settings, extra={**_FIELDS, **fields})

    def check(self, policy: Backbone, started: Collection[str]) -> None:
        """Refuse a policy whose weights are not those of a base that a server can load, and an adapter."""
        if not isinstance(policy, HFVLM):
            raise ValueError(f"sampler: EngineSampler serves HFVLM, not {type(policy).__name__}; use NetworkSampler")
        if policy.lora is None:
            raise ValueError(
                "sampler: EngineSampler loads adapters: give the backbone lora settings, or use NetworkSampler"
            )
        if policy.base is None:
            raise ValueError("sampler: the policy's base has random weights, which no server has; use NetworkSampler")
        trained = [name for name, value in policy.named_parameters() if value.requires_grad]
        if other := sorted(name for name in {*trained, *started} if adapter_of(name) is None):
            raise ValueError(
                f"sampler: beside its adapter the policy changes {other[0]} of its base, which the server does not get; "
                "freeze it, export the start and name that folder as the model, or use NetworkSampler"
            )

    def __call__(self, policy: Backbone, asked: Asked) -> Generation:
        """See :class:`Sampler`.

        Raises:
            EngineError: If the server fails for good, or its replies are not responses of this policy.
        """
        assert isinstance(policy, HFVLM)
        try:
            name = self.adapter.update(policy, self._endpoint("unnamed").post)
            replies = self._replies(name, policy, asked)
        except (EndpointError, ValueError) as error:
            raise EngineError(f"{self.settings['base_url']}: {error}") from None
        times = asked.samples // len(replies[0].responses)  # one for all where there is nothing random
        rows = [row for reply in replies for row in reply.responses * times]
        return generation_of(rows, policy)

    def _replies(self, name: str, policy: HFVLM, asked: Asked) -> list[EngineReply]:
        """One reply for each prompt, in order; each is checked as it comes."""
        options = asked.options
        random = options.temperature > 0
        count = asked.samples if random else 1  # of a greedy request servers refuse several
        lengths = [len(ids) for ids in asked.tokens.ids]
        limits = [min(options.max_new_tokens, policy.room(n) or options.max_new_tokens) for n in lengths]
        seeds = torch.randint(2**31, (len(lengths),), generator=asked.draws).tolist()
        fields: dict[str, Any] = {
            "n": count,
            "logprobs": True,
            "top_logprobs": 0,
            "temperature": options.temperature,
            "top_p": options.top_p,
        }
        fields["logit_bias"] = {str(i): _BAN for i in policy.banned_ids}
        conversations = [policy.conversation(asked.prompts, row) for row in range(len(lengths))]
        requests = (
            Request(str(i), messages(one), {**fields, "max_tokens": limits[i], "seed": seeds[i]})
            for i, one in enumerate(conversations)
        )
        special = conversations[0].special
        endpoint = self._endpoint(name, stop_token_ids=[policy.eos_id], add_special_tokens=special)
        replies: dict[int, EngineReply] = {}
        with closing(endpoint.replies(requests)) as stream:
            for reply in stream:
                row = int(reply.key)
                if not isinstance(reply, EngineReply):
                    raise ValueError(f"prompt {row + 1} of {len(lengths)}: {reply.kind}: {reply.error}")
                check_reply(reply, asked.tokens.ids[row], count, limits[row], policy)
                replies[row] = reply
        return [replies[row] for row in range(len(lengths))]


def messages(conversation: Any) -> tuple[Message, ...]:
    """A conversation with its pictures as PNG.

    Args:
        conversation: What ``HFVLM.conversation`` gives.
    """
    pictures = iter(conversation.pictures)
    return tuple(
        Message(role, text, tuple(_png(next(pictures)) for _ in range(images)))
        for role, text, images in conversation.messages
    )


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def check_reply(reply: EngineReply, prompt: list[int], samples: int, limit: int, policy: HFVLM) -> None:
    """Refuse what are not ``samples`` whole responses of the policy to this prompt.

    Args:
        reply: From the engine.
        prompt: The prompt's token ids.
        samples: Number of responses that were asked for.
        limit: Most tokens of a response.
        policy: Whose vocabulary it is.

    Raises:
        ValueError: Saying what is wrong.
    """
    if list(reply.prompt_ids) != prompt:
        at = next((i for i, (a, b) in enumerate(zip(reply.prompt_ids, prompt, strict=False)) if a != b), None)
        where = f"differs at token {at}" if at is not None else "is cut or longer"
        raise ValueError(
            f"the server reads a prompt as {len(reply.prompt_ids)} tokens, the policy as {len(prompt)}: it {where}; serve the "
            "policy's own model with its chat template, and the same min_pixels and max_pixels"
        )
    if len(reply.responses) != samples:
        raise ValueError(f"{len(reply.responses)} responses came for a prompt, {samples} were asked for")
    vocabulary = policy.model.config.get_text_config().vocab_size
    never = {*policy.banned_ids}
    for response in reply.responses:
        if problem := _problem(response, limit, policy.eos_id, vocabulary, never):
            raise ValueError(f"a response of {len(response.ids)} tokens {problem}")


def _problem(response: Sampled, limit: int, end: int, vocabulary: int, never: Collection[int]) -> str | None:
    ids = response.ids
    if not ids:
        return "holds nothing"
    if len(ids) > limit:
        return f"is longer than the {limit} that were asked for"
    if strange := [i for i in ids if i >= vocabulary or i in never]:
        return f"holds the token {strange[0]}, which must not be sampled"
    if end in ids[:-1]:
        return f"goes on after its end (token {end})"
    if ids[-1] != end and (response.reason != "length" or len(ids) < limit):
        return f"is not whole: it ended by {response.reason!r}, without the end token {end}"
    return None


def generation_of(rows: list[Sampled], policy: HFVLM) -> Generation:
    """Responses as tensors on the policy's device; their log-probabilities are the engine's until the policy has read them."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [policy.pad_id] * (width - len(row.ids)) for row in rows])
    log_probs = torch.tensor([row.log_probs + [0.0] * (width - len(row.ids)) for row in rows], dtype=torch.float32)
    mask = torch.arange(width) < torch.tensor([[len(row.ids)] for row in rows])
    finished = torch.tensor([row.ids[-1] == policy.eos_id for row in rows])
    texts = policy.tokenizer.batch_decode([row.ids for row in rows], skip_special_tokens=True)
    responses = Generation(ids, mask, log_probs, finished, tuple(text.strip() for text in texts), log_probs)
    return to_device(responses, next(policy.parameters()).device)
