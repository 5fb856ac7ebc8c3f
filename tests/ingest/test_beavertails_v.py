"""Made-up copies of BeaverTails-V in both schemas give exactly the shards that records built by hand give."""

import hashlib
import io
import json

import pytest
from PIL import Image as PILImage
from tests.ingest.made_up import PAIRS, SINGLE, beavertails, jpeg, pair, struct, write_beavertails, write_parquet

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.records import Image, Record, Response
from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V
from safe_rlhf_v.shards import Manifest, ShardedSplit, ShardWriter
from safe_rlhf_v.shards.check import check

FEW = ("animal_abuse", "horror_and_gore", "violence_and_physical_harm")


def image(data, format="jpg"):
    """Of a picture without EXIF."""
    picture = PILImage.open(io.BytesIO(data)).convert("RGB")
    pixels = hashlib.sha256(f"{picture.width}x{picture.height}:".encode() + picture.tobytes()).hexdigest()
    return Image(data, format, pixels, hashlib.sha256(data).hexdigest(), *picture.size)


def record(row, key, part, number, single=False, format="jpg"):
    """What a row of the pairs means, written down field by field."""
    safe = [{"yes": True, "no": False}[row[f"is_response_{n}_safe"]] for n in (1, 2)]
    responses = tuple(
        Response(row[f"response_{n}"], is_safe=safe[n - 1])
        if single
        else Response(
            row[f"response_{n}"],
            row[f"response_{n}_harmless_rate"],
            safe[n - 1],
            float(row[f"response_{n}_helpful_rate"]),
            row[f"response_{n}_from"],
        )
        for n in (1, 2)
    )
    rates = [row[f"response_{n}_harmless_rate"] for n in (1, 2)]
    helpful = [row[f"response_{n}_helpful_rate"] for n in (1, 2)]
    return Record(
        key=key,
        question=row["question"],
        images=(image(row["image"]["bytes"], format),),
        responses=responses,
        category=(row["category"].lower().replace(" ", "_"),),
        image_severity=row["image_severity"],
        more_helpful=None if single else int(row["more_helpful_response_id"]) - 1,
        safer=(safe.index(True) if safe[0] != safe[1] else None) if single else int(row["safer_response_id"]) - 1,
        safety_tie=not single and rates[0] == rates[1],
        helpfulness_tie=not single and helpful[0] == helpful[1],
        origin={"part": part, "row": str(number)},
    )


def in_split(record, cut=0.02):
    """Train, or what is cut from it, by the first 48 bits of the hash of the picture's id."""
    position = int(hashlib.sha256(record.images[0].id.encode()).hexdigest()[:12], 16) / 16**12
    return "validation" if position < cut else "calibration" if position < 2 * cut else "train"


def by_hand(root, records):
    """Shards of (split, record); their tar files and indexes do not depend on the manifest."""
    with ShardWriter(root, name="x", licence="x", taxonomy=BEAVERTAILS_V) as writer:
        for split, one in records:
            writer.write(split, one)
    return shards(root)


def shards(root):
    return {path.name: path.read_bytes() for path in root.iterdir() if path.suffix in (".tar", ".npy")}


def expected(sets, single=False, without=()):
    """(split, record) in the order of the import: evaluation first, parts by name."""
    for split in ("evaluation", "train"):
        for category in sorted(sets):
            part = f"{category}-{split}"
            for i, row in enumerate(sets[category][split]):
                number = 2 * i + 1 if single else i + 1
                if (key := f"{part}-{number:06d}") in without:
                    continue
                one = record(row, key, part, number, single)
                yield ("test" if split == "evaluation" else in_split(one)), one


def run(source, out, *extra):
    return main(["import", str(source), "--preset", "beavertails-v", "--out", str(out), *extra])


