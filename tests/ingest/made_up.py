"""Made-up copies of public data sets: their columns in their types, and their known oddities. No word of theirs is in it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V_CATEGORIES

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PAIRS = pa.schema([
    ("question", pa.string()), ("image", IMAGE), ("category", pa.string()), ("image_severity", pa.int64()),
    ("response_1", pa.string()), ("response_2", pa.string()), ("response_1_from", pa.string()), ("response_2_from", pa.string()),
    ("more_helpful_response_id", pa.string()), ("is_response_1_safe", pa.string()), ("is_response_2_safe", pa.string()),
    ("safer_response_id", pa.string()), ("response_1_harmless_rate", pa.int64()), ("response_2_harmless_rate", pa.int64()),
    ("response_1_helpful_rate", pa.int64()), ("response_2_helpful_rate", pa.int64()),
])  # fmt: skip
SINGLE = pa.schema([
    ("question", pa.string()), ("image", IMAGE), ("category", pa.string()), ("image_severity", pa.int64()),
    ("response", pa.string()), ("is_response_safe", pa.string()),
])  # fmt: skip


def jpeg(seed: int, side: int = 24, **options: Any) -> bytes:
    """A smooth picture of its own."""
    rng = np.random.default_rng(seed)
    small = PILImage.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), PILImage.Resampling.BICUBIC).save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


def struct(data: bytes | None, name: str = "image.jpg") -> dict[str, Any] | None:
    """A picture as the Hub stores it."""
    return None if data is None else {"bytes": data, "path": name}


def pair(number: int, category: str, image: bytes | None, **changes: Any) -> dict[str, Any]:
    """A row of the pairs."""
    safer = number % 2
    rates = (-2, 2) if safer else (1, -3)
    row = {
        "question": f"question {number} ?", "image": struct(image, f"{number}.jpg"), "category": category, "image_severity": number % 4,
        "response_1": f"first response to {number}", "response_2": f"second and longer response to {number}",
        "response_1_from": "model a", "response_2_from": "model b", "more_helpful_response_id": str(1 + number % 3 % 2),
        "is_response_1_safe": "no" if safer else "yes", "is_response_2_safe": "yes" if safer else "no",
        "safer_response_id": str(1 + safer), "response_1_harmless_rate": rates[0], "response_2_harmless_rate": rates[1],
        "response_1_helpful_rate": 3 - number % 3 % 2, "response_2_helpful_rate": 2 + number % 3 % 2 - (number % 3 % 2 == 0),
    }  # fmt: skip
    return row | changes


def singles(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The two rows of the single responses that a pair is in the other copy."""
    shared = {name: row[name] for name in ("question", "image", "category", "image_severity")}
    return [
        {**shared, "response": row[f"response_{n}"], "is_response_safe": row[f"is_response_{n}_safe"]} for n in (1, 2)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, row_group: int = 5) -> None:
    """A file with several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group)


def beavertails(
    train: int = 12, evaluation: int = 2, categories: tuple[str, ...] = BEAVERTAILS_V_CATEGORIES
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rows by category and split, without oddities."""
    sets: dict[str, dict[str, list[dict[str, Any]]]] = {}
    number = 0
    for category in categories:
        sets[category] = {"train": [], "evaluation": []}
        for split, count in (("train", train), ("evaluation", evaluation)):
            for _ in range(count):
                sets[category][split].append(pair(number, category, jpeg(number)))
                number += 1
    return sets


def write_beavertails(root: Path, sets: dict[str, dict[str, list[dict[str, Any]]]], single: bool = False) -> Path:
    """Files as the Hub lays them out: ``data/<category>/<split>.parquet``, with a card that names them."""
    configs = []
    for category, splits in sets.items():
        files = []
        for split, rows in splits.items():
            written = [one for row in rows for one in singles(row)] if single else rows
            write_parquet(root / "data" / category / f"{split}.parquet", written, SINGLE if single else PAIRS)
            files.append(f"  - split: {split}\n    path: data/{category}/{split}.parquet\n")
        configs.append(f"- config_name: {category}\n  data_files:\n" + "".join(files))
    (root / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    return root
