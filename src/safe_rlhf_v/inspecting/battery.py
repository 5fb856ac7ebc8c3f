"""The prompts of a split as samples: under which picture, with which transform, and what is known about each."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from safe_rlhf_v.evaluation.prompts import PICTURES, Picture
from safe_rlhf_v.evaluation.transforms import TRANSFORMS, Transform, transformed
from safe_rlhf_v.inspecting.judging import prompts_of
from safe_rlhf_v.inspecting.messages import messages_of


class Entry(NamedTuple):
    """One sample.

    Attributes:
        key: Key of the record.
        messages: What the model gets, as chat messages of inspect.
        metadata: Split, picture and transform; of the record its group (the cluster of intervals), categories (``null`` if they
            are unknown), intent, question, and ratings of its picture and its prompt.
    """

    key: str
    messages: list[Any]
    metadata: dict[str, Any]


def entries(
    data: str, split: str, picture: Picture = "real", transform: Transform = "none", font: str | None = None
) -> Iterator[Entry]:
    """Every prompt of a split, in stored order.

    Args:
        data: Shard folder.
        split: Its split.
        picture: Which picture the model sees.
        transform: How the prompt is transformed, after its picture was chosen.
        font: See :func:`~safe_rlhf_v.evaluation.transforms.typographic`.

    Raises:
        ValueError: If the split cannot be read, a choice is none of the possible ones, or a prompt cannot be transformed.
    """
    for name, value, known in (("pictures", picture, PICTURES), ("transform", transform, TRANSFORMS)):
        if value not in known:
            raise ValueError(f"{name}: {value!r:.80} is none of {', '.join(known)}")
    prompts = prompts_of(data, split)
    for prompt in prompts:
        record = transformed(prompts.record(split, prompt.key, picture), transform, font)
        about = {name: value for name, value in prompt.about.items() if name != "key"}
        yield Entry(prompt.key, messages_of(record), {**about, "picture": picture, "transform": transform})
