"""The command that writes the embedded world."""

import hashlib

from safe_rlhf_v.demo.world import main
from safe_rlhf_v.shards.check import check
from safe_rlhf_v.shards.manifest import Manifest


def test_the_command_writes_the_world(tmp_path, capsys):
    sizes = ",".join(f"{name}=2" for name in ("supervised", "train", "validation", "calibration", "test", "compositional",
                     "counterfactual_helpfulness", "counterfactual_safety", "counterfactual_verdict"))  # fmt: skip
    assert main(["--out", str(tmp_path / "w"), "--sizes", sizes]) == 0
    assert check(tmp_path / "w") == []
    assert main(["--out", str(tmp_path / "v"), "--sizes", "train"]) == 2
    digest = hashlib.sha256((tmp_path / "w" / "manifest.json").read_bytes()).hexdigest()
    assert Manifest.load(tmp_path / "w").digest == digest