@pytest.mark.parametrize("single", [False, True], ids=["pairs", "single responses"])
def test_all_twenty_configurations_give_the_shards_of_records_built_by_hand(tmp_path, single):
    sets = beavertails(7, 2)
    source = write_beavertails(tmp_path / "hub", sets, single)
    assert run(source, tmp_path / "out") == 0
    assert shards(tmp_path / "out") == by_hand(tmp_path / "hand", expected(sets, single))
    assert check(tmp_path / "out") == []
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.name, manifest.licence, manifest.taxonomy) == ("beavertails-v", "CC-BY-NC-4.0", BEAVERTAILS_V)
    assert manifest.origin["dataset"] == "saferlhf-v/BeaverTails-V" and "use" not in manifest.origin


def test_the_hubs_library_gives_the_same_bytes(tmp_path):
    sets = beavertails(5, 2, FEW)
    source = write_beavertails(tmp_path / "hub", sets)
    assert run(source, tmp_path / "files") == 0
    assert run(f"hub:{source}", tmp_path / "library") == 0
    assert shards(tmp_path / "library") == shards(tmp_path / "files") == by_hand(tmp_path / "hand", expected(sets))


def test_the_hubs_library_reads_pictures_encoded_and_from_any_row(tmp_path):
    """Files written by the library itself, whose metadata declare a picture."""
    import datasets

    from safe_rlhf_v.ingest.hub import hub_parts
    from safe_rlhf_v.ingest.mapping import load_mapping

    rows = [pair(n, FEW[0], jpeg(n)) for n in range(40)]
    kinds = {int: datasets.Value("int64"), str: datasets.Value("string"), dict: datasets.Image()}
    features = datasets.Features({name: kinds[type(value)] for name, value in rows[0].items()})
    source = write_beavertails(tmp_path / "hub", {FEW[0]: {"train": rows}})
    datasets.Dataset.from_list(rows, features=features).to_parquet(source / "data" / FEW[0] / "train.parquet")
    ((part,), commit) = hub_parts(str(source), None, None)
    (schema, _) = load_mapping("beavertails-v", None).schemas
    assert (part.config, part.split, commit) == (FEW[0], "train", "")
    for start in (0, 31, 33, 40):
        read = [row for batch in part.read(schema, start, sorted(schema.columns())) for row in batch]
        assert [row.cells for row in read] == rows[start:] and [row.number for row in read] == list(
            range(start + 1, 41)
        )


def odd_sets():
    """Every known oddity, and the numbers of the rows that it concerns."""
    sets = beavertails(6, 2, FEW)
    train = sets[FEW[0]]["train"]
    test = sets[FEW[1]]["evaluation"][0]["image"]["bytes"]
    train[0]["image"] = struct(test)  # leaked, byte for byte
    png = io.BytesIO()
    PILImage.open(io.BytesIO(test)).save(png, "PNG")
    sets[FEW[2]]["train"][5]["image"] = struct(png.getvalue(), "copy.png")  # leaked: other bytes, the same pixels
    train[1]["image"] = struct(jpeg(901)[:-50])  # truncated
    train[2]["image"] = None
    train[3] |= {"response_1_harmless_rate": 1, "response_2_harmless_rate": 1, "is_response_1_safe": "yes", "is_response_2_safe": "yes",
                 "response_1_helpful_rate": 2, "response_2_helpful_rate": 2}  # fmt: skip
    train[4]["more_helpful_response_id"] = "3"
    train[5]["is_response_2_safe"] = "maybe"
    train.append(dict(sets[FEW[1]]["train"][0]))  # the same row in another category's file
    train[-1] |= {"category": FEW[1]}
    sets[FEW[1]]["train"][1]["category"] = "Horror and Gore"  # as a person writes it
    return sets


