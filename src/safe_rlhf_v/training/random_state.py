"""The random states of a process as plain tensors, so that checkpoints can hold them without pickled objects."""

import math
import random

import numpy as np
import torch
from torch import Tensor


def read_random_state() -> dict[str, Tensor]:
    """Read the states of Python, NumPy, torch and the current CUDA device, if there is one.

    Returns:
        Name to (N,) tensor: ``python`` and ``numpy`` float64 (32-bit words and a cached normal draw are exact in it),
        ``torch`` and ``cuda`` uint8.
    """
    _, words, cached = random.getstate()
    _, keys, position, has_cached, gauss = np.random.get_state()
    states = {
        "python": torch.from_numpy(np.array([*words, math.nan if cached is None else cached], dtype=np.float64)),
        "numpy": torch.from_numpy(np.append(np.asarray(keys, dtype=np.float64), [position, has_cached, gauss])),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def write_random_state(states: dict[str, Tensor]) -> None:
    """Restore the states of :func:`read_random_state`; generators without a state are not changed."""
    *words, cached = states["python"].tolist()
    random.setstate((3, tuple(map(int, words)), None if math.isnan(cached) else cached))
    *keys, position, has_cached, gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), int(position), int(has_cached), gauss))
    torch.set_rng_state(states["torch"].clone())  # a view of a larger tensor would crash here
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].clone())


def reseed(*words: int) -> None:
    """Seed all generators from several integers (seed, step, rank); different integers give independent streams."""
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
