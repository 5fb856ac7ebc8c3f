"""Conversations of inspect as records: what can be given to a model, and what is refused. inspect itself is not needed."""

import base64
import io
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from PIL import Image as PILImage

from safe_rlhf_v.inspecting.messages import messages_of, record_of
from safe_rlhf_v.records import Record, Turn
from safe_rlhf_v.records.packages import PackageError
from safe_rlhf_v.shards import probe


def data_uri(colour=1, suffix="PNG", media="png"):
    buffer = io.BytesIO()
    PILImage.new("RGB", (4, 4), (colour, colour, colour)).save(buffer, suffix)
    return f"data:image/{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def message(role, *parts, **more):
    content = [
        SimpleNamespace(type="image", image=part) if part.startswith(("data:", "http", "/")) else text(part)
        for part in parts
    ]
    return SimpleNamespace(role=role, content=content, **more)


def text(words):
    return SimpleNamespace(type="text", text=words)


def said(role, words, **more):
    return SimpleNamespace(role=role, content=words, **more)


def test_a_conversation_with_pictures():
    record = record_of(
        [
            said("system", "Be brief."),
            said("system", "Be kind."),
            message("user", "What is", data_uri(1), "this?", data_uri(2)),
            said("assistant", "A lock."),
            said("user", "And"),
            message("user", data_uri(3, "JPEG", "jpeg"), "this? 🔒"),
        ]
    )
    assert record.system == "Be brief.\nBe kind."
    assert record.history == (Turn("user", "What is\nthis?", 2), Turn("assistant", "A lock.", 0))
    assert record.question == "And\nthis? 🔒" and record.turns[-1].images == 1
    assert [image.format for image in record.images] == ["png", "png", "jpg"]


def test_what_the_picture_is_says_its_content_and_not_its_label():
    record = record_of([message("user", data_uri(1, "WEBP", "png"), "?")])
    assert record.images[0].format == "webp"


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "does not end with a message of the user"),
        ([said("system", "x")], "does not end with a message of the user"),
        ([said("user", "x"), said("assistant", "y")], "does not end with a message of the user"),
        ([said("assistant", "y"), said("user", "x")], "the first is the user's"),
        ([said("user", "x"), said("system", "y"), said("user", "z")], "system behind other messages"),
        ([said("tool", "x"), said("user", "z")], "role tool"),
        ([said("user", "x"), said("assistant", "y", tool_calls=[1]), said("user", "z")], "calls a tool"),
        ([SimpleNamespace(role="user", content=[SimpleNamespace(type="audio")])], "holds audio"),
        ([SimpleNamespace(role="user", content=[SimpleNamespace(type="reasoning")])], "holds reasoning"),
        ([message("user", "https://example.org/a.png")], "is not inline"),
        ([message("user", "/etc/passwd")], "is not inline"),
        ([message("user", "data:image/png;base64,%%%")], "not in base64"),
        ([message("user", "data:image/png;base64,AAAA")], "not a readable"),
        ([message("user", "data:text/html,<b>")], "is not inline"),
        ([said("user", "\ud800")], "question"),
    ],
)  # fmt: skip
def test_what_a_record_cannot_hold_is_refused(messages, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        record_of(messages)
    assert "\n" not in str(caught.value)


def test_an_assistant_that_shows_a_picture_is_refused():
    with pytest.raises(ValueError, match="only turns of the user hold images"):
        record_of([said("user", "x"), message("assistant", data_uri(), "y"), said("user", "z")])


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("safe_rlhf_v.inspecting.messages.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        record_of([message("user", data_uri())])


def test_there_and_back_again():
    pytest.importorskip("inspect_ai")
    images = tuple(probe(base64.b64decode(data_uri(i).partition(",")[2])) for i in (1, 2, 3))
    history = (Turn("user", "One?", 2), Turn("assistant", "Yes <b>.", 0))
    before = Record("request", "Two?", images, system="Be brief.", history=history).validate()
    for record in (before, before.with_images(()), Record("request", "")):
        assert record_of(messages_of(record)) == record


def test_without_the_extra_one_line_names_it(monkeypatch):
    for name in ("inspect_ai", "inspect_ai.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "safe_rlhf_v.inspecting.plugin", raising=False)
    with pytest.raises(PackageError, match=r"needs the package inspect_ai(\.model)?: pip install '\.\[inspect\]'"):
        messages_of(Record("request", "?"))
    with pytest.raises(PackageError, match=r"pip install '\.\[inspect\]'"):
        import_module("safe_rlhf_v.inspecting.plugin")
