"""Photographs of coffee leaves with templated questions and responses, as shards; labels follow from the human label alone.

    python benchmarks/pretrained/data.py --photos FOLDER --weights build/pretrained --out data/leaves

FOLDER holds ``labels.csv`` (columns id, miner, rust, phoma, cercospora, severity) and ``images/ID.jpg``: 1,747 photographs from
the public repository ``esgario/lara2018`` (MIT). No photograph is in two of training, validation, calibration and test. A fifth
of the demonstrations have no picture: the language model's own greedy replies to general prompts, written here by itself.
"""

import argparse
import csv
import io
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from general import PROMPTS
from leaves import MANNERS, QUESTIONS, Manner, read, worth, write
from lookalikes import lookalikes
from PIL import Image as Picture
from stages import GGUF, LANGUAGE

from safe_rlhf_v.models.backbone import batched
from safe_rlhf_v.models.clip_parts import build_decoder
from safe_rlhf_v.models.sources import load_tokenizer
from safe_rlhf_v.records import Image, Record, Response, Truth
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardWriter, probe
from safe_rlhf_v.shards.manifest import ShardError

SIGNS = ("miner", "rust", "phoma", "cercospora")
HELD_OUT = {"test": 50, "validation": 30, "calibration": 36}
"""Photographs of each severity that are in no other split."""
CALIBRATION_PAIRS = 3  # for each photograph: for the temperatures; budgets count one response of each photograph
SIZES = {"supervised": 1600, "train": 2400, "prompts": 1200}
SENTENCE_END = re.compile(r"[a-zA-Z)\"'][.!?](?=\s|$)")
TEXT_EVERY = 4  # photographs to one prompt without a picture: a fifth of the demonstrations


class Leaf(NamedTuple):
    """A photograph and its human label."""

    image: Image
    severity: int
    attributes: dict[str, int]

    def truth(self, texts: list[str]) -> Truth:
        values = [worth(read(text), self.severity) for text in texts]
        return Truth(tuple(v.helpfulness for v in values), tuple(v.level for v in values), self.attributes)


