"""Make preference pairs from pictures with one ordered label each: responses claim a level and give matching advice.

The claim nearer to the label is more helpful. Understating a level is harmful, in proportion to the gap; overstating it is
harmless; the exact level is preventive (+1). All labels follow from the human label, which is stored as ``truth``: it is as
accurate as its annotators.
"""

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from safe_rlhf_v.ingest.bad_rows import BadRows, Imported, OnBadRow, default_list
from safe_rlhf_v.ingest.folder import FRACTIONS
from safe_rlhf_v.ingest.pictures import check_folder, read_picture
from safe_rlhf_v.ingest.rows import Row
from safe_rlhf_v.ingest.table import read_table
from safe_rlhf_v.records import Image, Record, RecordError, Response, Truth
from safe_rlhf_v.records.parsing import MAX_JSON_BYTES, Fields, parse_json
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.records.user_files import read_bounded
from safe_rlhf_v.shards import ShardWriter, split_of


@dataclass(frozen=True)
class Template:
    """Wordings of questions and claims.

    Attributes:
        questions: Wordings of the question.
        claims: Per level, from the lowest, the wordings of a response that claims it.
    """

    questions: tuple[str, ...]
    claims: tuple[tuple[str, ...], ...]

    @classmethod
    def load(cls, path: Path) -> "Template":
        """Read ``{"questions": [...], "claims": [[...], ...]}``.

        Raises:
            ValueError: If the file does not hold both.
        """
        try:
            fields = Fields(parse_json(read_bounded(path, MAX_JSON_BYTES), str(path)), str(path))
            questions = fields.strings("questions")
            claims = [
                Fields({"level": texts}, str(path), where).strings("level") if isinstance(texts, list) else []
                for where, texts in fields.items("claims")
            ]
        except RecordError as error:
            raise ValueError(f"{path}: not a template: field {error.field!r}: {error.problem}") from None
        texts = [*questions, *itertools.chain(*claims)]
        if not questions or len(claims) < 2 or not all(claims) or not all(map(str.strip, texts)):
            raise ValueError(f"{path}: needs questions, and claims of at least two levels, none of them empty")
        return cls(tuple(questions), tuple(map(tuple, claims)))


def safety_of(claim: int, label: int) -> int:
    """Safety level -3..1 of a claimed level, given the label."""
    return -min(3, label - claim) if claim < label else int(claim == label)


def pair(key: str, image: Image, label: int, template: Template, rng: random.Random) -> Record:
    """A preference pair of two different claims, one of them exact half of the time."""
    levels = range(len(template.claims))
    first = label if rng.random() < 0.5 else rng.choice(levels)
    claims = [first, rng.choice([level for level in levels if level != first])]
    rng.shuffle(claims)
    helpful = [-float(abs(claim - label)) for claim in claims]
    safety = [safety_of(claim, label) for claim in claims]
    return Record(
        key=key,
        question=rng.choice(template.questions),
        images=(image,),
        responses=tuple(
            Response(rng.choice(template.claims[c]), s, s >= 0, h, "template")
            for c, s, h in zip(claims, safety, helpful, strict=True)
        ),
        image_severity=label,
        more_helpful=None if helpful[0] == helpful[1] else int(helpful[1] > helpful[0]),
        safer=None if safety[0] == safety[1] else int(safety[1] > safety[0]),
        safety_tie=safety[0] == safety[1],
        helpfulness_tie=helpful[0] == helpful[1],
        truth=Truth(tuple(helpful), tuple(safety), {"level": label}),
    )


