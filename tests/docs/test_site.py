"""The documentation site, without building it (`make docs` does): links lead somewhere, and every page is reachable."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    path
    for path in (
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *ROOT.glob(".github/**/*.md"),
    )
    if "_build" not in path.parts and "api" not in path.parts
]
LINK = re.compile(r"(?<!`)\[[^\]]*\]\((?!https?:|mailto:)([^)\s]+)\)")


def anchors(page):
    """Anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if "api" in file.parts:
            continue  # written when the site is built
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}, which has no such heading"


def test_each_page_of_the_site_is_in_a_table_of_contents():
    listed = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    for page in DOCS.rglob("*.md"):
        if "_build" not in page.parts and "api" not in page.parts:
            assert page == DOCS / "index.md" or page.resolve() in listed, f"{page.name} is in no table of contents"


def test_every_room_has_a_page_of_the_reference():
    rooms = {path.parent.name for path in (ROOT / "src" / "safe_rlhf_v").glob("*/__init__.py")}
    table = re.search(r"^ROOMS = \{(.*?)^\}", (DOCS / "conf.py").read_text(), re.DOTALL | re.MULTILINE)[1]
    assert set(re.findall(r'^    "(\w+)":', table, re.MULTILINE)) == rooms


@pytest.mark.parametrize(
    ("page", "name", "more"),
    [
        ("own_backbone", "models.Backbone", {"stored_sources"}),  # as far as its constructor reads files
        ("own_backbone", "models.Head", set()),
        ("own_dual_controller", "dual.DualController", set()),
        ("own_judge", "scoring.judge.Judge", set()),
    ],
)
def test_a_how_to_page_names_what_a_subclass_writes(page, name, more):
    home, _, cls = name.rpartition(".")
    base = getattr(import_module(f"safe_rlhf_v.{home}"), cls)
    text = (DOCS / "howto" / f"{page}.md").read_text()
    sentences = text.partition(f"{{class}}`~safe_rlhf_v.{name}`")[2].partition("\n\n")[0]
    listed = set(re.findall(r"(?<!})`(\w+)`", sentences))
    assert base.__abstractmethods__ | more <= listed
    assert all(hasattr(base, method) for method in more)
