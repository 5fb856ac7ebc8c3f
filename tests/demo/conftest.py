"""The quickstart's configurations, made tiny: the same stages with two steps of four records each."""

import shutil
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "configs" / "quickstart"
SMALL_START = {"prompts": 8, "labelled": 8, "min_sign_accuracy": 0.0}
SPLITS = ("supervised", "train", "validation", "calibration", "test", "compositional",
          "counterfactual_helpfulness", "counterfactual_safety", "counterfactual_verdict")  # fmt: skip
SIZES = ",".join(f"{split}={120 if split == 'calibration' else 24}" for split in SPLITS)


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the demo's ``configs`` option takes."""
    folder = tmp_path_factory.mktemp("demo") / "configs"
    shutil.copytree(CONFIGS, folder)
    for file in folder.glob("*.yaml"):
        config = yaml.safe_load(file.read_text())
        if "trainer" not in config:
            continue
        config["trainer"] |= {"max_steps": 2, "val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1}
        config["data"]["init_args"] |= {"batch_size": 4, "eval_batch_size": 12}
        if "demonstrations" in config["data"]["init_args"]:
            config["data"]["init_args"]["demonstration_batch_size"] = 4
        if "roles" in config["model"]["init_args"]:  # untrained judges differ by little and lie anywhere
            config["model"]["init_args"] |= {"start": SMALL_START, "scores": {"clip": 1000.0}}
            config["model"]["init_args"]["sampling"]["max_new_tokens"] = 6
            stops = "safe_rlhf_v.callbacks.StopOnViolation"
            config["trainer"]["callbacks"] = [c for c in config["trainer"]["callbacks"] if c["class_path"] != stops]
        file.write_text(yaml.safe_dump(config))
    return folder
