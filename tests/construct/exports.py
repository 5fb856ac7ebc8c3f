"""Exports as Label Studio writes them, for annotations in the order of the records."""

import json
from pathlib import Path

from tests.shards.conftest import picture

from safe_rlhf_v.construct.label_studio_export import Annotation
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.shards import probe


def pair(i: int, images: int = 1, **fields: object) -> Record:
    pictures = tuple(probe(picture(10 * i + j)) for j in range(images))
    responses = (Response(f"first of {i}", source="one"), Response(f"second of {i}", source="other"))
    return Record(f"pair-{i}", f"what is this, {i} ?", pictures, **{"responses": responses, **fields})


def result(name: str, value: object) -> dict[str, object]:
    return {
        "id": "a",
        "from_name": name,
        "to_name": "left",
        "type": "choices",
        "origin": "manual",
        "value": {"choices": value},
    }


def results(annotation: Annotation, order: list[int]) -> list[dict[str, object]]:
    """What Label Studio stores of an annotation on a task that shows the responses in this order."""
    sides = {order[0]: "left", order[1]: "right", -1: "tie"}
    entries = []
    for name in ("more_helpful", "safer"):
        if (choice := getattr(annotation, name)) is not None:
            entries.append(result(name, [sides[choice]]))
    for axis in ("safety", "helpfulness"):
        for i, value in enumerate(getattr(annotation, axis)):
            if value is not None:
                entries.append(result(f"{sides[i]}_{axis}", [str(value)]))
    return entries


def entry(annotation: Annotation, order: list[int], number: int = 1, **fields: object) -> dict[str, object]:
    body = {
        "id": number, "completed_by": int(annotation.annotator), "result": results(annotation, order), "was_cancelled": False,
        "ground_truth": False, "created_at": "2026-11-27T07:00:00.000000Z", "updated_at": "2026-11-27T07:00:01.500000Z",
        "lead_time": 3.5, "parent_prediction": None,
    }  # fmt: skip
    return body | fields


def exported(path: Path, task_files: list[Path], annotations: list[Annotation]) -> Path:
    """An export of these annotations, of tasks that were written before."""
    tasks = []
    for task in (task for file in task_files for task in json.loads(file.read_text())):
        of_task = [one for one in annotations if one.key == task["data"]["key"]]
        order = task["data"]["order"]
        entries = [entry(one, order, 100 * len(tasks) + i) for i, one in enumerate(of_task)]
        tasks.append(
            {"id": len(tasks) + 1, "annotations": entries, "drafts": [], "predictions": [], "meta": {}, **task}
        )
    path.write_text(json.dumps(tasks))
    return path
