"""Whether a causal decoder reads packed rows as rows of their own, tried on a small copy of it with random weights.

Some decoders find a token's place by its column (ALiBi in Bloom and MPT, local attention in GPT-Neo), or ignore a mask that is
not causal: there one response would change what another one behind the same prompt means, without any error.
"""

import json
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.models.family_shrink import shrunk_config
from safe_rlhf_v.models.hf_families import packs

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


def decoder_packs(config: Any) -> bool:
    """Whether several responses can stand behind one prompt in a row of this decoder without changing one another.

    Args:
        config: Of a causal language model of transformers. A copy of one layer of each kind is tried, tenths of a second once
            per process; where that is not possible the answer is no.
    """
    if not packs(config):
        return False
    return _tried(config.to_json_string(use_diff=False))


@cache
def _tried(plain: str) -> bool:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**json.loads(plain))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            difference = _difference(_copy(config))
    except Exception as error:  # a family may fail in any way; rows of their own are right for all
        _LOG.warning("%s: rows are not packed, as a copy of it cannot be tried (%s)", config.model_type, error)
        return False
    if not difference < _TOLERANCE:
        _LOG.warning("%s: rows are not packed, as one response changes another by %.1g", config.model_type, difference)
        return False
    return True


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
    return AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval().base_model


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

    with torch.no_grad():
        packed = states(tokens, seen[None, None], positions)
        apart = states(alone, torch.ones_like(alone), torch.arange(_PROMPT + second))
    return float((packed - apart).abs().max() / apart.abs().max())
