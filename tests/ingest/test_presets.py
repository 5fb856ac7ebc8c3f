"""Every preset reads files in the form of its data set, and refuses others in one line."""

import base64
import csv
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.ingest.made_up import IMAGE, jpeg, struct

from safe_rlhf_v.commands.shards import main
from safe_rlhf_v.ingest.mapping import parse_mapping, preset_names, preset_text
from safe_rlhf_v.records import Turn
from safe_rlhf_v.shards import Manifest, ShardedSplit
from safe_rlhf_v.shards.check import check


def pictures(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(i, format="PNG" if name.endswith("png") else "JPEG"))


def parquet(path, rows, **types):
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def spa_vl(root):
    pairs = [
        {"image": struct(jpeg(i)), "question": f"q{i}", "chosen": "good", "rejected": "bad", "image_name": f"{i}.jpg"}
        for i in range(9)
    ]
    parquet(root / "data" / "train-00000-of-00002.parquet", pairs[:5], image=IMAGE)
    parquet(root / "data" / "train-00001-of-00002.parquet", pairs[5:], image=IMAGE)
    classes = {"class1": "Representation", "class2": "x", "class3": "y"}
    parquet(
        root / "validation" / "validation-00000-of-00001.parquet",
        [{"image": struct(jpeg(20)), "question": "v", "chosen": "a", "rejected": "b", **classes}],
        image=IMAGE,
    )
    for n, split in enumerate(("harm", "help")):
        parquet(
            root / "test" / f"{split}-00000-of-00001.parquet",
            [{"image": struct(jpeg(30 + n)), "question": split, **classes}],
            image=IMAGE,
        )
    return root, {"train": 9, "validation": 1, "test": 1, "test_help": 1}


def check_spa_vl(splits):
    first = splits["train"][0]
    assert [r.text for r in first.responses] == ["good", "bad"] and (
        first.more_helpful,
        first.safer,
        first.category,
    ) == (0, 0, None)
    assert splits["test"][0].responses == () and splits["test_help"][0].category == ("Representation",)


def vlguard(root):
    safe = {"id": "a", "image": "ads/1.png", "safe": True, "instr-resp": [
        {"safe_instruction": "what ?", "response": "a shop"}, {"unsafe_instruction": "how to harm ?", "response": "I can not"}]}  # fmt: skip
    unsafe = {"id": "b", "image": "bad/2.jpg", "safe": False, "harmful_category": "privacy", "harmful_subcategory": "x",
              "instr-resp": [{"instruction": "who ?", "response": "I will not"}]}  # fmt: skip
    for split in ("train", "test"):
        pictures(
            root / split,
            *(("ads/1.png", "bad/2.jpg") if split == "train" else ("bad/0.jpg", "ads/1.png", "bad/2.jpg")),
        )
        (root / f"{split}.json").write_text(
            json.dumps([safe, unsafe] if split == "train" else [{**safe, "image": "bad/2.jpg"}], indent=2)
        )
    (root / "gpt4_safe_safes.json").write_text("{}")
    return root, {"train": 3, "test": 2}


def check_vlguard(splits):
    assert [one.question for one in splits["train"]] == ["what ?", "how to harm ?", "who ?"]
    assert [one.category for one in splits["train"]] == [None, None, ("privacy",)]
    assert all(one.responses[0].is_safe for one in splits["train"]) and splits["train"][0].images[0].format == "png"


def mm_rlhf(root):
    pictures(root, "short/0.jpg", "safety/1.jpg")
    rows = [{"image": "short/0.jpg", "prompt": "p", "chosen": "c", "rejected": "r"}, {"video": "v.mp4", "prompt": "p", "chosen": "c", "rejected": "r"},
            {"image": "safety/1.jpg", "prompt": "p2", "chosen": "c2", "rejected": "r2", "chosen_score": 3}]  # fmt: skip
    (root / "dpo_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "data.jsonl").write_text("{}\n")
    return root, {"train": 2}


def check_mm_rlhf(splits):
    assert [one.more_helpful for one in splits["train"]] == [0, 0] and splits["train"][0].safer is None


def llava_instruct(root):
    pictures(root, "coco/0.jpg", "coco/1.jpg")
    rows = [
        {"id": "1", "image": "coco/0.jpg", "conversations": [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "a dog"},
                                                            {"from": "human", "value": "which ?"}, {"from": "gpt", "value": "a poodle"}]},
        {"id": "2", "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "and here ?\n<image>"}, {"from": "gpt", "value": "a cat"}]},
        {"id": "3", "conversations": [{"from": "human", "value": "two and two ?"}, {"from": "gpt", "value": "four"}]},
    ]  # fmt: skip
    (root / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))
    return root, {"train": 3}


