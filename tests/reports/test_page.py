"""The page: hostile texts stay texts, nothing comes from outside, and what a screen reader needs is there."""

import base64
import html.parser
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from safe_rlhf_v.reports import charts
from safe_rlhf_v.reports.blocks import (
    Bar,
    Bars,
    Card,
    Confusion,
    Example,
    Examples,
    Figure,
    Figures,
    Finding,
    Findings,
    Histogram,
    Picture,
    Point,
    Scatter,
    Section,
    Side,
    Table,
    Text,
    worst_cards_first,
)
from safe_rlhf_v.reports.page import MAX_TEXT, Page, render, visible, write
from safe_rlhf_v.reports.pictures import Thumbnails

TEMPLATES = Path(charts.__file__).parent
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "quotes": '" onmouseover="alert(1)" x=\'\' y=`z`',
    "end of svg": "</title></svg><svg onload=alert(1)>",
    "end of style": "</style><style>*{background:url(https://example.org)}</style>",
    "comment": "<!-- --> <![CDATA[ ]]>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "entity": "&lt;script&gt; &#x202e; &amp;",
    "link": "javascript:alert(1)",
}
UNSEEN = {"nul": "a\0b", "bidi": "a\u202eb\u2066c", "surrogate": "a\ud800b", "escape": "\x1b[2J", "mark": "\ufeffx"}
VOID = {"meta", "img", "input", "link"}


class Reader(html.parser.HTMLParser):
    """Elements, attributes and texts of a page; refuses a page whose elements are not closed in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def png(width=40, height=30):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side):
    """A PNG whose header states so many pixels on each side."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def everything(text, pictures=()):
    """A page in which ``text`` stands in every place that data can reach."""
    finding = Finding("alarm", text, text, text, text, text)
    inner = [
        Text(text),
        Figures([Figure(text, text, note=text), Figure(text, 0.5, "share", severity="good")]),
        Bars(text, [Bar(text, 0.4, 0.3, 0.5, text, "alarm")], reference=0.25, reference_label=text),
        Table(text, [text, text], [[text, text], [text, 3]]),
        Table(text, [text], [[text]], folded=True),
        Confusion(text, text, text, [text, text], [text, text], [[3, 1], [0, 0]]),
        Histogram(text, [text, text], [2, 5], text),
        Histogram(text, [0, 1, 2], [2, 5], text),
        Scatter(text, text, text, [Point(0, 1, text), Point(2, 3, text, "alarm")]),
        Examples(text, [Example(text, text, text, pictures, [Side(text, text, [(text, text)])], [(text, text)])], 9),
    ]
    blocks = [Findings([finding]), *inner, Card(text, text, [text], [finding], inner)]
    return Page(text, text, [Section(text, text, blocks)], [(text, text)])


@pytest.fixture(scope="module")
def skeleton():
    """Elements and names of attributes of a page with a harmless text."""
    return [(tag, sorted(attributes)) for tag, attributes in Reader(render(everything("plain"))).elements]


@pytest.mark.parametrize("text", [*HOSTILE.values(), *UNSEEN.values()], ids=[*HOSTILE, *UNSEEN])
def test_a_text_never_becomes_an_element_or_an_attribute(skeleton, text):
    page = Reader(render(everything(text)))
    assert [(tag, sorted(attributes)) for tag, attributes in page.elements] == skeleton
    assert page.text.count(visible(text)) > 40  # and it is readable where it stands


@pytest.mark.parametrize("text", UNSEEN.values(), ids=UNSEEN)
def test_characters_that_act_are_shown_as_code_points(text):
    page = render(everything(text))
    page.encode()
    assert not re.search("[\0-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", page)
    assert re.search("⟨U\\+[0-9A-F]{4}⟩", page)


def test_scripts_of_the_world_and_emoji_are_left_alone():
    text = "שלום · می\u200cخواهم · 👩\u200d🔬 · é\tok\nnext"
    assert visible(text) == text


def test_a_very_long_text_is_cut_and_says_so():
    page = render(everything("x" * 1_000_000))
    assert len(page) < 400 * MAX_TEXT
    assert f"({1_000_000 - MAX_TEXT:,} more characters)" in page


def test_nothing_comes_from_outside_and_nothing_runs():
    page = Reader(render(everything("plain", [Picture(png())])))
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy and "script" not in policy and "http" not in policy
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,")) for name in ("href", "src"))
    style = (TEMPLATES / "page.css").read_text()
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_no_template_switches_escaping_off():
    for path in TEMPLATES.glob("*.html"):
        assert not re.search(r"\|\s*safe|autoescape|Markup|=\{\{|=\{%", path.read_text()), path.name


