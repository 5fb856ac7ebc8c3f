"""A split without records is refused, naming the option and the split."""

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.data_modules.conftest import Folder

from safe_rlhf_v.data_modules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from safe_rlhf_v.shards.index import INDEX_DTYPE


@pytest.fixture
def root(folder: Folder) -> Path:
    """A shard folder with a split ``empty``, which the writer would not make."""
    root = folder(train=8, validation=2, test=2)
    index = io.BytesIO()
    np.save(index, np.zeros(0, INDEX_DTYPE))
    (root / "empty.index.npy").write_bytes(index.getvalue())
    body = json.loads((root / "manifest.json").read_text())
    file = {"file": "empty.index.npy", "sha256": hashlib.sha256(index.getvalue()).hexdigest()}
    body["splits"]["empty"] = {
        **body["splits"]["test"], "samples": 0, "groups": 0, "shards": [], "index": file, "histograms": {}
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(body))
    return root


CASES: list[tuple[Any, str, str]] = [
    (PreferenceDataModule, "train_split", "fit"),
    (PreferenceDataModule, "validation_splits", "validate"),
    (SupervisedDataModule, "test_splits", "test"),
    (SupervisedDataModule, "test_splits", "predict"),
    (PromptDataModule, "demonstrations", "fit"),
    (PromptDataModule, "labelled_split", "fit"),
]


@pytest.mark.parametrize(("module", "option", "stage"), CASES)
def test_an_empty_split_is_refused_with_its_option(root: Path, module: Any, option: str, stage: str) -> None:
    data = module(str(root), **{option: ("empty",) if option.endswith("splits") else "empty"})
    data.trainer = SimpleNamespace(enable_validation=True, lightning_module=None, global_step=1)
    with pytest.raises(ValueError, match=rf"^data\.{option} names 'empty', which holds no records in .*$"):
        data.setup(stage)


def test_a_loader_without_trainer_names_the_empty_split(root: Path) -> None:
    with pytest.raises(ValueError, match="split 'empty' holds no records"):
        PreferenceDataModule(str(root), test_splits=("empty",)).test_dataloader()
    with pytest.raises(ValueError, match="split 'empty' holds no records"):
        PromptDataModule(str(root), labelled_split="empty").labelled(3)
