"""Every configuration of a 7B model runs on imported BeaverTails-V as it is shipped: no split and no category is edited.

The data are a made-up copy, the models tiny stand-ins of the same family; of the files only hardware and size differ.
"""

from pathlib import Path

import pytest
from tests.ingest.made_up import beavertails, write_beavertails

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.commands.shards import main as shards

ROOT = Path(__file__).parents[2]
FOLDERS = {"llava_1_5_7b": "llava", "qwen2_5_vl_7b": "qwen2_5_vl"}
STAGES = ("supervised", "reward", "cost", "guard", "safe_dpo")
POLICIES = ("ppo_lag", "grpo_lag")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    root = tmp_path_factory.mktemp("beavertails")
    source = write_beavertails(root / "hub", beavertails(12, 1))
    assert shards(["import", str(source), "--preset", "beavertails-v", "--out", str(root / "data")]) == 0
    return root / "data"


@pytest.fixture(scope="module")
def tiny_vlms(tmp_path_factory):
    from safe_rlhf_v.models.tiny import write_tiny_vlm

    root = tmp_path_factory.mktemp("vlms")
    for family in FOLDERS.values():
        write_tiny_vlm(family, root / family)
    return root


def fit(folder, stage, data, vlms, out, steps, *extra):
    smaller = [
        f"--model.init_args.backbone.init_args.model={vlms / FOLDERS[folder]}",
        f"--config={ROOT / 'configs' / 'trainer' / 'cpu.yaml'}",
        "--data.init_args.batch_size=2",
        "--data.init_args.eval_batch_size=2",
        "--data.init_args.num_workers=0",
        f"--trainer.max_steps={steps}",
        "--trainer.limit_val_batches=1",
        f"--trainer.val_check_interval={steps}",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.logger=false",
        f"--trainer.default_root_dir={out}",
    ]
    config = ROOT / "configs" / folder / f"{stage}.yaml"
    return main(["fit", f"--config={config}", f"--data.init_args.path={data}", *smaller, *extra])


CASES = [
    pytest.param(folder, stage, marks=[] if (folder, stage) == ("llava_1_5_7b", "reward") else pytest.mark.slow)
    for folder in FOLDERS
    for stage in STAGES
]


@pytest.mark.parametrize(("folder", "stage"), CASES)
def test_a_stage_trains_on_the_imported_set(folder, stage, imported, tiny_vlms, tmp_path):
    nothing_kept = ("--trainer.callbacks=null", "--trainer.enable_checkpointing=false")
    cli = fit(folder, stage, imported, tiny_vlms, tmp_path, 2, *nothing_kept)
    assert cli.trainer.global_step == 2
    assert cli.datamodule.path == str(imported) and cli.datamodule.categories is None


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_policies_train_on_the_imported_set(folder, imported, tiny_vlms, tmp_path):
    for stage in ("reward", "cost"):
        fit(folder, stage, imported, tiny_vlms, tmp_path / stage, 2)
    roles = [f"--model.init_args.roles.init_args.{stage}={tmp_path / stage}" for stage in ("reward", "cost")]
    shorter = ["sampling.max_new_tokens=6", "start.prompts=4", "start.labelled=4", "start.min_sign_accuracy=0.0"]
    options = [*roles, *(f"--model.init_args.{option}" for option in shorter)]
    for stage in POLICIES:
        assert fit(folder, stage, imported, tiny_vlms, tmp_path / stage, 2, *options).trainer.global_step == 2


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_the_folder_is_tried(folder):
    assert {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")} == {*STAGES, *POLICIES}
