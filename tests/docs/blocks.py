"""Fenced blocks of a Markdown page, and a reader who pastes them one after another into one folder.

Commands of this library run in this process, through the same ``main`` as the command line's, with settings added that make
them small (:data:`SMALL`); everything else runs in bash. A block below ``<!-- not run: REASON -->`` is not run: its Python is
compiled, and its commands are parsed by the real parser.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
OURS = ["python", "-m", "safe_rlhf_v"]
FIT = [
    "--data.init_args.batch_size=4",
    "--data.init_args.eval_batch_size=4",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
POLICY = [
    "--model.init_args.scores.clip=1000.0",  # untrained judges lie anywhere, also far from the budget
    "--model.init_args.sampling.max_new_tokens=6",
    "--model.init_args.start.prompts=4",
    "--model.init_args.start.min_sign_accuracy=0.0",
]
SMALL = {
    "fit": FIT,
    "evaluate": ["--max_new_tokens=6"],
    "test": ["--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"],
}


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: Number of its first line.
        language: As fenced.
        text: Without the fence.
        reason: Why it is not run; empty if it is.
    """

    line: int
    language: str
    text: str
    reason: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    i = 0
    while i < len(lines):
        if fence := re.match(r"^(`{3,})(\S*)", lines[i]):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].strip() == fence[1])
            before = re.match(r"^<!-- not run: (.+) -->$", lines[i - 1]) if i else None
            text = "\n".join(lines[i + 1 : end]) + "\n"
            found.append(Block(i + 1, fence[2], text, before[1] if before else ""))
            i = end
        i += 1
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, as words; comments are left out, and continued lines and quoted texts joined.

    Raises: ValueError: If a quoted text does not end.
    """
    several: list[list[str]] = []
    open_lines = ""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        open_lines += line
        try:
            words = shlex.split(open_lines, comments=True)
        except ValueError:  # no closing quotation yet
            open_lines += "\n"
            continue
        several += [words] if words else []
        open_lines = ""
    if open_lines:
        raise ValueError(f"a quoted text does not end: {open_lines:.80}")
    return several


class Reader:
    """Pastes blocks in a folder.

    Attributes:
        ran: Commands that were run.
    """

    def __init__(self, folder: Path) -> None:
        """Start with nothing pasted.

        Args:
            folder: What a clone after the quickstart looks like; the working directory.
        """
        self.folder, self.names, self.ran = folder, {"__name__": "__main__"}, 0

    def paste(self, block: Block) -> None:
        """Run a block, or check one that is not run. Raises: AssertionError: If it fails."""
        if block.language == "python":
            code = compile(block.text, f"line {block.line}", "exec")
            if not block.reason:
                exec(code, self.names)
        elif block.language == "yaml":
            assert yaml.safe_load(block.text)
        elif block.language == "bash":
            for words in commands(block.text):
                self.check(words) if block.reason else self.run(words)
        else:
            assert block.language.startswith("{"), f"line {block.line}: a block in {block.language!r}"

    def run(self, words: list[str]) -> None:
        """Run one command."""
        self.ran += 1
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value
            if name == "PYTHONPATH":
                sys.path.insert(0, str(self.folder / value))
        elif words[0] == "tensorboard":
            self.check(words)
        elif words[:3] == OURS:
            ours(words[3:])
        elif words[:2] == ["python", "-m"]:
            module(words[2], words[3:])
        else:
            subprocess.run(["bash", "-c", shlex.join(words)], check=True, cwd=self.folder)

    def check(self, words: list[str]) -> None:
        """Check a command that is not run."""
        while words and (words[0] in ("srun", "nice") or re.fullmatch(r"\w+=\S*", words[0])):
            name, _, value = words[0].partition("=")
            if name == "PYTHONPATH":
                sys.path.insert(0, str(ROOT / value))
            words = words[1:]
        if words[:3] == OURS:
            parse(words[3:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        elif words[0] == "pip":
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
                assert extra in known, f"no extra {extra}"
        else:
            assert shutil_which(words[0]) or words[0] in (".", "inspect", "lmms-eval", "vllm", "wandb"), (
                f"unknown command {words[0]!r}"
            )


def shutil_which(name: str) -> bool:
    """Whether a program is there, or belongs to this environment."""
    return any(
        (Path(folder) / name).exists() for folder in (*os.environ["PATH"].split(":"), Path(sys.executable).parent)
    )


def ours(words: list[str]) -> None:
    """Run one of our commands, made small. Raises: AssertionError: If its exit status is not 0."""
    from safe_rlhf_v.__main__ import main

    config = " ".join(words)
    helps = ".help" in config or "--help" in words
    small = [] if helps else [*SMALL.get(words[0], []), *(POLICY if "ppo_lag.yaml" in config else [])]
    if "--data.init_args.path=" in config:  # data of the page's own: their batches are the page's, too
        small = [word for word in small if "batch_size" not in word]
    try:
        status = main([*words, *small])
    except SystemExit as error:
        status = error.code or 0
    assert status == 0, f"{' '.join(words)}: status {status}"


def module(name: str, words: list[str]) -> None:
    """Run a module of the library that has a ``main``."""
    from importlib import import_module

    assert not import_module(name).main(words)


class Parsed(Exception):
    """A command line was understood."""


def parse(words: list[str]) -> None:
    """Parse a command line without running it. Raises: AssertionError: If the parser refuses it."""
    from safe_rlhf_v.__main__ import TRAINING, main

    if words[0] in TRAINING and "--ckpt_path" in words and not Path(words[words.index("--ckpt_path") + 1]).exists():
        options = [word.partition("=")[0].partition(".")[0] for word in words if word.startswith("--")]
        known = {"--config", "--ckpt_path", "--model", "--data", "--trainer", "--seed_everything", "--trust", "--base"}
        assert set(options) <= known, f"refused: {' '.join(words)}"
        return
    if words[0] in TRAINING:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*words, "--print_config"])
        assert yaml.safe_load(said.getvalue()), f"refused: {' '.join(words)}"
        return
    from safe_rlhf_v.commands.runner import CommandParser

    def stop(*_: object, **__: object) -> None:
        raise Parsed

    instantiate = CommandParser.instantiate
    CommandParser.instantiate = stop
    status = 2
    try:
        status = main(words)
    except Parsed:
        return
    except SystemExit as error:
        status = error.code or 0
    finally:
        CommandParser.instantiate = instantiate
    assert status == 0, f"refused: {' '.join(words)}"
