"""The documentation site: ``make docs`` builds it offline, and every warning is an error."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import safe_rlhf_v

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "downstream"))

project = "safe_rlhf_v"
author = "The safe_rlhf_v contributors"
copyright = author
release = version = safe_rlhf_v.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "evidence"]
html_theme = "furo"
html_title = f"safe_rlhf_v {release}"
html_static_path = []
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # pages that GitHub shows too may skip a level
copybutton_prompt_text = r"\$ "

highlight_language = "none"  # blocks of docstrings are YAML, shell or text
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_default_options = {"members": True, "show-inheritance": True}

nitpicky = True
nitpick_ignore: list[tuple[str, str]] = []
# The build is offline: names of other packages have no pages to lead to. Ours must lead somewhere.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!safe_rlhf_v).*"),
    (r"py:class", r"safe_rlhf_v\.records\.batches\.Batch"),  # an alias has no entry
    (r"py:class", r"safe_rlhf_v\.records\.batches\._PromptFields"),  # the fields stand at Prompts
    (r"py:class", r"safe_rlhf_v\.construct\.models\._(Run|Scoring)Judge"),  # what the judges by models share
]


HERE = Path(__file__).parent
PACKAGE = Path(safe_rlhf_v.__file__).parent
ROOMS = {  # in the order of the reference, with what a page begins with
    "policy": "One iteration of constrained policy training, the roles around the policy, and advantage estimators.",
    "dual": "Rules that move the multiplier.",
    "objectives": "Losses over the scores of responses: reward and cost models, direct preference optimisation.",
    "modules": "One LightningModule per stage.",
    "models": "Backbones, heads, links, adapters and sampling.",
    "data_modules": "LightningDataModules over shards.",
    "callbacks": "What people look at, and what a run keeps.",
    "guard": "Moderation, calibration, guarded generation, filtering.",
    "scoring": "Judges: who says what a response is worth.",
    "inspecting": "Models, judges and prompts within inspect_ai (extra `inspect`).",
    "evaluation": "Policies judged on held-out prompts.",
    "construct": "Data sets of your own: stages from images to shards, endpoints, judges, people, the audit.",
    "engine": "Rollouts sampled by a server (experimental).",
    "export": "Trained models as folders that load without this library.",
    "planning": "How much memory a run will need, before its weights are loaded.",
    "metrics": "torchmetrics classes for pairs, signs, levels and groups.",
    "training": "Run folders, checkpoints, resume, schedules.",
    "records": "One record of the data, its labels, and batches.",
    "shards": "WebDataset folders: writing, reading, checking.",
    "ingest": "Tables and folders of images into shards.",
    "functional": "Pure functions with shapes.",
    "world": "The embedded world.",
    "reports": "HTML reports that need nothing else: building blocks, pages, and the audit of a data set.",
    "testing": "Contract tests for classes of your own.",
    "commands": "The functions behind the commands.",
    "demo": "The commands that run the others on the embedded world.",
}


NEEDS_AN_EXTRA = ("inspecting.plugin",)
"""Modules that cannot be imported with what builds the site; a page of the site describes them."""


def write_reference() -> None:
    """One page per room: its public names, then what else its files define, under the paths that types name."""
    global nitpick_ignore
    folder = HERE / "reference" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for room, about in ROOMS.items():
        package = import_module(f"safe_rlhf_v.{room}")
        public = list(getattr(package, "__all__", ()))
        for name in public:  # rooms load their classes when they are asked for; autodoc looks at what is there
            setattr(package, name, getattr(package, name))
        lines = [f"# {room}", "", about, "", "```{eval-rst}", f".. automodule:: safe_rlhf_v.{room}", "```", ""]
        for file in sorted((PACKAGE / room).glob("*.py")):
            if file.stem.startswith("__") or f"{room}.{file.stem}" in NEEDS_AN_EXTRA:
                continue
            name = f"safe_rlhf_v.{room}.{file.stem}"
            variables = [key for key, value in vars(import_module(name)).items() if isinstance(value, TypeVar)]
            nitpick_ignore += [
                (role, f"{name}.{key}") for key in variables for role in ("py:class", "py:obj")
            ]  # no entry
            leave_out = f"   :exclude-members: {', '.join(public)}" if public else ""
            lines += [f"## {room}.{file.stem}", "", "```{eval-rst}", f".. automodule:: {name}", leave_out, "```", ""]
        write_if_new(folder / f"{room}.md", "\n".join(lines))
    listed = "\n".join(ROOMS)
    text = f"# Classes and functions\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    write_if_new(folder / "index.md", text)


def write_if_new(path: Path, text: str) -> None:
    """Leave an unchanged page alone, so that it is not built again."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


write_reference()