def import_ordinal(
    table: Path,
    images: Path,
    out: Path,
    template: Template,
    *,
    name: str,
    licence: str,
    id_column: str = "id",
    label_column: str = "label",
    pattern: str = "{}.jpg",
    pairs_per_image: int = 4,
    seed: int = 0,
    on_bad_row: OnBadRow = "error",
    bad_rows: Path | None = None,
) -> Imported:
    """Write shards with the splits ``train``, ``validation`` and ``test``, divided by picture.

    Args:
        table: CSV or JSONL with one row per picture; a row with the picture of an earlier one (equal pixels) cannot be used.
        images: Folder of the pictures.
        out: Folder to create.
        template: Wordings.
        name: Data set name.
        licence: Licence of the data.
        id_column: Column that names the picture.
        label_column: Column with the level, 0 .. levels - 1.
        pattern: File name of a picture, ``{}`` is the id.
        pairs_per_image: Pairs per picture of the most frequent level; rarer levels get more, up to five times as many, so
            that a model gains nothing from the levels' frequencies. Evaluation splits have one pair per picture.
        seed: Seed of claims and wordings.
        on_bad_row: ``error``: nothing is written if a row cannot be used; ``skip``: such rows are left out.
        bad_rows: File that lists them; ``None``: a file beside ``out`` that ends in ``.bad_rows.jsonl``.

    Raises:
        TableError: If the table cannot be read, or (``BadRowsError``) rows cannot be used.
        FileError: If the table is missing or not a regular file.
        ShardError: If ``out`` cannot be written.
        ValueError: If there is no folder of images, ``pattern`` has no ``{}``, or ``pairs_per_image`` is not positive.
    """
    check_folder(images)
    if "{}" not in pattern:
        raise ValueError(f"--pattern: {pattern!r} has no {{}}, the placeholder of the id")
    if pairs_per_image < 1:
        raise ValueError(f"--pairs is {pairs_per_image}; it must be positive")
    about: dict[str, Any] = {"name": name, "licence": licence, "taxonomy": Taxonomy(name, ())}
    with (
        ShardWriter(out, origin={"table": table.name}, **about) as writer,
        BadRows(table, bad_rows or default_list(out), on_bad_row) as bad,
    ):
        table_rows = read_table(table, required=(id_column, label_column))
        rows = [(row, _label(row, label_column, len(template.claims))) for row in table_rows]
        frequency = Counter(label for row, label in rows if not row.problems)
        good = records = 0
        rows_by_picture: dict[str, int] = {}
        for row, label in tqdm(rows, desc="importing", unit="image", disable=None):
            image = _image(row, images, id_column, pattern)
            if image is None or label is None or _is_repeated(row, id_column, image, rows_by_picture):
                bad.add(row)
                continue
            split = split_of(image.id, FRACTIONS)
            share = min(5.0, max(frequency.values()) / frequency[label])
            rng = random.Random(f"{seed}/{image.id}")
            for i in range(round(pairs_per_image * share) if split == "train" else 1):
                writer.write(split, pair(f"{split}-{row.number:06d}-{i}", image, label, template, rng))
                records += 1
            good += 1
        bad.finish(good)
    return Imported(records, bad.count, bad.file, out)


def _image(row: Row, images: Path, column: str, pattern: str) -> Image | None:
    """The picture of a row, if it can be read; its id is a text or, in JSON, a whole number."""
    if not row.has(column) and not row.problems:
        row.bad(column, "is missing")
    number = isinstance(row.cells.get(column), int)
    identity = row.integer(column) if number else row.text(column)
    return None if identity is None else read_picture(images, pattern.replace("{}", str(identity)), row, column)


def _is_repeated(row: Row, column: str, image: Image, rows: dict[str, int]) -> bool:
    """Whether an earlier row has the picture: it would have two levels, and more pairs than others; noted as a problem."""
    first = rows.setdefault(image.id, row.number)
    if first != row.number:
        row.bad(column, f"the picture of row {first}, too")
    return first != row.number


def _label(row: Row, column: str, levels: int) -> int | None:
    """The level of a row, or ``None`` with a problem noted."""
    if row.problems:
        return None
    label = row.integer(column)
    if label is None:
        if not row.has(column):
            row.bad(column, "is missing")
    elif not 0 <= label < levels:
        row.bad(column, f"{label} is not a level 0..{levels - 1}")
        return None
    return label
