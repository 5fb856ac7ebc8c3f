"""Every fenced block of the README, the tutorial and the how-to pages, pasted in order into one folder per page."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.docs.blocks import ROOT, Block, Reader, blocks, commands
from tests.stored_runs import copy_run

HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
LONG = [ROOT / "README.md", *(page for page in HOWTO if page.stem not in ("index", "read_tensorboard"))]
AFTER_THE_QUICKSTART = [
    ROOT / "README.md",
    ROOT / "examples" / "leaf_severity" / "README.md",
    ROOT / "docs" / "reference" / "reports.md",
    *HOWTO,
]
EXPLAINED = [ROOT / "docs" / f"{name}.md" for name in ("policy", "guard", "world", "faults", "security", "curves")]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """What a clone holds that the pages name, as the working directory; what a page leaves in this process is undone."""
    for name in ("configs", "examples", "docs", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    for sizes in ("safe_rlhf_v.world.write.SIZES", "safe_rlhf_v.world.SMALL_SIZES"):
        monkeypatch.setattr(sizes, TINY)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("hinge_objective", "step_dual", "word_judge", "brevity", "loader"):
            del sys.modules[name]


@pytest.fixture
def trained_clone(clone, world, policy_stages):
    """The same after the quickstart, as far as these pages need it; its runs name their data as a reader's do."""
    (clone / "data").mkdir()
    shutil.copytree(world, clone / "data" / "world")

    def name_data(content):
        content["config_yaml"] = content["config_yaml"].replace(str(world), "data/world")

    for stage in ("vision", "supervised", "reward", "cost"):
        run = clone / "runs" / "quickstart" / stage
        shutil.copytree(policy_stages / stage, run, symlinks=True)
        copy_run(policy_stages / stage, run.with_name("renamed"), name_data)
        shutil.rmtree(run / "version_0" / "checkpoints")
        (run.with_name("renamed") / "version_0" / "checkpoints").rename(run / "version_0" / "checkpoints")
    return clone


@pytest.mark.slow
def test_the_tutorial_runs_as_written(clone):
    reader = Reader(clone)
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        reader.paste(block)
    assert reader.ran > 8
    assert (clone / "runs/tutorial/report.html").is_file()


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p in LONG else p for p in AFTER_THE_QUICKSTART],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_blocks_of_a_page_run_as_written(page, trained_clone):
    reader = Reader(trained_clone)
    for block in blocks(page):
        reader.paste(block)


@pytest.mark.parametrize("page", EXPLAINED, ids=lambda page: page.stem)
def test_commands_of_the_other_pages_are_understood(page, trained_clone):
    reader = Reader(trained_clone)
    for block in blocks(page):
        reader.paste(block._replace(reason="checked only"))


def test_a_wrong_block_is_noticed(trained_clone):
    reader = Reader(trained_clone)
    fit = "python -m safe_rlhf_v fit --config configs/quickstart/reward.yaml"
    for text in (
        "python -m safe_rlhf_v generate --polcy runs/quickstart/supervised --data data/world",
        f"{fit} --trainer.max_step=3",
        f"{fit} --model.init_args.objective=safe_rlhf_v.objectives.Missing",
        "make breakfast",
        "pip install .[nothing]",
    ):
        with pytest.raises(AssertionError):
            reader.paste(Block(1, "bash", text, "only checked"))
    with pytest.raises(AssertionError, match="status 2"):
        reader.paste(
            Block(1, "bash", "python -m safe_rlhf_v evaluate --policies.a runs/none --data data/world --output o", "")
        )
    with pytest.raises(ValueError, match="no such class"):
        reader.paste(Block(1, "python", "raise ValueError('no such class')", ""))
    with pytest.raises(SyntaxError):
        reader.paste(Block(1, "python", "fit(", "only checked"))


def test_blocks_are_found_with_their_reasons(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- not run: needs a GPU -->\n```bash\na \\\n  b # c\n```\n\n```python\nx = 1\n```\n")
    first, second = blocks(page)
    assert (first.language, first.reason, second.reason) == ("bash", "needs a GPU", "")
    assert commands(first.text) == [["a", "b"]]


def test_each_page_is_tried():
    """Pages with blocks are either run, or at least understood."""
    known = {ROOT / "docs" / "tutorial.md", *AFTER_THE_QUICKSTART, *EXPLAINED}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for page in pages:
        if "_build" in page.parts or "api" in page.parts or page in known:
            continue
        assert not [b for b in blocks(page) if b.language in ("bash", "python")], f"{page}: blocks that no test tries"