def check_llava_instruct(splits):
    two, one, text = splits["train"]
    assert two.history == (Turn("user", "what ?", 1), Turn("assistant", "a dog")) and (
        two.question,
        two.responses[0].text,
    ) == ("which ?", "a poodle")
    assert one.question == "and here ?" and len(one.images) == 1 and one.history == ()
    assert text.images == () and text.responses[0].text == "four"


def mm_safetybench(root):
    for n, config in enumerate(("Illegal_Activitiy", "Fraud")):
        for m, split in enumerate(("SD", "SD_TYPO", "TYPO", "Text_only")):
            image = None if split == "Text_only" else struct(jpeg(10 * n + m))
            parquet(
                root / "data" / config / f"{split}.parquet",
                [{"id": "0", "question": f"{config} {split}", "image": image}],
                image=IMAGE,
            )
    return root, {"test": 2, "test_sd": 2, "test_typo": 2, "test_text": 2}


def figstep(root):
    pictures(root / "SafeBench", "query_ForbidQI_1_1_6.png", "query_ForbidQI_1_2_6.png")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["dataset", "category_id", "task_id", "category_name", "question", "instruction"])
    writer.writerows([["ForbidQI", 1, n, "Illegal Activity", "how ?", "Steps."] for n in (1, 2)])
    (root / "safebench.csv").write_text(text.getvalue())
    return root / "safebench.csv", {"test": 2}


def check_figstep(splits):
    assert splits["test"][0].question.startswith("The image shows a list numbered 1, 2, and 3") and splits["test"][
        0
    ].category == ("Illegal Activity",)


def vlsbench(root):
    pictures(root, "imgs/0.png", "imgs/1.png")
    rows = [
        {
            "instruction_id": str(n),
            "instruction": f"i{n}",
            "image_path": f"imgs/{n}.png",
            "category": "Violent",
            "sub_category": "s",
        }
        for n in range(2)
    ]
    (root / "data.json").write_text(json.dumps(rows))
    return root, {"test": 2}


def siuo(root):
    pictures(root / "images", "S-08.png")
    (root / "siuo_gen.json").write_text(
        json.dumps(
            [
                {
                    "question_id": 1008,
                    "image": "S-08.png",
                    "question": "q",
                    "category": "self-harm",
                    "safety_warning": "w",
                    "reference_answer": "r",
                }
            ]
        )
    )
    return root, {"test": 1}


def mssbench(root):
    pictures(root, "chat/safe.jpg", "chat/unsafe.jpg", "embodied/s.png", "embodied/u.png")
    chat = {
        "safe_image_path": "safe.jpg",
        "unsafe_image_path": "unsafe.jpg",
        "queries": ["may I run ?", "may I jump ?"],
        "Type": "physical harm",
        "intent": "run",
    }
    embodied = {
        "task": "t",
        "category": "property",
        "safe_instruction": "put",
        "unsafe_instruction": "drop",
        "safe": "s.png",
        "unsafe": "u.png",
    }
    (root / "combined.json").write_text(json.dumps({"chat": [chat], "embodied": [embodied]}))
    return root, {"test": 6}


def check_mssbench(splits):
    assert sorted({one.question for one in splits["test"]}) == ["drop", "may I jump ?", "may I run ?", "put"]


def holisafe(root):
    pictures(root / "images", "a/0.jpg")
    rows = [
        {"id": n, "image": "a/0.jpg", "query": f"q{n}", "type": "SSU", "category": "violence", "subcategory": "x"}
        for n in range(2)
    ]
    (root / "holisafe_bench.json").write_text(json.dumps(rows))
    return root, {"test": 2}


