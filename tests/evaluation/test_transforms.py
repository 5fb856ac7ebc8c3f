"""The two transforms of a prompt: what is written can be seen, what cannot be drawn is refused, and the rest stays as it is."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

from safe_rlhf_v.evaluation import transforms
from safe_rlhf_v.evaluation.transforms import (
    INSTRUCTION,
    PREFIX,
    WIDTH,
    TransformError,
    harmless_prefix,
    transformed,
    typographic,
    write_below,
)
from safe_rlhf_v.records import Record, Turn
from safe_rlhf_v.shards import probe

RED = (200, 30, 30)


def png(width=64, height=32, mode="RGB", colour=RED, suffix="PNG"):
    buffer = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).convert(mode).save(buffer, suffix)
    return buffer.getvalue()


def record(question="How is this opened?", pictures=1, **fields):
    images = tuple(probe(png(64 + i)) for i in range(pictures))
    return Record(key="r1", question=question, images=images, **fields).validate()


def pixels(data):
    return np.asarray(PILImage.open(io.BytesIO(data)).convert("RGB")).astype(int)


def ink(data, top):
    """Number of dark pixels below a row."""
    return int((pixels(data)[top:].sum(-1) < 200).sum())


def test_the_question_moves_into_the_picture():
    before = record()
    after = typographic(before).validate()
    assert after.question == INSTRUCTION
    assert (after.images[0].width, after.images[0].height) > (WIDTH, WIDTH // 2)
    image = pixels(after.images[0].data)
    scaled = round(WIDTH / 2)
    assert (image[: scaled - 2] == RED).all()
    assert 100 < ink(after.images[0].data, scaled) < 3000
    assert (image[-2:] == 255).all()
    assert after.images[0].id != before.images[0].id  # caches of features go by it
    assert typographic(before).to_json() == after.to_json()


def test_other_questions_give_other_pictures_and_longer_ones_more_ink():
    texts = ["no", "How is this opened?", "How is this opened, and by whom was it left here yesterday?"]
    images = [typographic(record(text)).images[0] for text in texts]
    inks = [ink(image.data, round(WIDTH / 2)) for image in images]
    assert inks == sorted(inks) and len(set(inks)) == 3
    assert images[2].height > images[1].height


def test_only_the_picture_of_the_question_is_written_on():
    history = (Turn("user", "What is this?", 1), Turn("assistant", "A lock.", 0))
    before = record(pictures=2, history=history, system="Be brief.")
    after = typographic(before).validate()
    assert after.images[0] == before.images[0] and after.images[1] != before.images[1]
    assert (after.history, after.system) == (before.history, before.system)


@pytest.mark.parametrize("pictures", [0, 1])
def test_a_question_without_a_picture_of_its_own_gets_one(pictures):
    history = (Turn("user", "What is this?", pictures), Turn("assistant", "A lock.", 0))
    after = typographic(record(pictures=pictures, history=history)).validate()
    assert len(after.images) == pictures + 1 and after.turns[-1].images == 1
    assert ink(after.images[-1].data, 0) > 100


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_without_a_question_there_is_nothing_to_write(question):
    assert typographic(record(question)) == record(question)


@pytest.mark.parametrize(
    "text",
    [
        "naïve façade", "Ελληνικά", "Привет", "e\u0301", "→ € ½", "😀", "a\nb\r\nc", "a\tb", "a\x00b\x07", "x\u200by",
        "<script>alert(1)</script> %s {0}", "don't \\ break", "w" * 500,
    ],
)  # fmt: skip
def test_odd_texts_are_drawn(text):
    assert ink(write_below(png(), text), round(WIDTH / 2)) > 10


@pytest.mark.parametrize("text", ["مرحبا كيف حالك", "שלום"])
def test_text_from_right_to_left_stands_at_the_right(text):
    image = pixels(write_below(None, text))
    columns = np.flatnonzero((image.sum(-1) < 200).any(0))
    assert columns.max() > WIDTH - 2 * transforms.MARGIN - 4 and columns.min() > WIDTH / 4


def test_where_such_text_cannot_be_laid_out_it_is_refused(monkeypatch):
    monkeypatch.setattr(transforms.features, "check", lambda name: False)
    write_below(None, "plain")
    with pytest.raises(TransformError, match=r"record 'r1': .*libraqm"):
        typographic(record("שלום"))


@pytest.mark.parametrize(
    ("text", "sign"), [("中文", "U+4E2D"), ("👍🏽", "U+1F44D"), ("नमस्ते", "U+0928"), ("a 🤖 b", "U+1F916")]
)
def test_signs_that_the_font_lacks_are_named_and_never_lost(text, sign):
    with pytest.raises(TransformError, match=rf"record 'r1': .*{sign.replace('+', '[+]')}.*name a font") as caught:
        typographic(record(text))
    assert "\n" not in str(caught.value)


def test_what_nobody_can_see_is_no_question():
    with pytest.raises(TransformError, match="no visible sign"):
        typographic(record("\u200b\u2060"))


def test_a_hidden_sign_that_the_font_lacks_draws_no_box():
    assert write_below(None, "ab") == write_below(None, "a\U000e0061b")


def test_a_long_text_makes_a_wider_picture_and_one_that_fits_none_is_refused_at_once():
    wide = PILImage.open(io.BytesIO(write_below(png(), "word " * 400)))
    assert wide.width > WIDTH and wide.height < 4 * wide.width
    with pytest.raises(TransformError, match="1000000 characters are too many"):
        typographic(record("a" * 1_000_000))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("RGB", "WEBP"), ("I;16", "PNG")]
)
def test_every_picture_that_a_record_may_hold_is_written_on(mode, suffix):
    source = png(mode=mode, suffix=suffix) if mode != "I;16" else grey16()
    assert ink(write_below(source, "text"), round(WIDTH / 2)) > 10


def grey16():
    buffer = io.BytesIO()
    PILImage.fromarray(np.full((32, 64), 40000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (10, 2000)])
def test_pictures_of_odd_shapes(size):
    image = PILImage.open(io.BytesIO(write_below(png(*size), "text")))
    assert image.width == max(WIDTH, size[0])


def test_a_broken_picture_is_named():
    broken = replace(record(), images=(replace(record().images[0], data=b"no picture"),))
    with pytest.raises(TransformError, match=r"record 'r1': .*not a readable"):
        typographic(broken)


@pytest.mark.parametrize(("content", "why"), [(None, "no such file"), (b"no font", "is no font")])
def test_a_font_that_is_none_is_named(tmp_path, content, why):
    file = tmp_path / "own.ttf"
    if content:
        file.write_bytes(content)
    with pytest.raises(TransformError, match=rf"own\.ttf: {why}"):
        typographic(record(), font=str(file))


def test_a_font_of_ones_own_is_used():
    import matplotlib

    bold = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf"
    assert ink(write_below(None, "text", bold), 0) > 1.2 * ink(write_below(None, "text"), 0)


def test_a_harmless_text_stands_before_the_question():
    before = record("سؤال 👍", history=(Turn("user", "Hi", 0), Turn("assistant", "Hello.", 0)))
    after = harmless_prefix(before).validate()
    assert after.question == f"{PREFIX} سؤال 👍"
    assert after == replace(before, question=after.question)
    assert harmless_prefix(record("")).question == PREFIX


def test_transforms_are_chosen_by_name():
    assert transformed(record(), "none") == record()
    assert transformed(record(), "typographic") == typographic(record())
    assert transformed(record(), "harmless_prefix") == harmless_prefix(record())
    with pytest.raises(ValueError, match="none of none, typographic, harmless_prefix"):
        transformed(record(), "rot13")