def test_what_is_read_aloud_is_there():
    page = Reader(render(everything("plain", [Picture(png(), "a blue square")])))
    assert [image["alt"] for image in page.all("img")] == ["a blue square"] * 2
    assert all((svg.get("role") == "img" and svg["aria-label"]) or svg["aria-hidden"] for svg in page.all("svg"))
    assert all(cell.get("scope") for cell in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["href"].removeprefix("#") for a in page.all("a")} <= targets


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"not a picture", "not a readable JPEG, PNG or WebP"),
        (png()[:-30], "not a readable"),
        (bomb(9000), "9000 x 9000 pixels, the limit is"),
        (bomb(60_000), "exceeds limit"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not a readable"),
        (Path("/no/such/<b>.png"), "&lt;b&gt;.png: no such file"),
        (Path("/dev/zero"), "a device, not a regular file"),
        (Path("a\0b"), "no file can have this name"),
    ],
    ids=["garbage", "cut", "large", "bomb", "svg", "missing", "device", "nul"],
)
def test_a_picture_that_cannot_be_shown_says_why(source, reason):
    page = render(Page("t", "s", [Section("x", blocks=[Examples("c", [Example("e", pictures=[Picture(source)])])])]))
    assert "Picture cannot be shown" in page and reason in page
    assert "<img" not in page


def test_pictures_are_scaled_down_within_a_budget():
    section = Section("x", blocks=[Examples("c", [Example("e", pictures=[Picture(png(900, 10))] * 30)])])
    page = render(Page("t", "s", [section]), Thumbnails(side=100, budget=20_000))
    images = Reader(page).all("img")
    assert 1 < len(images) < 30
    assert sum(len(image["src"]) for image in images) <= 20_000
    assert {(image["width"], image["height"]) for image in images} == {("100", "1")}
    assert page.count("the page has no room for more pictures") == 30 - len(images)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (300, 300), (2000, 500)])
def test_every_picture_can_be_opened_from_its_page(width, height):
    examples = Examples("c", [Example("e", pictures=[Picture(png(width, height))])])
    (image,) = Reader(render(Page("t", "s", [Section("x", blocks=[examples])]))).all("img")
    with PILImage.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2], validate=True))) as opened:
        opened.load()
        assert opened.size == (int(image["width"]), int(image["height"]))


def test_metadata_of_pictures_stay_outside():
    buffer = io.BytesIO()
    exif = PILImage.Exif()
    exif[0x010E] = "HOME ADDRESS"
    PILImage.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    assert b"HOME ADDRESS" in buffer.getvalue()
    embedded = Thumbnails()(Picture(buffer.getvalue()))
    assert b"HOME ADDRESS" not in base64.b64decode(embedded.uri.partition(",")[2])


def test_the_worst_comes_first():
    findings = [Finding("good", "third"), Finding("alarm", "first"), Finding("warning", "second")]
    page = render(Page("t", "s", [Section("x", blocks=[Findings(findings)])]))
    assert page.index("first") < page.index("second") < page.index("third")
    cards = [Card("a", findings=findings[:1]), Card("b", findings=findings[1:2] * 2), Card("c", findings=findings)]
    assert [card.title for card in worst_cards_first(cards)] == ["b", "c", "a"]
    assert [card.severity for card in worst_cards_first(cards)] == ["alarm", "alarm", "good"]


def test_a_page_is_reproducible_and_written_whole(tmp_path):
    page = everything("plain", [Picture(png())])
    write(page, tmp_path / "report.html")
    write(page, tmp_path / "again.html")
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "again.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.html", "report.html"]


def test_pictures_are_blurred_for_sensitive_pages_only():
    for sensitive in (True, False):
        page = Reader(render(Page("t", "s", [], sensitive=sensitive)))
        assert ("checked" in page.all("input")[0]) == sensitive


def test_a_long_quoted_text_can_be_opened_and_is_whole_there():
    """The beginning is seen; below it stands the whole, in one element, whatever it holds."""
    text = "begin " + "word <b>bold</b> \u202e\r\n" * 500 + "end"
    example = Example("e", question=text, sides=[Side("A", text, note="a note"), Side("B", "short")])
    page = render(Page("t", "", [Section("s", "", [Examples("c", [example])])]))
    opened = re.findall(
        r"<details><summary>Read on: ([\d,]+) characters</summary>\s*<p [^>]*>(.*?)</p>", page, re.DOTALL
    )
    assert [count for count, _ in opened] == [f"{len(text):,}"] * 2
    for _, whole in opened:
        assert html.unescape(whole).startswith("begin word <b>bold</b> ⟨U+202E⟩\n") and whole.endswith("end")
        assert html.unescape(whole).count("<b>bold</b> ⟨U+202E⟩\n") == 500 and "⟨U+000D⟩" not in whole
    assert "a note" in page and page.count("<details>") == 2
    huge = render(Page("t", "", [Section("s", "", [Examples("c", [Example("e", sides=[Side("A", "x" * 50_000)])])])]))
    assert "x" * 3000 in huge and "(30,000 more characters)" in huge and len(huge) < len(page) + 30_000