def mossbench(root):
    pictures(root / "images", "1.png")
    (root / "images" / "metadata.csv").write_text(
        "file_name,pid,question,short description,metadata_over\n1.png,1,harmless ?,x,True\n"
    )
    return root, {"test": 1}


MADE = {"spa-vl": spa_vl, "vlguard": vlguard, "mm-rlhf": mm_rlhf, "llava-instruct": llava_instruct, "mm-safetybench": mm_safetybench, "figstep": figstep,
        "vlsbench": vlsbench, "siuo": siuo, "mssbench": mssbench, "holisafe": holisafe, "mossbench": mossbench}  # fmt: skip
TESTING = {"mm-safetybench", "figstep", "vlsbench", "siuo", "mssbench", "holisafe", "mossbench"}
WITHOUT_LICENCE = {"mm-rlhf", "mssbench", "holisafe"}


def imported(name, tmp_path, *extra):
    source, counts = MADE[name](tmp_path / "in")
    more = ["--licence", "x"] if name in WITHOUT_LICENCE else []
    more += ["--images", str(tmp_path / "in" / "SafeBench")] if name == "figstep" else []
    return main(["import", str(source), "--preset", name, "--out", str(tmp_path / "out"), *more, *extra]), counts


def test_every_preset_is_tried():
    assert set(preset_names()) == {*MADE, "beavertails-v"}


