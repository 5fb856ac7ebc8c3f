"""What a calibration leaves behind: its file before its reports, no report of another one, and none on the training split."""

import shutil

import torch
from tests.guard.test_calibration import outputs
from tests.guard_run import WIDE

from safe_rlhf_v.commands.calibrate import main
from safe_rlhf_v.guard.assessment import assess, assess_groups, assess_prevalence
from safe_rlhf_v.guard.calibration import Calibration


def test_a_split_without_levels_has_no_metrics_of_responses():
    rows = outputs(50)
    none = rows._replace(
        level_log_probs=torch.zeros(0, 7), levels=torch.zeros(0, dtype=torch.int64), groups={"category": (), "rule": ()},
        clusters=torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
    calibration = Calibration("m", "x", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, WIDE, {})
    measured = assess(none, calibration)
    assert measured["responses"] == 0 and "level_accuracy" not in measured and "fpr_at_block" not in measured
    assert measured["prompt_fpr_at_block"] == assess(rows, calibration)["prompt_fpr_at_block"]
    assert assess_groups(none, calibration) == {} and assess_prevalence(none, calibration, [0.01]) == {}


def test_a_calibration_outlives_its_reports_and_takes_old_ones_along(guard_run, world, tmp_path, monkeypatch):
    run = tmp_path / "guard"
    shutil.copytree(guard_run, run, ignore=shutil.ignore_patterns("calibration.json", "assessment.json"))
    (run / "assessment.json").write_text("{}")
    command = ["--guard", str(run), "--data", str(world), "--train_data", str(world), "--split=validation"]
    budgets = ["--fpr=0.5", "--review_fpr=0.6"]
    assert main([*command, *budgets]) == 0
    assert not (run / "assessment.json").exists()
    first = (run / "calibration.json").read_bytes()
    (run / "calibration.json").unlink()
    (run / "assessment.json").write_text("{}")

    def broken(*args):
        raise ValueError("a report that fails")

    monkeypatch.setattr("safe_rlhf_v.guard.assessment.assess", broken)
    assert main([*command, *budgets, "--report", "test"]) == 2
    assert (run / "calibration.json").read_bytes() == first and not (run / "assessment.json").exists()


def test_the_split_of_the_training_is_refused(guard_run, world, tmp_path, capsys):
    shutil.copytree(world, tmp_path / "copy")
    for data in (world, tmp_path / "copy"):
        command = ["--guard", str(guard_run), "--data", str(data), "--train_data", str(world), "--split=train"]
        assert main(command) == 2
        assert "--split train: the guard was trained on it" in capsys.readouterr().err
        for split, message in (("train", "the guard was trained on it"), ("validation", "the guard was fitted on it")):
            assert main([*command[:-1], "--split=validation", "--report", split]) == 2
            assert f"--report {split}: {message}" in capsys.readouterr().err
