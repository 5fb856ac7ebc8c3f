"""Pictures with one ordered label each, to preference pairs: responses claim a level and give matching advice.

The claim nearer to the label is more helpful. Understating a level is harmful, the more so the larger the gap; overstating is
harmless; the exact level is preventive (+1). All labels follow from the human label, which stands as ``truth`` here: it is
as right as its annotators were.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from safe_rlhf_v.ingest.folder import FRACTIONS
from safe_rlhf_v.ingest.table import TableError, read_image, read_rows
from safe_rlhf_v.records import Image, Record, Response, Truth
from safe_rlhf_v.shards import ShardWriter, split_of
from safe_rlhf_v.taxonomy import Taxonomy


@dataclass(frozen=True)
class Template:
    """What the questions and claims say.

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
            body = json.loads(path.read_text(encoding="utf-8"))
            template = cls(tuple(body["questions"]), tuple(tuple(level) for level in body["claims"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a template ({type(error).__name__}: {error})") from None
        if not template.questions or len(template.claims) < 2 or not all(template.claims):
            raise ValueError(f"{path}: needs questions, and claims of at least two levels")
        return template


def safety_of(claim: int, label: int) -> int:
    """Safety level -3..1 of claiming a level when the label says another."""
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
) -> dict[str, int]:
    """Write shards with ``train``, ``validation`` and ``test`` by picture; returns records per split.

    Args:
        table: CSV or JSONL with one row per picture.
        images: Folder of the pictures.
        out: Folder to create.
        template: Wordings.
        name: Data set name.
        licence: Licence of the data.
        id_column: Column that names the picture.
        label_column: Column with the level, 0 .. levels - 1.
        pattern: File name of a picture, ``{}`` is the id.
        pairs_per_image: Pairs of a picture of the commonest level; rarer levels get more, up to five times as many, so that
            a model cannot win by the prior. Evaluation splits have one pair per picture.
        seed: Seed of claims and wordings.

    Raises:
        TableError: Naming row and column of the first problem.
    """
    rows = list(read_rows(table))
    labels = [_label(row, table, number, label_column, len(template.claims)) for number, row in rows]
    commonest = max(labels.count(level) for level in set(labels))
    counts: dict[str, int] = {}
    with ShardWriter(
        out, name=name, licence=licence, taxonomy=Taxonomy(name, ()), origin={"table": table.name}
    ) as writer:
        for (number, row), label in tqdm(list(zip(rows, labels, strict=True)), desc="importing", unit="image"):
            identity = str(row.get(id_column) or "")
            image = read_image(images, pattern.format(identity), table, number, id_column)
            split = split_of(image.id, FRACTIONS)
            share = min(5.0, commonest / labels.count(label))
            rng = random.Random(f"{seed}/{image.id}")
            for i in range(round(pairs_per_image * share) if split == "train" else 1):
                writer.write(split, pair(f"{split}-{number:06d}-{i}", image, label, template, rng))
                counts[split] = counts.get(split, 0) + 1
    return counts


def _label(row: dict[str, object], table: Path, number: int, column: str, levels: int) -> int:
    value = row.get(column)
    if value is None or not str(value).isdigit() or int(str(value)) >= levels:
        raise TableError(table, number, column, f"{value!r} is not a level 0..{levels - 1}")
    return int(str(value))