@pytest.mark.parametrize("name", MADE)
def test_a_preset_reads_the_form_of_its_data(tmp_path, name, capsys):
    (tmp_path / "in").mkdir()
    testing = name in TESTING
    status, counts = imported(name, tmp_path, *([] if testing else ["--cut", "{}"]))
    assert status == 0, capsys.readouterr().err
    manifest = Manifest.load(tmp_path / "out")
    assert {split: one.samples for split, one in manifest.splits.items()} == counts
    assert (manifest.origin.get("use") == "testing only") == testing == ("testing only" in capsys.readouterr().out)
    assert check(tmp_path / "out") == []
    if verify := globals().get(f"check_{name.replace('-', '_')}"):
        verify({split: list(ShardedSplit(tmp_path / "out", split)) for split in counts})


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_where_its_columns_are_from_and_refuses_others_in_one_line(tmp_path, capsys, name):
    text = preset_text(name)
    mapping = parse_mapping(text, name)
    assert "columns_from:" in text and mapping.about and mapping.testing_only == (name in TESTING)
    file = mapping.files[0].pattern.replace("*", "x") if mapping.files else f"{next(iter(mapping.splits))}.jsonl"
    path = tmp_path / "in" / file.replace(".parquet", ".jsonl")
    path.parent.mkdir(parents=True)
    row = json.dumps({"frage": "q", "bild": "1.jpg"})
    path.write_text({".csv": "frage,bild\nq,1.jpg\n", ".json": f"[{row}]"}.get(path.suffix, f"{row}\n"))
    assert main(["import", str(path), "--preset", name, "--out", str(tmp_path / "out"), "--licence", "x"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert name == "mssbench" or ("frage" in err and "bild" in err)


def test_presets_are_listed_and_printed_to_be_copied(tmp_path, capsys):
    assert main(["presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == preset_names()
    assert main(["presets", "spa-vl"]) == 0
    printed = capsys.readouterr().out
    assert printed == preset_text("spa-vl")
    (tmp_path / "mine.yaml").write_text(printed.replace("question: question", "question: prompt"))
    parquet(
        tmp_path / "train.parquet",
        [{"prompt": "q", "image": struct(jpeg(1)), "chosen": "a", "rejected": "b"}],
        image=IMAGE,
    )
    out = ["--out", str(tmp_path / "out"), "--cut", "{}", "--name", "mine"]
    assert main(["import", str(tmp_path / "train.parquet"), "--mapping", str(tmp_path / "mine.yaml"), *out]) == 0
    assert ShardedSplit(tmp_path / "out", "train")[0].question == "q" and Manifest.load(tmp_path / "out").name == "mine"
    assert main(["presets", "spavl"]) == 2 and "there is no 'spavl'" in capsys.readouterr().err


def test_a_set_for_testing_only_is_refused_by_training(tmp_path, world, capsys):
    from safe_rlhf_v import __main__ as entry

    (tmp_path / "in").mkdir()
    assert imported("mossbench", tmp_path)[0] == 0
    capsys.readouterr()
    config = "configs/quickstart/supervised.yaml"
    tokenizer = f"--model.init_args.backbone.init_args.tokenizer={world / 'tokenizer'}"
    data = f"--data.init_args.path={tmp_path / 'out'}"
    args = [f"--config={config}", data, tokenizer, "--model.init_args.init_from=null"]
    try:
        status = entry.main(["fit", *args])
    except SystemExit as exit:
        status = exit.code
    err = capsys.readouterr().err
    assert status == 2 and "'mossbench' is for testing only" in err.splitlines()[-1]


def test_data_modules_refuse_it_too(tmp_path):
    from types import SimpleNamespace

    from safe_rlhf_v.data_modules import PromptDataModule
    from safe_rlhf_v.shards import ShardError

    (tmp_path / "in").mkdir()
    assert imported("mossbench", tmp_path)[0] == 0
    data = PromptDataModule(path=str(tmp_path / "out"), train_split="test", validation_splits=())
    data.trainer = SimpleNamespace(enable_validation=False, lightning_module=None, global_step=0)
    data.setup("test")
    with pytest.raises(ShardError, match="for testing only"):
        data.setup("fit")


def test_pictures_of_every_kind(tmp_path):
    data = [jpeg(n) for n in range(6)]
    pictures(tmp_path / "files", "0.jpg")
    mapping = """
name: kinds
licence: x
splits: {"*": test}
fields: {question: q, image: {column: pictures, form: FORM}}
"""
    one_url = "data:image/jpeg;base64," + base64.b64encode(data[1]).decode()
    cases = {
        "bytes": (pa.binary(), "text", data[1]),
        "structs": (pa.list_(IMAGE), "text", [struct(data[1]), struct(data[2])]),
        "lists": (pa.list_(pa.binary()), "text", [data[1], data[2]]),
        "path": (pa.string(), "text", "0.jpg"),
        "path_in_struct": (IMAGE, "text", {"bytes": None, "path": "0.jpg"}),
        "paths": (pa.list_(pa.string()), "text", ["0.jpg"]),
        "base64": (pa.string(), "base64", base64.b64encode(data[1]).decode()),
        "url": (pa.string(), "text", one_url),
    }
    for name, (kind, form, value) in cases.items():
        (tmp_path / f"{name}.yaml").write_text(mapping.replace("FORM", form))
        parquet(tmp_path / f"{name}.parquet", [{"q": "q", "pictures": value}], pictures=kind)
        more = [
            "--mapping",
            str(tmp_path / f"{name}.yaml"),
            "--images",
            str(tmp_path / "files"),
            "--out",
            str(tmp_path / name),
        ]
        assert main(["import", str(tmp_path / f"{name}.parquet"), *more]) == 0, name
        images = ShardedSplit(tmp_path / name, "test")[0].images
        expected = [data[0]] if "path" in name else data[1 : 1 + len(images)]
        assert [image.data for image in images] == expected, name
        assert len(images) == (2 if name in ("structs", "lists") else 1)


def test_a_zip_is_no_picture_and_files_outside_are_refused(tmp_path, capsys):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", jpeg(0))
    rows = [
        {"q": "q", "p": buffer.getvalue(), "f": "x"},
        {"q": "q", "p": None, "f": "../secret.jpg"},
        {"q": "q", "p": None, "f": "/etc/passwd"},
    ]
    parquet(tmp_path / "in" / "rows.parquet", rows, p=pa.binary())
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    (tmp_path / "m.yaml").write_text(
        'name: n\nlicence: x\nsplits: {"*": test}\nfields: {question: q, image: {column: [p, f]}}\n'
    )
    assert (
        main(["import", str(tmp_path / "in"), "--mapping", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "out")])
        == 2
    )
    err = capsys.readouterr().err
    assert "no decoder recognises it" in err and err.count("is outside") == 2 and "3 of 3 rows cannot be used" in err