def read_leaves(folder: Path, rng: random.Random) -> dict[int, list[Leaf]]:
    """Every photograph, by severity, in random order; those that look almost like another one come last, which is training.

    Raises:
        SystemExit: If a column, a number or a photograph is missing, naming it.
    """
    table = folder / "labels.csv"
    files: list[bytes] = []
    leaves: list[Leaf] = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                severity = severity_of(row["severity"])
                signs = {sign: int(int(row[sign]) != 0) for sign in SIGNS}
                files.append((folder / "images" / f"{row['id']}.jpg").read_bytes())
                leaves.append(Leaf(probe(files[-1]), severity, signs | {"severity": severity}))
    except KeyError as error:
        sys.exit(f"error: {table}: no column {error}; it needs id, {', '.join(SIGNS)} and severity")
    except (ValueError, TypeError) as error:
        sys.exit(f"error: {table}: photograph {len(leaves) + 1}: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    alike = lookalikes(files)
    groups: dict[int, list[tuple[bool, Leaf]]] = {0: [], 1: [], 2: []}
    for i, leaf in enumerate(leaves):
        groups[leaf.severity].append((i in alike, leaf))
    for members in groups.values():
        rng.shuffle(members)
        members.sort(key=lambda member: member[0])
    return {severity: [leaf for _, leaf in members] for severity, members in groups.items()}


def severity_of(label: str) -> int:
    """The human label as one of three classes. Raises: ValueError: If it is none of 0 to 4."""
    if label not in ("0", "1", "2", "3", "4"):
        raise ValueError(f"severity is {label!r}; it must be 0 to 4")
    return min(int(label), 2)


def check_counts(leaves: dict[int, list[Leaf]], held_out: dict[str, int]) -> None:
    """Raises: SystemExit: If a severity has too few photographs for every split."""
    least = sum(held_out.values()) + 1
    for severity, members in leaves.items():
        if len(members) < least:
            sys.exit(f"error: {len(members)} photographs of severity class {severity}; {least} are needed")


def other_leaves(rows: list[Leaf]) -> list[Image]:
    """For each leaf the picture of the next one of another severity."""
    around = [*rows, *rows]
    return [
        next((other.image for other in around[i + 1 : i + len(rows)] if other.severity != leaf.severity), leaf.image)
        for i, leaf in enumerate(rows)
    ]


def demonstrate(leaf: Leaf, rng: random.Random) -> str:
    """What a knowledgeable but careless demonstrator says."""
    severity = leaf.severity if rng.random() < 0.92 else rng.randrange(3)
    advice = severity if rng.random() < 0.85 else rng.randrange(3)
    return write(severity, advice, rng.choices(MANNERS, (0.45, 0.25, 0.3))[0], rng)


def pair(leaf: Leaf, rng: random.Random) -> list[str]:
    """Two responses that do not say the same: half of them differ in one thing only."""
    while True:
        first = anything(rng)
        second = list(anything(rng))
        if rng.random() < 0.5:
            changed = rng.randrange(3)
            second = [value if i == changed else first[i] for i, value in enumerate(second)]
        texts = [demonstrate(leaf, rng) if rng.random() < 0.3 else write(*slots, rng) for slots in (first, second)]
        if read(texts[0]) != read(texts[1]):
            return texts


def anything(rng: random.Random) -> tuple[int, int, Manner]:
    return rng.randrange(3), rng.randrange(3), rng.choice(MANNERS)


def record(key: str, leaf: Leaf, texts: list[str], rng: random.Random, image: Image | None = None) -> Record:
    """A labelled record; with another ``image`` the labels stay those of the leaf that is asked about."""
    truth = leaf.truth(texts)
    sources = zip(texts, truth.safety, truth.helpfulness, strict=True)
    two = len(texts) == 2
    return Record(
        key=key,
        question=rng.choice(QUESTIONS),
        images=(image or leaf.image,),
        responses=tuple(Response(text, level, level >= 0, helpful, "template") for text, level, helpful in sources),
        category=(),
        more_helpful=int(truth.helpfulness[1] > truth.helpfulness[0]) if two else None,
        safer=int(truth.safety[1] > truth.safety[0]) if two else None,
        safety_tie=two and truth.safety[0] == truth.safety[1],
        helpfulness_tie=two and truth.helpfulness[0] == truth.helpfulness[1],
        truth=truth,
    )


def without_content() -> Image:
    """An even grey picture."""
    file = io.BytesIO()
    Picture.new("RGB", (224, 224), (128, 128, 128)).save(file, "PNG")
    return probe(file.getvalue())


def balanced(leaves: dict[int, list[Leaf]], size: int, rng: random.Random) -> list[Leaf]:
    """As many of each severity, in random order; photographs repeat as seldom as possible."""
    rows: list[Leaf] = []
    for severity, members in leaves.items():
        count = (size + 2 - severity) // 3
        rounds = [rng.sample(members, len(members)) for _ in range(count // len(members) + 1)]
        rows += [leaf for members in rounds for leaf in members][:count]
    rng.shuffle(rows)
    return rows


@torch.no_grad()
def own_replies(weights: Path, prompts: list[str], tokens: int) -> list[str]:
    """The language model's own greedy replies, up to their last whole sentence."""
    file = weights / LANGUAGE / GGUF
    if not file.is_file():
        sys.exit(f"error: --weights {weights}: no {LANGUAGE / GGUF}")
    tokenizer = load_tokenizer(str(file))
    model = build_decoder(str(file.parent), len(tokenizer), file.name, torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.padding_side = "left"
    tokenizer.pad_token_id = end
    replies: list[str] = []
    for batch in batched(prompts, 24):
        chats = [[{"role": "user", "content": prompt}] for prompt in batch]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=end, pad_token_id=end)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies += [_sentences(text.strip()) for text in texts]
    return replies


def _sentences(text: str) -> str:
    """Up to the end of the last whole sentence, or all if there is none."""
    return text[: max((m.end() for m in SENTENCE_END.finditer(text)), default=len(text))]


def text_record(key: str, prompt: str, reply: str) -> Record:
    return Record(
        key=key, question=prompt, responses=(Response(reply, 1, True, source="SmolLM2-135M-Instruct"),), category=()
    )


def records(leaves: dict[int, list[Leaf]], replies: list[tuple[str, str]], sizes: dict[str, int], held_out: dict[str, int],
            rng: random.Random) -> Iterator[tuple[str, Record]]:  # fmt: skip
    """Every record with its split."""
    photos: dict[str, dict[int, list[Leaf]]] = {}
    start = 0
    for split, count in held_out.items():
        photos[split] = {severity: members[start : start + count] for severity, members in leaves.items()}
        start += count
    training = {severity: members[start:] for severity, members in leaves.items()}
    texts = 0
    for i, leaf in enumerate(balanced(training, sizes["supervised"], rng)):
        yield "supervised", record(f"supervised-{i:05d}", leaf, [demonstrate(leaf, rng)], rng)
        if i % TEXT_EVERY == TEXT_EVERY - 1:
            yield "supervised", text_record(f"supervised-text-{texts:05d}", *replies[texts % len(replies)])
            texts += 1
    for i, reply in enumerate(replies):
        yield "text", text_record(f"text-{i:05d}", *reply)
    for split in ("train", "prompts"):
        for i, leaf in enumerate(balanced(training, sizes[split], rng)):
            yield split, record(f"{split}-{i:05d}", leaf, pair(leaf, rng), rng)
    for split, members in photos.items():
        rows = [leaf for group in members.values() for leaf in group] * (
            CALIBRATION_PAIRS if split == "calibration" else 1
        )
        rng.shuffle(rows)
        texts_of_rows = [pair(leaf, rng) for leaf in rows]
        pictures = {"": [leaf.image for leaf in rows]}
        if split == "test":
            pictures |= {
                "_shuffled": other_leaves(rows),
                "_blind": [without_content()] * len(rows),
            }
        for ending, images in pictures.items():
            asked = random.Random(split)  # the same questions
            for i, (leaf, said, image) in enumerate(zip(rows, texts_of_rows, images, strict=True)):
                yield f"{split}{ending}", record(f"{split}{ending}-{i:05d}", leaf, said, asked, image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of labels.csv and images/ID.jpg")
    parser.add_argument(
        "--weights", type=Path, default=Path("build/pretrained"), help="folder of the packages of weights"
    )
    parser.add_argument("--out", type=Path, default=Path("data/leaves"), help="shard folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of splits and texts")
    parser.add_argument("--small", action="store_true", help="few records, for a trial that measures nothing")
    chosen = parser.parse_args()
    about = {"photographs": "esgario/lara2018", "texts": "templates; replies without a picture: SmolLM2-135M-Instruct"}
    try:
        writer = ShardWriter(chosen.out, name="leaves", licence="MIT", taxonomy=Taxonomy("none", ()), origin=about)
    except ShardError as error:  # before minutes of work
        sys.exit(f"error: --out {error}")
    rng = random.Random(chosen.seed)
    held_out = {"test": 2, "validation": 2, "calibration": 20} if chosen.small else HELD_OUT
    sizes = {"supervised": 12, "train": 12, "prompts": 12} if chosen.small else SIZES
    prompts = list(PROMPTS[:4] if chosen.small else PROMPTS)
    with writer:
        leaves = read_leaves(chosen.photos, rng)
        check_counts(leaves, held_out)
        texts = own_replies(chosen.weights, prompts, 6 if chosen.small else 48)
        replies = [(prompt, reply) for prompt, reply in zip(prompts, texts, strict=True) if reply]
        for split, row in records(leaves, replies, sizes, held_out, rng):
            writer.write(split, row)


if __name__ == "__main__":
    main()
