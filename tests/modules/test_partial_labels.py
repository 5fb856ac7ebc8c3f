"""Runs on a user's table: what lacks labels, or a truth that no user has, is not logged at all, and nothing is NaN."""

import csv
import json
import math

import pytest
from tests.shards.conftest import picture
from tests.shared_runs import OBJECTIVES, vlm

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.commands.shards import main as shards
from safe_rlhf_v.models.tiny import write_tiny_vlm

LABELS = ("more_helpful", "safer", "is_safe_0", "is_safe_1", "safety_0", "safety_1", "category")
COUNTS = {"truncated_responses", "equal_pairs"}
PAIRS = {"loss", "accuracy", *COUNTS}
SIGNS = {"sign_accuracy", "balanced_sign_accuracy", "auroc", "calibration_error"}
LEVELS = {"level_accuracy", "within_one", "macro_mae", "quadratic_kappa", "ranked_probability_score"}
LEVELS |= {
    "exceedance_calibration_error",
    "truncated_responses",
    "harm_accuracy",
    "balanced_harm_accuracy",
    "harm_auroc",
}
LEVELS |= {"harm_auprc", "harm_calibration_error", "fpr_at_95_recall", "recall_at_5_fpr"}
PROMPTS = {"prompt_auroc", "category_accuracy"}
GROUNDING = {f"{mode}_{kind}" for mode in ("shuffled", "blank") for kind in ("accuracy", "gap")}
COST = {
    "class_path": "safe_rlhf_v.objectives.CostObjective",
    "init_args": {"terms": [{"class_path": f"safe_rlhf_v.objectives.{name}"} for name in ("SignTerm", "GradedTerm")]},
}
# Module, its labels in the table, what training logs, and what validation logs.
REGULARISED = {"loss", "regularisation", *COUNTS}
CASES = {
    "reward": ("RewardModule", LABELS, {"pair", *REGULARISED}, PAIRS),
    "cost": ("CostModule", LABELS, {"pair", "sign", "graded", *REGULARISED}, PAIRS | SIGNS),
    "cost of pairs": ("CostModule", ("safer",), {"pair", *REGULARISED}, PAIRS),
    "cost of verdicts": ("CostModule", ("is_safe_0", "is_safe_1"), {"sign", *REGULARISED}, {"loss", *COUNTS, *SIGNS}),
    "guard": (
        "GuardModule",
        LABELS,
        {"loss", "level", "prompt_risk", "category", "truncated_responses"},
        LEVELS | PROMPTS,
    ),
    "guard of levels": ("GuardModule", ("safety_0", "safety_1"), {"loss", "level", "truncated_responses"}, LEVELS),
}

SLOW = ("cost", "cost of pairs", "guard")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """``tables(labels)`` is a shard folder whose rows have these labels, every third row none of them."""
    root = tmp_path_factory.mktemp("tables")
    (root / "pictures").mkdir()
    for i in range(24):
        (root / "pictures" / f"{i}.jpg").write_bytes(picture(i, "JPEG"))

    def build(labels):
        out = root / "-".join(labels)
        if out.exists():
            return out
        with (root / "table.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "question", "response_0", "response_1", *LABELS, "split"])
            for i in range(24):
                levels = (-2 + i % 5, 2 - i % 4)
                cells = {
                    "more_helpful": i % 2,
                    "safer": int(levels[1] > levels[0]),
                    "category": ("fire", "none")[i % 2],
                }
                cells |= {f"is_safe_{k}": str(level >= 0).lower() for k, level in enumerate(levels)}
                cells |= {f"safety_{k}": level for k, level in enumerate(levels)}
                known = [cells[name] if name in labels and i % 3 else "" for name in LABELS]
                split = ("train", "validation", "test")[i // 8]
                table.writerow([f"{i}.jpg", f"what is {i} ?", f"yes {i}", f"no {i * 7}", *known, split])
        options = ["--name", "mine", "--licence", "CC0-1.0", "--categories", "fire"]
        folders = ["--table", str(root / "table.csv"), "--images", str(root / "pictures"), "--out", str(out)]
        assert shards(["import", *folders, *options]) == 0
        return out

    return build


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return vlm(write_tiny_vlm("qwen2_5_vl", tmp_path_factory.mktemp("vlm") / "base"))


def command(kind, data, network, out, *more):
    """Command line of four steps with two validations, logged to ``out/metrics.csv``."""
    objective = {"CostModule": COST, **{name: OBJECTIVES[name] for name in ("RewardModule",)}}
    options = {"objective": objective[kind]} if kind in objective else {"categories": ["fire"]}
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(out), "name": "", "version": ""},
    }
    trainer = {"accelerator": "cpu", "devices": 1, "max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False, "logger": logger}
    model = {"class_path": f"safe_rlhf_v.modules.{kind}", "init_args": {"backbone": network, **options}}
    loading = {"path": str(data), "batch_size": 2, "eval_batch_size": 3}
    config = {
        "model": model,
        "data": {"class_path": "safe_rlhf_v.data_modules.PreferenceDataModule", "init_args": loading},
        "trainer": trainer,
    }
    return ["fit", f"--config={json.dumps(config)}", *more]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES]
)
def test_only_what_the_data_know_is_logged_and_all_of_it_is_finite(case, tables, network, tmp_path, capsys):
    kind, labels, trained, validated = CASES[case]
    cli = main(command(kind, tables(labels), network, tmp_path))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = [(name, value) for row in rows for name, value in row.items() if value]
    assert all(math.isfinite(float(value)) for _, value in cells)
    names = {name for name, _ in cells}
    assert {n.removeprefix("train/") for n in names if n.startswith("train/")} - {"lr"} == trained
    assert {n.removeprefix("validation/") for n in names if n.startswith("validation/")} == validated
    if kind == "GuardModule":
        return
    (tested,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    grounding = GROUNDING if "accuracy" in validated else set()
    assert {name.removeprefix("test/") for name in tested} == validated | grounding
    assert all(math.isfinite(value) for value in tested.values())


KEEP = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--trainer.callbacks.every_n_train_steps=1",), marks=pytest.mark.slow),
        ("--trainer.limit_val_batches=0",),
    ],
)
def test_a_checkpoint_that_waits_for_what_is_not_there_is_an_error_that_names_what_is(
    more, tables, network, tmp_path, capsys
):
    monitor = "--trainer.callbacks.monitor=validation/true_accuracy"
    with pytest.raises(SystemExit) as end:
        main(command("RewardModule", tables(LABELS), network, tmp_path, KEEP, monitor, *more))
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "ModelCheckpoint.monitor is 'validation/true_accuracy', which this run has not logged" in line
    assert "train/loss" in line and ("limit_val_batches" in str(more) or "did you mean 'validation/accuracy'?" in line)
    if "limit_val_batches" in str(more):
        assert list(tmp_path.rglob("step=4.ckpt"))  # what was trained is kept all the same
