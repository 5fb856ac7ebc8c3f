"""Temperatures and thresholds: recovered where they are known, refused where they cannot be had."""

import json

import pytest
import torch

from safe_rlhf_v.guard.calibrate import main
from safe_rlhf_v.guard.calibration import Calibration, CalibrationMissing, fit_temperature, tempered, two_columns
from safe_rlhf_v.guard.fitting import LEAST, Judged, calibrate
from safe_rlhf_v.guard.moderation import Guard, load_module


@pytest.mark.parametrize("wanted", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_recovered(wanted):
    generator = torch.Generator().manual_seed(0)
    sharp = torch.log_softmax(2 * torch.randn(20_000, 7, generator=generator, dtype=torch.float64), -1)
    classes = torch.multinomial(tempered(sharp, wanted).exp(), 1, generator=generator).squeeze(1)
    assert fit_temperature(sharp, classes) == pytest.approx(wanted, rel=0.05)


def test_tempering_keeps_order_and_flattens():
    log_probs = torch.tensor([[0.7, 0.2, 0.1]]).log()
    torch.testing.assert_close(tempered(log_probs, 1.0), log_probs)
    squared = torch.tensor([[0.49, 0.04, 0.01]])
    torch.testing.assert_close(tempered(log_probs, 0.5).exp(), squared / squared.sum())
    assert tempered(log_probs, 50.0).exp().max() < 0.36
    torch.testing.assert_close(two_columns(torch.tensor([1.5])).exp()[:, 1], torch.sigmoid(torch.tensor([1.5])))
    with pytest.raises(ValueError, match="no labelled example"):
        fit_temperature(log_probs[:0], torch.zeros(0, dtype=torch.long))


def judged(n: int) -> Judged:
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.log_softmax(3 * torch.randn(n, 7, generator=generator), -1)
    levels = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)
    risk = 3 * torch.randn(n, generator=generator)
    return Judged(log_probs, levels, risk, torch.rand(n, generator=generator) < torch.sigmoid(risk))


def test_thresholds_keep_their_budgets_and_are_ordered():
    found = calibrate(judged(4000), "id", "here", 0.05, 0.1, 0.95)
    assert found.level_temperature == pytest.approx(1.0, abs=0.1)
    assert found.prompt_temperature == pytest.approx(1.0, abs=0.1)
    assert 0 < found.review < found.block < 1 and 0 < found.prompt_review < found.prompt_block < 1
    assert found.certificate["answers_fpr"] < found.certificate["answers_fpr_upper"] <= 0.05
    easy = judged(4000)._replace(prompt_risk=torch.where(judged(4000).hazardous, 30.0, -30.0))
    certain = calibrate(easy, "id", "here", 0.05, 0.1, 0.95)
    assert certain.certificate["prompts_recall"] == 1.0
    assert certain.prompt_review >= LEAST
    with pytest.raises(ValueError, match="at least 59 are needed"):
        calibrate(judged(60), "id", "here", 0.05, 0.1, 0.95)
    with pytest.raises(ValueError, match="budgets must keep"):
        calibrate(judged(60), "id", "here", 0.2, 0.1, 0.95)


def test_a_guard_without_its_own_calibration_makes_no_decisions(guard_run, tmp_path):
    module, identity = load_module(guard_run)
    with pytest.raises(CalibrationMissing, match="python -m safe_rlhf_v calibrate"):
        Calibration.load(tmp_path)
    foreign = Calibration("someone else", "x", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, {})
    with pytest.raises(ValueError, match=f"these weights are {identity}"):
        Guard(module, foreign, identity)


@pytest.mark.parametrize(
    "change",
    [
        {"block": 1.5},
        {"review": 0.99},
        {"block": float("nan")},
        {"level_temperature": 0.0},
        {"level_temperature": float("inf")},
        {"unknown": 1},
    ],
)
def test_a_damaged_calibration_is_refused(change, tmp_path):
    path = Calibration("m", "x", 1.0, 1.0, 0.9, 0.2, 0.9, 0.2, {}).save(tmp_path)
    assert Calibration.load(tmp_path).block == 0.9
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="calibration"):
        Calibration.load(tmp_path)


def test_the_command_says_why_a_split_is_too_small(guard_run, world, capsys):
    arguments = ["--guard", str(guard_run), "--data", str(world)]
    assert main(arguments) == 2
    assert "cannot certify a false-positive rate" in capsys.readouterr().err
    assert main(["--guard", "nowhere", "--data", str(world)]) == 2
    assert "nowhere" in capsys.readouterr().err
