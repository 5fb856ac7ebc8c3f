"""The temperature at which the start is as certain of its tokens as a policy is: what mere sharpening would give.

A policy that was optimised is nearly always more certain than its start, and a start that is sampled at a lower temperature
gives better responses by itself. So every policy is compared with its start at the same entropy, too.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.work import Work, described
from safe_rlhf_v.records.user_files import FileError, digest, read_bounded, write_whole

FILE = "temperatures.json"
PROMPTS = 100
"""Number of prompts on which entropies are compared, chosen at random."""
STEPS = 12
CLOSE = 0.01
"""Relative difference of two entropies at which the search ends."""
RANGE = (0.05, 3.0)
"""Temperatures between which is searched."""


class Matching:
    """Finds the temperatures, each once; they are kept in ``temperatures.json``."""

    def __init__(self, work: Work) -> None:
        """Nothing is computed before it is asked for.

        Args:
            work: The evaluation.
        """
        self._work = work
        self._keys = {(one.split, one.key) for one in work.prompts.some(PROMPTS, "matching")}
        self._values: dict[str, dict[tuple[str, str], tuple[float, float]]] = {}

    def note(self, rows: Sequence[Row]) -> None:
        """Remember entropies and lengths of sampled responses.

        Args:
            rows: Lines of responses; one that comes twice counts once.
        """
        for row in rows:
            entropy = row["values"].get("entropy")
            chosen = (row["split"], row["key"]) in self._keys
            if chosen and entropy is not None and (row["mode"], row["picture"]) == ("sampled", "real"):
                own = self._values.setdefault(row["policy"], {})
                own[row["split"], row["key"]] = (entropy, row["values"]["length"])

    def temperature(self, policy: str) -> float | None:
        """The temperature that gives the start the entropy of a policy; ``None`` if the policy's is not known.

        Args:
            policy: Name of the policy.
        """
        entry = self._entry(policy)
        temperature: float | None = entry["temperature"]
        return temperature

    def _entry(self, policy: str) -> Row:
        target = mean_entropy(list(self._values.get(policy, {}).values()))
        about = digest(
            {
                "policy_entropy": None if target is None else round(target, 6),
                "start": described({"start": self._work.policies[str(self._work.start)]}),
                "seed": self._work.seed,
                "most": self._work.sampling.max_new_tokens,
                "keys": sorted(map(list, self._keys)),
            }
        )
        stored = read_temperatures(self._work)
        if stored.get(policy, {}).get("of") == about:
            return dict(stored[policy])
        entry = {**self._search(target), "policy_entropy": target and round(target, 6), "of": about}
        text = json.dumps({**stored, policy: entry}, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(self._work.folder / FILE, (text + "\n").encode())
        return entry

    def _search(self, target: float | None) -> Row:
        """Bisection of the logarithm of the temperature; the same random numbers are used at each."""
        if target is None:
            return {"temperature": None, "start_entropy": None, "why": "the entropy of the policy is not known"}
        low, high = map(math.log, RANGE)
        temperature = self._work.sampling.temperature
        tried: list[tuple[float, float, float]] = []  # distance, temperature, entropy
        for _ in range(STEPS):
            entropy = self._start_entropy(temperature)
            if entropy is None:
                return {"temperature": None, "start_entropy": None, "why": "the entropy of the start is not known"}
            tried.append((abs(entropy - target), temperature, entropy))
            if tried[-1][0] <= CLOSE * target:
                break
            if entropy > target:
                high = math.log(temperature)
            else:
                low = math.log(temperature)
            temperature = math.exp((low + high) / 2)
        distance, temperature, entropy = min(tried)
        near = distance <= max(5 * CLOSE * target, 1e-3)
        why = (
            "" if near else f"no temperature within {RANGE[0]:g}..{RANGE[1]:g} gives this entropy; the nearest is taken"
        )
        return {"temperature": round(temperature, 6), "start_entropy": round(entropy, 6), "why": why}

    def _start_entropy(self, temperature: float) -> float | None:
        work = self._work
        start = work.policies[str(work.start)]
        sampling = replace(work.sampling, temperature=temperature)
        keys = [(one.split, one.key) for one in work.prompts if (one.split, one.key) in self._keys]
        values: list[tuple[float, float]] = []
        for begin in range(0, len(keys), work.batch_size):
            records = [work.prompts.record(*key) for key in keys[begin : begin + work.batch_size]]
            answers = start.respond(records, sampling, work.seed)
            values += [(one.values["entropy"], one.values["length"]) for one in answers if "entropy" in one.values]
        return mean_entropy(values)


def mean_entropy(values: Sequence[tuple[float, float]]) -> float | None:
    """Mean entropy of a token; ``None`` without tokens.

    Args:
        values: Mean entropy and length of each response.
    """
    tokens = sum(length for _, length in values)
    return sum(entropy * length for entropy, length in values) / tokens if tokens else None


def read_temperatures(work: Work) -> dict[str, Any]:
    """What was found, by policy; {} if nothing was."""
    try:
        content = json.loads(read_bounded(work.folder / FILE, 10_000_000))
    except FileError:
        return {}
    except ValueError as error:
        raise ValueError(f"{work.folder / FILE}: is damaged ({error}); remove it") from None
    return content if isinstance(content, dict) else {}
