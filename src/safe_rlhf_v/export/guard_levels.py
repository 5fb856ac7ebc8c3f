"""From a guard's outputs to probabilities and a decision, by the numbers in ``export.json``; needs torch.

Example::

    from levels import verdict
    from loader import Scorer

    guard = Scorer(".")
    verdict(guard([picture], question, response), guard.settings)  # response "": the prompt alone
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def verdict(outputs: dict[str, float], settings: dict[str, Any]) -> dict[str, Any]:
    """Probability of each safety level, of harm (a level below 0), of a hazardous prompt, and of each category.

    Args:
        outputs: What the scorer gave.
        settings: The scorer's ``settings``.
    """
    values = torch.tensor(list(outputs.values()), dtype=torch.float64)
    categories = settings["categories"]
    risk = values[len(values) - len(categories) - 1]
    calibration = settings["calibration"]
    levels = level_log_probs(values[: len(values) - len(categories) - 1], settings["link"])
    levels = torch.log_softmax(levels / calibration["level_temperature"], 0).exp()
    named = range(settings["lowest_level"], settings["lowest_level"] + len(levels))
    return {
        "levels": {f"{level:+d}" if level else "0": p for level, p in zip(named, levels.tolist(), strict=True)},
        "harm": sum(p for level, p in zip(named, levels.tolist(), strict=True) if level < 0),
        "prompt_risk": float(torch.sigmoid(risk / calibration["prompt_temperature"])),
        "categories": dict(
            zip(categories, torch.sigmoid(values[len(values) - len(categories) :]).tolist(), strict=True)
        ),
    }


def level_log_probs(outputs: Tensor, link: dict[str, Any]) -> Tensor:
    """(K,) log-probability of each level, the lowest first.

    Args:
        outputs: (F,) what the link reads.
        link: Its kind and its numbers.
    """
    if link["kind"] == "softmax":
        return torch.log_softmax(outputs, 0)
    zero = outputs.new_zeros(1)
    if link["kind"] == "corn":  # z_k: P(level > k | level > k - 1)
        return torch.cat([zero, logsigmoid(outputs).cumsum(0)]) + torch.cat([logsigmoid(-outputs), zero])
    logits = outputs[0] - torch.tensor(link["thresholds"], dtype=outputs.dtype)  # cumulative: P(level > k)
    if link["max_log_scale"] is not None:
        logits = logits * torch.exp(-link["max_log_scale"] * torch.tanh(outputs[1] / link["max_log_scale"]))
    above = logsigmoid(logits)
    below = logsigmoid(-logits)
    middle = above[:-1] + below[1:] + torch.log(-torch.expm1(logits[1:] - logits[:-1]))
    return torch.cat([below[:1], middle, above[-1:]])
