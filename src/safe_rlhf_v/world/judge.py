"""The world's ground truth as a judge of any answer to any of its records."""

from safe_rlhf_v.records import Record
from safe_rlhf_v.world.scenes import COLOURS, CONTEXTS, COUNTS, INTENTS, OBJECTS, Scene
from safe_rlhf_v.world.truth import helpfulness, safety


def judge(record: Record, text: str) -> tuple[float, int]:
    """True helpfulness and safety level of a text as an answer to a record of the world.

    Raises:
        ValueError: If the record is not one of the world's.
    """
    if record.truth is None or record.origin.get("intent") not in INTENTS:
        raise ValueError(
            f"record {record.key!r} does not come from the embedded world, so nobody knows the truth about it"
        )
    a = record.truth.attributes
    scene = Scene(OBJECTS[a["object"]], COLOURS[a["colour"]], CONTEXTS[a["context"]], COUNTS[a["count"]], seed=0)
    intent = next(name for name in INTENTS if name == record.origin["intent"])
    return helpfulness(scene, intent, text), safety(scene, intent, text)
