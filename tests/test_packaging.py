"""What is shipped is what is here: packages, configs, metadata; and the two top-level folders import under one name only."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import safe_rlhf_v

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages():
    found = {"safe_rlhf_v.configs"} | {f"safe_rlhf_v.configs.{path.name}" for path in (ROOT / "configs").iterdir()}
    for path in (ROOT / "src" / "safe_rlhf_v").iterdir():
        if (path / "__init__.py").exists():
            found.add(f"safe_rlhf_v.{path.name}")
            found |= {f"safe_rlhf_v.{path.name}.{data.parent.name}" for data in path.glob("*/*.yaml")}
    return found | {"safe_rlhf_v"}


def test_every_package_is_listed():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages()


def test_the_top_level_folders_are_symlinked():
    for name in ("data_modules", "callbacks", "configs"):
        link = ROOT / "src" / "safe_rlhf_v" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


@pytest.mark.parametrize("name", ["data_modules", "callbacks"])
def test_the_bare_name_is_refused(name):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and f"safe_rlhf_v.{name}" in done.stderr


@pytest.mark.slow
def test_wheel_and_sdist_hold_everything(tmp_path):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not re.findall(r".*Warning: .*", built.stdout + built.stderr)  # of setuptools, about our project file
    wheel = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for path in [
        *(ROOT / "data_modules").glob("*.py"),
        *(ROOT / "callbacks").glob("*.py"),
        *(ROOT / "configs").glob("*/*.yaml"),
    ]:
        assert f"safe_rlhf_v/{path.relative_to(ROOT)}" in wheel, path
    for path in (ROOT / "src" / "safe_rlhf_v").glob("ingest/presets/*.yaml"):
        assert str(path.relative_to(ROOT / "src")) in wheel, path
    assert "safe_rlhf_v/py.typed" in wheel
    assert not any(name.split("/")[0] in ("data_modules", "callbacks", "configs", "tests") for name in wheel)
    assert any(name.endswith("data_modules/plan.py") for name in sdist)
    # The sdist alone builds the same wheel, and what is unpacked from it imports under the package's name only.
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    again = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "again")]
    subprocess.run([*again, str(unpacked)], check=True, capture_output=True)
    zipped = zipfile.ZipFile(next((tmp_path / "again").glob("*.whl")))
    assert set(zipped.namelist()) == wheel
    zipped.extractall(tmp_path / "site")
    code = (
        "import safe_rlhf_v.data_modules, safe_rlhf_v.callbacks, importlib.util, importlib.resources as r;"
        "assert safe_rlhf_v.data_modules.__file__.startswith('SITE'), safe_rlhf_v.data_modules.__file__;"
        "assert importlib.util.find_spec('data_modules') is None and importlib.util.find_spec('callbacks') is None;"
        "assert (r.files('safe_rlhf_v.configs') / 'quickstart' / 'reward.yaml').is_file()"
    ).replace("SITE", str(tmp_path / "site"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_versions_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == safe_rlhf_v.__version__
    assert f"## [{safe_rlhf_v.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "2503.17682" in str(citation["preferred-citation"])


LAZY = [name for name in sorted(packages()) if hasattr(import_module(name), "_HOME")]


@pytest.mark.parametrize("name", LAZY)
def test_names_that_are_loaded_when_asked_for_are_the_ones_that_type_checkers_see(name):
    """A package says three times what it holds: for typing, for loading and in ``__all__``; they agree, and all load."""
    package = import_module(name)
    (typed,) = (node for node in ast.parse(Path(package.__file__).read_text()).body
                if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")  # fmt: skip
    seen = {alias.name: node.module for node in typed.body for alias in node.names}
    assert seen == {key: f"{name}.{home}" for key, home in package._HOME.items()}
    assert set(package.__all__) - {"__version__"} == set(seen)
    for key in seen:
        assert getattr(package, key).__name__ == key
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Nothing'"):
        _ = package.Nothing


def test_the_lazy_packages_are_found():
    assert {"safe_rlhf_v", "safe_rlhf_v.models", "safe_rlhf_v.data_modules"} < set(LAZY) and len(LAZY) == 8


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from safe_rlhf_v.__main__ import main; main(['--help']); main(['--version']);"
        "assert not {'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "quickstart" in done.stdout


def headings_of(page: Path) -> set[str]:
    """The names under which GitHub and the site let a link point at a heading of the page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_readme_names_commands_that_exist():
    readme = (ROOT / "README.md").read_text()
    for config in re.findall(r"configs/[\w/]+\.yaml", readme):
        assert (ROOT / config).exists(), config
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", readme):
        path, _, heading = link.partition("#")
        assert (ROOT / path).exists(), link
        assert not heading or heading in headings_of(ROOT / path), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert f"\n{target}:" in makefile
