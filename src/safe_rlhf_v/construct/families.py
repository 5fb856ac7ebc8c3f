"""Families of models: judges of one family share habits, so they do not confirm each other."""

import re
from collections.abc import Iterable

_FAMILIES: dict[str, tuple[str, ...]] = {
    "claude": ("claude",),
    "cogvlm": ("cogvlm", "glm", "chatglm"),
    "command": ("command", "aya"),
    "deepseek": ("deepseek", "janus"),
    "gemini": ("gemini", "gemma", "paligemma", "medgemma", "shieldgemma"),
    "gpt": ("gpt", "chatgpt", "o1", "o3", "o4", "davinci"),
    "grok": ("grok",),
    "idefics": ("idefics", "smolvlm", "smollm"),
    "internvl": ("internvl", "internlm"),
    "llama": ("llama", "vicuna"),
    "llava": ("llava",),
    "minicpm": ("minicpm",),
    "mistral": ("mistral", "mixtral", "ministral", "pixtral", "magistral", "codestral"),
    "molmo": ("molmo", "olmo"),
    "nova": ("nova",),
    "phi": ("phi",),
    "qwen": ("qwen", "qwq", "qvq"),
    "yi": ("yi",),
}
"""Family to the beginnings of its models' names."""


def known_families(name: str) -> frozenset[str]:
    """Families that a model's name says it descends from, of those that are known here.

    Args:
        name: See :func:`model_families`.
    """
    words = re.findall(r"[a-z]+[0-9]*", name.lower())
    beginnings = {beginning: family for family, names in _FAMILIES.items() for beginning in names}
    # With digits behind the name or none: ``phi3``, not ``philosophy``; ``o1`` has its digit already.
    return frozenset(
        beginnings[part] for word in words for part in (word, word.rstrip("0123456789")) if part in beginnings
    )


def model_families(name: str) -> frozenset[str]:
    """Families that a model's name says it descends from; a name without a known one is a family of its own.

    A fine-tuned model belongs to the families of its base too: ``DeepSeek-R1-Distill-Qwen-7B`` is of two. Names may hide what
    a model is made from, so a common family is certain and a missing one is not.

    Args:
        name: Name of the model, with or without its maker (``Qwen/Qwen2.5-VL-7B-Instruct``).
    """
    return known_families(name) or frozenset({name.strip().lower()})


def families_of(stated: Iterable[str]) -> frozenset[str]:
    """Families that somebody stated, as they are called here: ``GPT-4o`` is of gpt, and ``gemma`` of gemini.

    Args:
        stated: Names of families or of models.
    """
    return frozenset(family for name in stated for family in model_families(name))
