"""Small pictures and shard folders."""

import io
import json

import numpy as np
import pytest
from PIL import Image as PILImage

from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
from safe_rlhf_v.shards import ShardWriter, probe


def picture(seed=0, format="PNG", size=(12, 8), mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def record(i, images=1, **fields):
    data = [picture(i * 10 + j, "PNG" if j % 2 else "JPEG") for j in range(images)]
    return Record(f"k-{i}", f"question {i} ?", tuple(map(probe, data)), (Response("a", 1), Response("b", -1)), **fields)


def write(root, n=7, per_shard=3, **options):
    with ShardWriter(root, name="tiny", licence="MIT", taxonomy=BEAVERTAILS_V, samples_per_shard=per_shard) as writer:
        for i in range(n):
            writer.write("train", record(i, images=i % 3, category=("animal_abuse",) if i % 2 else ()))
        for i in range(100, 102):
            writer.write("test", record(i))
    return root


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "shards")


def written_by(schema, record, to_json=Record.to_json):
    """What a record without newer fields looks like in a file of an older version."""
    body = json.loads(to_json(record)) | {"schema": schema}
    if schema < 3:
        for name in ("system", "history", "prompt_safety", "helpfulness_tie", "votes"):
            del body[name]
        for response in body["responses"]:
            del response["votes"]
    return body
