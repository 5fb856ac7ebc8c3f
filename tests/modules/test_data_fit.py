"""Data that do not fit the module are refused in one line before a model is built."""

from functools import partial

import lightning.pytorch as pl
import pytest

from safe_rlhf_v.data_modules import (
    PreferenceDataModule,
    PromptDataModule,
    PTXPreferenceDataModule,
    SupervisedDataModule,
)
from safe_rlhf_v.models import CornLink
from safe_rlhf_v.modules import (
    CostModule,
    GuardModule,
    PreferenceOptimisationModule,
    RewardModule,
    SupervisedModule,
    VisionModule,
)
from safe_rlhf_v.objectives import DPO, BradleyTerry
from safe_rlhf_v.policy import ConstrainedPolicyModule
from safe_rlhf_v.world import WORLD


class Built(Exception):
    """The check came too late, or there was nothing to refuse."""


def build(*_):
    raise Built


DPO_MODULE = partial(PreferenceOptimisationModule, build, DPO)
MODULES = {
    "supervised": (partial(SupervisedModule, build), {SupervisedDataModule}),
    "vision": (partial(VisionModule, build, {"object": 16}), {SupervisedDataModule}),
    "reward": (partial(RewardModule, build, BradleyTerry), {PreferenceDataModule, PTXPreferenceDataModule}),
    "cost": (partial(CostModule, build, BradleyTerry), {PreferenceDataModule, PTXPreferenceDataModule}),
    "guard": (
        partial(GuardModule, build, CornLink, categories=WORLD.categories),
        {PreferenceDataModule, PTXPreferenceDataModule},
    ),
    "DPO": (DPO_MODULE, {PreferenceDataModule, PTXPreferenceDataModule}),
    "policy": (partial(ConstrainedPolicyModule, build, build, build), {PromptDataModule}),
}
DATA = (SupervisedDataModule, PreferenceDataModule, PTXPreferenceDataModule, PromptDataModule)


def run(module, data, stage="fit"):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    getattr(trainer, stage)(module, datamodule=data)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_its_own_kind_of_batches(name, data, world):
    module, fitting = MODULES[name]
    with pytest.raises(Built if data in fitting else ValueError) as caught:
        run(module(), data(str(world), batch_size=4))
    if data not in fitting:
        assert f"data: {data.__name__} gives" in str(caught.value) and "use safe_rlhf_v.data_modules." in str(
            caught.value
        )
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "trian"}, r"data\.train_split names 'trian', but .*world has only calibration, "),
        ({"validation_splits": ("validation", "dev")}, r"data\.validation_splits names 'dev'"),
        ({"labelled_split": "labels"}, r"data\.labelled_split names 'labels'"),
        ({"demonstrations": "demos"}, r"data\.demonstrations names 'demos'"),
        ({"categories": ("arson", "flood")}, "unknown category 'flood'"),
        ({"categories": ()}, r"data\.categories: split 'train' of .* has no record of"),
    ],
)
def test_splits_and_categories_are_looked_for_first(options, message, world):
    with pytest.raises(ValueError, match=message):
        run(MODULES["policy"][0](), PromptDataModule(str(world), batch_size=4, **options))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_each_stage_looks_for_its_own_splits(stage, world):
    other = {"validate": {"validation_splits": ("dev",)}}.get(stage, {"test_splits": ("dev",)})
    with pytest.raises(ValueError, match="names 'dev'"):
        run(MODULES["reward"][0](), PreferenceDataModule(str(world), batch_size=4, **other), stage)
    unused = {"train_split": "dev", "validation_splits": ("dev",), "test_splits": ("dev",)}
    unused |= {"validation_splits": ("validation",)} if stage == "validate" else {"test_splits": ("test",)}
    with pytest.raises(Built):
        run(MODULES["reward"][0](), PreferenceDataModule(str(world), batch_size=4, **unused), stage)


def test_other_categories_of_a_guard(world):
    for names in (WORLD.categories[::-1], WORLD.categories[:3], ()):
        module = GuardModule(build, CornLink, categories=names)
        for stage in ("fit", "validate", "test"):
            with pytest.raises(ValueError, match=r"set model\.init_args\.categories to those of the data's manifest"):
                run(module, PreferenceDataModule(str(world), batch_size=4), stage)


@pytest.mark.parametrize(("weight", "demonstrations"), [(0.5, None), (0.0, "supervised")])
def test_ptx_needs_weight_and_demonstrations(weight, demonstrations, world):
    data = PTXPreferenceDataModule(str(world), batch_size=4, demonstrations=demonstrations)
    with pytest.raises(ValueError, match="for PTX set both"):
        run(DPO_MODULE(ptx_weight=weight), data)
    with pytest.raises(Built):  # no PTX where nothing is trained
        run(DPO_MODULE(ptx_weight=0.5), PreferenceDataModule(str(world), batch_size=4), "test")


def test_the_command_says_it_in_one_line(world, tmp_path, capsys):
    from tests.shared_runs import command

    from safe_rlhf_v.commands.fit import main

    args = command("RewardModule", world, tmp_path / "run", {"class_path": "safe_rlhf_v.models.HFVLM"})
    wrong = [arg.replace("PreferenceDataModule", "PromptDataModule") for arg in args]
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2
    assert said.startswith(
        "error: data: PromptDataModule gives PolicyBatch, but RewardModule learns from PreferenceBatch"
    )
    assert not (tmp_path / "run" / "config.yaml").exists()