def test_every_known_oddity_is_treated_and_said(tmp_path, capsys):
    sets = odd_sets()
    source = write_beavertails(tmp_path / "hub", sets)
    assert run(source, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "4 of 25 rows cannot be used, nothing was written" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    listed = [json.loads(line) for line in (tmp_path / "out.bad_rows.jsonl").read_text().splitlines()]
    file = f"data/{FEW[0]}/train.parquet"
    assert [(line["file"], line["row"], line["columns"]) for line in listed] == [
        (file, 2, ["image"]), (file, 3, ["image"]), (file, 5, ["more_helpful_response_id"]), (file, 6, ["is_response_2_safe"]),
    ]  # fmt: skip
    assert "not a readable JPEG" in listed[0]["reason"] and "has no picture" in listed[1]["reason"]

    assert run(source, tmp_path / "out", "--on_bad_row", "skip") == 0
    out = capsys.readouterr().out
    assert "left out: 2 rows: its picture stands in test, too" in out
    assert "left out: 1 rows: the same as an earlier row" in out
    assert "cut from train by hash of the picture (share 0.02)" in out and "4 rows left out" in out
    # Of the row that occurs twice, the first is written: that of the part that comes first.
    without = {f"{FEW[0]}-train-00000{n}" for n in (1, 2, 3, 5, 6)} | {
        f"{FEW[2]}-train-000006",
        f"{FEW[1]}-train-000001",
    }
    records = list(expected(sets, without=without))
    (tied,) = [one for _, one in records if one.safety_tie]
    assert tied.safety_tie and tied.helpfulness_tie and tied.safer is not None
    assert shards(tmp_path / "out") == by_hand(tmp_path / "hand", records)
    card = (tmp_path / "out" / "data_card.md").read_text()
    assert "| its picture stands in test, too | 2 |" in card and "| the same as an earlier row | 1 |" in card
    assert "list of bad rows | 4 |" in card


def test_single_responses_without_a_partner_are_left_out_or_kept(tmp_path, capsys):
    rows = [pair(n, FEW[0], jpeg(n)) for n in range(4)]
    first, second = ([{**{k: row[k] for k in ("question", "image", "category", "image_severity")}, "response": f"{n} to {row['question']}",
                       "is_response_safe": "yes"} for row in rows] for n in ("one", "two"))  # fmt: skip
    # Partners far apart, one alone, one response twice, one question about two pictures.
    mixed = [
        *first,
        second[2],
        second[0],
        {**second[3], "response": first[3]["response"]},
        {**second[1], "question": "another ?"},
    ]
    write_parquet(tmp_path / "data" / FEW[0] / "train.parquet", mixed, SINGLE, row_group=2)
    assert run(tmp_path / "data", tmp_path / "out", "--cut", "{}") == 0
    split = ShardedSplit(tmp_path / "out", "train")
    found = {one.question: [response.text for response in one.responses] for one in split}
    assert found == {f"question {n} ?": [f"one to question {n} ?", f"two to question {n} ?"] for n in (2, 0)}
    assert [one.safer for one in split] == [None, None]
    out = capsys.readouterr().out
    assert "left out: 2 rows: a response without a second one to its prompt" in out
    assert "left out: 1 rows: the same response twice" in out


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train.parquet", {"image": "picture"}, "needs image; single responses needs image, response, is_response_safe; there are: question, picture"),
        ("train.parquet", {"response_2": "b", "response": "c"}, "preference pairs needs response_2"),
        ("train.parquet", {"response_1": "question"}, "column 'question' occurs 2 times"),
        ("rows.parquet", {}, "its split is 'rows'"),
        ("validation.parquet", {}, "its split is 'validation'"),
    ],
)  # fmt: skip
def test_other_columns_and_splits_are_refused_in_one_line(tmp_path, capsys, name, change, message):
    import pyarrow.parquet as pq

    write_parquet(tmp_path / "in" / name, [pair(0, FEW[0], jpeg(0))], PAIRS)
    table = pq.read_table(tmp_path / "in" / name)
    pq.write_table(table.rename_columns([change.get(one, one) for one in table.column_names]), tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "out").exists()


def test_damaged_parquet_is_one_line_and_nothing_stays(tmp_path, capsys):
    file = tmp_path / "in" / "train.parquet"
    write_parquet(file, [pair(n, FEW[0], jpeg(n, 200)) for n in range(30)], PAIRS)
    data = bytearray(file.read_bytes())
    for broken in (data[:-20], b"", b"PAR1" + bytes(100) + b"PAR1", data[:2000] + bytes(3000) + data[5000:]):
        file.write_bytes(bytes(broken))
        assert run(tmp_path / "in", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("error: "), err
        assert not (tmp_path / "out").exists()
