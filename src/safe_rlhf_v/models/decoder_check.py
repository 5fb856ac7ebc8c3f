"""What a causal decoder can do, tried on a small copy of it with random weights.

Three things are asked. Whether it reads packed rows as rows of their own: some decoders find a token's place by its column
(ALiBi in Bloom and MPT, local attention in GPT-Neo), or ignore a mask that is not causal. Which cache makes decoding token by
token say what one pass says. And whether its logits are what its LM head gives: some decoders scale or cap them afterwards.
Each would be wrong without any error.
"""

import json
import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safe_rlhf_v.models.cache import decoding_cache
from safe_rlhf_v.models.family_shrink import plain_cpu, shrunk_config
from safe_rlhf_v.models.hf_families import cache_arguments, packs, rescaled_logits

_LOG = logging.getLogger(__name__)
_PROMPT = 6
_RESPONSES = (8, 7)
_WORDS = 64
_LAYERS = 8
_WINDOW = 4
"""Width of local attention in the copy: narrower than a row, so that it matters."""
_MOST_PARAMETERS = 700_000_000
"""Of a copy; what cannot be made smaller is not tried."""
_TOLERANCE = 1e-4
_WRONG = 1e-2
"""Difference that refuses a decoder: no rounding is as large, whatever the precision of the machine's products."""
_STEEPER = 50.0
"""Factor of the LM head in the copy: a cap of the logits shows only where they are large."""


class DecoderAbilities(NamedTuple):
    """What a decoder can do.

    Attributes:
        packs: Whether several responses can stand behind one prompt in a row without changing one another.
        own_cache: Whether its cache is built from its config, as not all of its layers keep keys and values of all tokens.
    """

    packs: bool
    own_cache: bool


def decoder_abilities(config: Any) -> DecoderAbilities:
    """Try a decoder.

    Args:
        config: Of a causal language model of transformers. A copy of one layer of each kind is tried, tenths of a second once
            per process; where that is not possible, rows are not packed.

    Raises:
        ValueError: If its logits are not those of its LM head, or it cannot decode with a cache, in one line.
    """
    if name := rescaled_logits(config):
        raise ValueError(f"decoder: model_type {config.model_type!r} rescales its logits ({name}): not supported")
    abilities, refused = _tried(json.dumps(config.to_dict(), sort_keys=True))
    if refused:
        raise ValueError(f"decoder: model_type {config.model_type!r} {refused}: not supported")
    return abilities


@cache
def _tried(plain: str) -> tuple[DecoderAbilities, str]:
    """What a decoder can do, and why it is refused, "" if it is not."""
    from transformers import AutoConfig

    with plain_cpu(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(**json.loads(plain))
        ordinary = packs(config)
        try:
            model = _copy(config)
        except Exception as error:  # a family may fail in any way; rows of their own are right for all
            _LOG.warning("%s: rows are not packed, as a copy of it cannot be tried (%s)", config.model_type, error)
            return DecoderAbilities(False, not ordinary), ""
        packed = ordinary and _reads_packed_rows(config.model_type, model.base_model)
        for own_cache in (False, True) if ordinary else (True,):
            problem = _decoding_problem(model, own_cache)
            if not problem:
                break
        return DecoderAbilities(packed, own_cache), problem or _logits_problem(model)


def _reads_packed_rows(family: str, network: Any) -> bool:
    try:
        difference = _difference(network)
    except Exception as error:  # a family may fail in any way; rows of their own are right for all
        _LOG.warning("%s: rows are not packed, as it cannot read them (%s)", family, error)
        return False
    if not difference < _TOLERANCE:
        _LOG.warning("%s: rows are not packed, as one response changes another by %.1g", family, difference)
        return False
    return True


def _decoding_problem(model: Any, own_cache: bool) -> str:
    """What is wrong with decoding by a cache behind prompts of two lengths, "" if it says what one pass says."""
    network = model.base_model
    embed = network.get_input_embeddings()
    steps = _RESPONSES[1]
    padding = 2
    tokens = torch.randint(_WORDS, (2, _PROMPT + steps))
    mask = torch.ones_like(tokens)
    mask[1, :padding] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    try:
        held = decoding_cache(steps, model.config if own_cache else None)
        states = []
        for first, last in [(0, _PROMPT), *((i, i + 1) for i in range(_PROMPT, _PROMPT + steps))]:
            out = network(
                inputs_embeds=embed(tokens[:, first:last]),
                attention_mask=mask[:, :last],
                position_ids=places[:, first:last],
                **cache_arguments(network, held),
            )
            states.append(out.last_hidden_state[:, -1])
        cached = torch.stack(states, 1)  # (2, steps + 1, D)
        rows = [tokens[:1], tokens[1:, padding:]]
        one_pass = [
            network(
                inputs_embeds=embed(row),
                attention_mask=torch.ones_like(row),
                position_ids=torch.arange(row.shape[1])[None],
                use_cache=False,
            ).last_hidden_state[0, -steps - 1 :]
            for row in rows
        ]
    except Exception as error:  # a family may fail in any way inside transformers
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        return f"cannot decode with a cache ({type(error).__name__}: {first_line})"
    difference = _relative(cached, torch.stack(one_pass))
    return "" if difference < _WRONG else f"says something else with a cache than in one pass (by {difference:.1g})"


def _logits_problem(model: Any) -> str:
    """What the model does to the logits of its LM head, "" for nothing."""
    head = model.get_output_embeddings()
    head.weight.mul_(_STEEPER)
    ids = torch.randint(_WORDS, (1, _PROMPT))
    embeddings = model.get_input_embeddings()(ids)
    ours = head(model.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state)
    difference = _relative(ours, model(inputs_embeds=embeddings, use_cache=False).logits)
    return "" if difference < _WRONG else f"rescales its logits (by {difference:.1g} of their size)"


def _relative(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest value of the second."""
    return float((one - other).abs().max() / other.abs().max())


def _copy(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    small = shrunk_config(config, narrow=True)
    small.num_hidden_layers = min(small.num_hidden_layers, _LAYERS)  # some configs have another name for it
    small.vocab_size = _WORDS
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    for name in ("sliding_window", "window_size", "attention_window"):
        if isinstance(getattr(small, name, None), int):
            setattr(small, name, _WINDOW)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(small, dtype=torch.float32).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"its smallest copy has {size:,} parameters")
    return AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()


def _difference(network: Any) -> float:
    """Largest difference of the second response's states, packed and alone, relative to the largest state."""
    first, second = _RESPONSES
    tokens = torch.randint(_WORDS, (1, _PROMPT + first + second))
    positions = torch.cat([torch.arange(_PROMPT + first), torch.arange(_PROMPT, _PROMPT + second)])
    part = torch.tensor([0] * _PROMPT + [1] * first + [2] * second)
    seen = torch.ones(len(part), len(part), dtype=torch.bool).tril() & (
        (part[None] == 0) | (part[None] == part[:, None])
    )
    alone = torch.cat([tokens[:, :_PROMPT], tokens[:, _PROMPT + first :]], 1)
    embed = network.get_input_embeddings()

    def states(ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        out = network(inputs_embeds=embed(ids), attention_mask=mask, position_ids=places[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[:, -second:].float()
        return hidden

    packed = states(tokens, seen[None, None], positions)
    apart = states(alone, torch.ones_like(alone), torch.arange(_PROMPT + second))
    return _relative(packed, apart)
