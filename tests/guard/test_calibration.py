"""Temperatures and thresholds: recovered where they are known, refused where they cannot be had."""

import json
import math
import shutil

import pytest
import torch
from scipy.stats import beta
from tests.guard_run import WIDE

from safe_rlhf_v.commands.calibrate import main
from safe_rlhf_v.guard.assessment import assess, assess_groups, assess_prevalence, outputs_of_batches
from safe_rlhf_v.guard.calibration import (
    LEAST,
    Calibration,
    CalibrationMissing,
    LabelledOutputs,
    fit_calibration,
    fit_temperature,
    stated,
    tempered,
    two_columns,
)
from safe_rlhf_v.guard.moderation import Guard, load_module
from safe_rlhf_v.records.batches import PreferenceBatch, Prompts
from safe_rlhf_v.shards import Manifest


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


def outputs(n: int) -> LabelledOutputs:
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.log_softmax(3 * torch.randn(n, 7, generator=generator), -1)
    levels = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)
    risk = 3 * torch.randn(n, generator=generator)
    hazardous = torch.rand(n, generator=generator) < torch.sigmoid(risk)
    return LabelledOutputs(log_probs, levels, risk, hazardous, hazardous, {}, torch.arange(n), torch.arange(n))


def test_thresholds_keep_their_budgets_and_are_ordered():
    found = fit_calibration(outputs(4000), "id", "here", WIDE, 0.05, 0.1, 0.95)
    assert found.level_temperature == pytest.approx(1.0, abs=0.1)
    assert found.prompt_temperature == pytest.approx(1.0, abs=0.1)
    for threshold in (found.block, found.review, found.prompt_block, found.prompt_review):
        assert threshold == round(threshold, 6)
    assert 0 < found.review < found.block < 1 and 0 < found.prompt_review < found.prompt_block < 1
    assert found.certificate["responses_fpr"] < found.certificate["responses_fpr_upper"] <= 0.05
    easy = outputs(4000)._replace(prompt_risk=torch.where(outputs(4000).hazardous, 30.0, -30.0))
    certain = fit_calibration(easy, "id", "here", WIDE, 0.05, 0.1, 0.95)
    assert certain.certificate["prompts_recall"] == 1.0
    assert certain.prompt_review >= LEAST
    with pytest.raises(ValueError, match="at least 59 are needed"):
        fit_calibration(outputs(60), "id", "here", WIDE, 0.05, 0.1, 0.95)
    with pytest.raises(ValueError, match="budgets must keep"):
        fit_calibration(outputs(60), "id", "here", WIDE, 0.2, 0.1, 0.95)


def drawn(n, generator):
    """Inputs of a guard that is too sure of itself: what it states is twice as sharp as what comes true."""
    latent = 2 * torch.randn(n, 1, generator=generator)
    logits = -((latent - torch.arange(-3, 4)) ** 2) / 4
    levels = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(1)
    risk = 2 * torch.randn(n, generator=generator)
    hazardous = torch.rand(n, generator=generator) < torch.sigmoid(risk)
    alone = torch.arange(n)
    return LabelledOutputs(torch.log_softmax(2 * logits, -1), levels, 2 * risk, hazardous, hazardous, {}, alone, alone)


def twice(outputs):
    """Every response and prompt a second time, of the same image."""
    rows = [column if isinstance(column, dict) else column.repeat_interleave(2, 0) for column in outputs]
    return LabelledOutputs(*rows)


def test_every_guarantee_holds_on_fresh_data():
    """100 calibration sets of 400 images with two equal responses: budgets are kept with 95 %, the miss rate on average."""
    generator = torch.Generator().manual_seed(0)
    fresh, draws, budget, alpha = drawn(20_000, generator), 100, 0.1, 0.05
    broken = {"block": 0, "prompt_block": 0}
    missed, prompts_missed = [], []
    for _ in range(draws):
        found = fit_calibration(twice(drawn(400, generator)), "id", "here", WIDE, budget, 0.2, 0.95, alpha)
        assert found.level_temperature == pytest.approx(2, rel=0.3)
        assert found.prompt_temperature == pytest.approx(2, rel=0.4)
        harm = tempered(fresh.level_log_probs.double(), found.level_temperature)[:, :3].exp().sum(1)
        risk = torch.sigmoid(fresh.prompt_risk.double() / found.prompt_temperature)
        harmful = fresh.levels < 3
        broken["block"] += float((harm[~harmful] >= found.block).double().mean()) > budget
        broken["prompt_block"] += float((risk[~fresh.hazardous] >= found.prompt_block).double().mean()) > budget
        missed.append(float((harm[harmful] < found.review).double().mean()))
        prompts_missed.append(float((risk[fresh.hazardous] < found.prompt_review).double().mean()))
    allowed = draws * 0.05 + 2 * math.sqrt(draws * 0.05 * 0.95)
    assert max(broken.values()) <= allowed
    for rates in (missed, prompts_missed):
        spread = torch.tensor(rates).std() / math.sqrt(draws)
        assert sum(rates) / draws <= alpha + 3 * spread
        assert sum(rates) / draws >= alpha / 2  # and not by refusing everything


def test_a_miss_rate_lowers_what_is_reviewed_and_says_what_it_costs():
    plain = fit_calibration(outputs(4000), "id", "here", WIDE, 0.05, 0.1, 0.95)
    strict = fit_calibration(outputs(4000), "id", "here", WIDE, 0.05, 0.1, 0.95, 0.01)
    assert strict.review < plain.review and strict.prompt_review < plain.prompt_review
    assert (strict.block, strict.prompt_block) == (plain.block, plain.prompt_block)
    assert strict.certificate["responses_miss_rate"] == 0.01 and "responses_miss_rate" not in plain.certificate
    assert (
        strict.certificate["responses_reviewed_or_blocked_fpr"] > plain.certificate["responses_reviewed_or_blocked_fpr"]
    )
    with pytest.raises(ValueError, match="are needed"):
        fit_calibration(outputs(100), "id", "here", WIDE, 0.1, 0.2, 0.9, 0.001)


def test_thresholds_compare_what_verdicts_state():
    """Harm is rounded to six digits before it is compared: a harmless row that rounds up must still stay below."""
    log_probs = outputs(200).level_log_probs
    found = fit_calibration(outputs(200), "id", "here", WIDE, 0.1, 0.2, 0.9)
    harm = tempered(log_probs.double(), found.level_temperature)[:, :3].exp().sum(1)
    harmless = [round(p, 6) for p, level in zip(harm.tolist(), outputs(200).levels.tolist(), strict=True) if level >= 3]
    assert sum(p >= found.block for p in harmless) == found.certificate["responses_false_alarms"]


@pytest.mark.parametrize(
    ("threshold", "printed"),
    [(0.15002000000000001, 0.150021), (0.15002, 0.15002), (0.1500201, 0.150021), (0.05, 0.05), (1.0, 1.0), (0.0, 0.0)],
)
def test_a_threshold_has_the_digits_of_a_verdict_and_parts_the_same_ones(threshold, printed):
    assert stated(threshold) == printed
    grid = [round(n * 1e-6, 6) for n in range(150_000, 150_050)]
    assert [harm >= threshold for harm in grid] == [harm >= printed for harm in grid]


def test_what_a_split_holds_none_of_is_left_out():
    """No hazardous prompt: no recall, no area under a curve; and every number that stays is JSON."""
    calm = outputs(300)._replace(hazardous=torch.zeros(300, dtype=torch.bool), groups={"rule": (("a",), ()) * 150})
    found = fit_calibration(calm, "id", "here", WIDE, 0.1, 0.2, 0.9)
    assert "prompts_recall" not in found.certificate and found.certificate["prompts_harmful"] == 0
    measured, groups = assess(calm, found), assess_groups(calm, found)
    assert not {"prompt_auroc", "prompt_recall_at_block", "category_accuracy"} & set(measured)
    assert set(groups) == {"rule"} and set(groups["rule"]) == {"a"} and groups["rule"]["a"]["responses"] == 150
    json.dumps([measured, groups, found.certificate], allow_nan=False)


def test_without_a_known_prompt_a_prompt_alone_is_always_blocked():
    nothing = torch.zeros(0, dtype=torch.bool)
    blind = outputs(300)._replace(
        prompt_risk=torch.zeros(0), hazardous=nothing, named_right=nothing, prompt_clusters=torch.arange(0)
    )
    found = fit_calibration(blind, "id", "here", WIDE, 0.1, 0.2, 0.9)
    assert (found.prompt_block, found.prompt_review, found.prompt_temperature) == (0.0, 0.0, 1.0)
    assert not [name for name in found.certificate if name.startswith("prompts_")]
    assert found.block == fit_calibration(outputs(300), "id", "here", WIDE, 0.1, 0.2, 0.9).block
    json.dumps(assess(blind, found), allow_nan=False)


def test_an_answer_counts_in_each_of_its_groups():
    rows = outputs(3)._replace(groups={"category": (("a", "b"), ("b",), ())})
    found = assess_groups(rows, fit_calibration(outputs(300), "id", "here", WIDE, 0.1, 0.2, 0.9))["category"]
    assert (found["a"]["responses"], found["b"]["responses"]) == (1, 2)


def test_an_assessment_by_hand():
    """Three responses that the guard is certain of, one of them wrong."""
    p = torch.full((3, 7), 1e-9)
    p[0, 0] = p[1, 3] = p[2, 2] = 1.0  # levels -3, 0, -1
    levels = torch.tensor([0, 3, 4])  # the last is +1 in truth
    hazardous = torch.tensor([True, False])
    rows = LabelledOutputs(
        p.log(), levels, torch.tensor([2.0, -2.0]), hazardous, hazardous, {"rule": (("a",), ("a",), ("b",))},
        torch.tensor([0, 0, 1]), torch.tensor([0, 1]),
    )  # fmt: skip
    calibration = Calibration("m", "x", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, WIDE, {})
    found, groups = assess(rows, calibration), assess_groups(rows, calibration)["rule"]
    assert found["level_accuracy"] == found["harm_accuracy"] == pytest.approx(2 / 3)
    assert found["macro_mae"] == pytest.approx(2 / 3) and found["within_one"] == pytest.approx(2 / 3)
    assert (found["recall_at_block"], found["fpr_at_block"]) == (1.0, 0.5)
    assert (found["prompt_auroc"], found["prompt_recall_at_block"], found["category_accuracy"]) == (1.0, 1.0, 1.0)
    assert (found["harmful"], found["severe"], found["image_groups"]) == (1, 1, 2)
    one = {"recall_lower": pytest.approx(0.05), "severe_recall_lower": pytest.approx(0.05)}  # of one response
    assert groups["a"] == {
        "responses": 2, "harmful": 1, "severe": 1, "level_accuracy": 1, "harm_accuracy": 1,
        "recall": 1, "severe_recall": 1, "fpr": 0, "fpr_upper": pytest.approx(0.95), **one,
    }  # fmt: skip
    assert groups["b"] == {
        "responses": 1, "harmful": 0, "severe": 0, "level_accuracy": 0, "harm_accuracy": 0, "fpr": 1, "fpr_upper": 1,
    }  # fmt: skip


def test_the_certificate_counts_image_groups_and_bounds_what_is_caught():
    rows = outputs(1000)
    single = fit_calibration(rows, "id", "here", WIDE, 0.05, 0.1, 0.95)
    double = fit_calibration(twice(rows), "id", "here", WIDE, 0.05, 0.1, 0.95)
    assert double.certificate == pytest.approx(single.certificate)  # a second equal response proves nothing
    assert (double.block, double.review) == (single.block, single.review)
    facts = double.certificate
    assert facts["responses_groups"] == facts["prompts_groups"] == 1000
    assert facts["responses_harmless"] + facts["responses_harmful"] == 1000 and facts["responses_severe"] > 100
    caught = round(facts["responses_severe_recall"] * facts["responses_severe"])
    bound = beta.ppf(0.05, caught, facts["responses_severe"] - caught + 1)
    assert facts["responses_severe_recall_lower"] == pytest.approx(bound) and bound < facts["responses_severe_recall"]
    assert facts["responses_recall_lower"] < facts["responses_recall"]
    harmless = rows._replace(levels=torch.full((1000,), 6))
    calm = fit_calibration(harmless, "id", "here", WIDE, 0.05, 0.1, 0.95).certificate
    assert calm["responses_severe"] == calm["responses_severe_recall_lower"] == calm["responses_recall_lower"] == 0


def test_bounds_count_images_and_zeros_carry_theirs():
    rows = outputs(400)
    quiet = Calibration("m", "x", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, WIDE, {})
    single, double = assess(rows, quiet), assess(twice(rows), quiet)
    assert single["fpr_at_block"] == 0.0 < single["fpr_at_block_upper"] < 0.02
    for name in (
        "fpr_at_block_upper",
        "recall_at_review_lower",
        "severe_recall_at_block_lower",
        "prompt_fpr_at_review_upper",
    ):
        assert double[name] == pytest.approx(single[name], rel=1e-3)
    loose = assess(rows, Calibration("m", "x", 1.0, 1.0, 0.9, 0.1, 0.9, 0.1, WIDE, {}))
    assert loose["recall_at_block_lower"] < loose["recall_at_block"] < loose["recall_at_review"]
    assert loose["severe_recall_at_block_lower"] < loose["severe_recall_at_block"]
    assert loose["prompt_recall_at_block_lower"] < loose["prompt_recall_at_block"]


def batch_of(*rows):
    """A batch of records with these names of pictures, one response each."""
    n = len(rows)
    pictures = tuple(tuple(torch.zeros(1, 1, 3, dtype=torch.uint8) for _ in names) for names in rows)
    prompts = Prompts(pictures, rows, tuple(f"question {i % 2}" for i in range(n)))
    ones = torch.ones(n, dtype=torch.int64)
    return PreferenceBatch(
        prompts, (("a",),) * n, -ones, -ones, ones > 2, ones[:, None], ones[:, None], ones[:, None], ones > 0,
        tuple(f"key {i}" for i in range(n)),
    )  # fmt: skip


class Untaught:
    """A guard that states nothing."""

    images = "blank"
    categories = ("c",)

    def admit(self, batch, run):
        return batch, run(batch)

    def __call__(self, prompts, responses):
        n = sum(map(len, responses))
        return torch.zeros(n, 7), torch.zeros(n), torch.zeros(n, 1)


def test_records_that_share_a_picture_are_one_group():
    """Through further records, too, in whichever batch; without pictures the texts count. What the guard sees does not matter."""
    batches = [batch_of(("a",), ("b",), ("c", "d")), batch_of(("d", "b"), ("e",), (), (), ()), batch_of(("a",))]
    outputs = outputs_of_batches(Untaught(), batches)
    assert outputs.clusters.tolist() == [0, 1, 1, 1, 2, 3, 4, 3, 0]
    assert outputs.prompt_clusters.tolist() == outputs.clusters.tolist()


def test_no_threshold_is_stated_that_breaks_its_budget():
    """Harmless responses with a P(harmful) of 1 cannot be let through by any threshold up to 1."""
    sure = torch.full((300, 7), -500.0)
    sure[:, 0] = 0.0
    rows = outputs(300)._replace(level_log_probs=torch.log_softmax(sure, -1), levels=torch.arange(300) % 7)
    with pytest.raises(ValueError, match=r"responses: no threshold keeps .* 5.00%.*P\(harmful\) of 1"):
        fit_calibration(rows, "id", "here", WIDE, 0.05, 0.1, 0.95)


def test_a_guard_without_its_own_calibration_makes_no_decisions(guard_run, tmp_path):
    module, identity = load_module(guard_run)
    with pytest.raises(CalibrationMissing, match="python -m safe_rlhf_v calibrate"):
        Calibration.load(tmp_path)
    foreign = Calibration("someone else", "x", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, WIDE, {})
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
        {"certificate": 5},
        {"certificate": {"responses_fpr": []}},
        {"level_prior": [0.5, 0.5]},
        {"level_prior": [0.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1]},
    ],
)
def test_a_damaged_calibration_is_refused(change, tmp_path):
    path = Calibration("m", "x", 1.0, 1.0, 0.9, 0.2, 0.9, 0.2, WIDE, {}).save(tmp_path)
    assert Calibration.load(tmp_path).block == 0.9
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="calibration"):
        Calibration.load(tmp_path)


def test_the_command_says_why_a_split_is_too_small(guard_run, world, capsys):
    arguments = ["--guard", str(guard_run), "--data", str(world), "--train_data", str(world)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "responses:" in error and "cannot certify a false-positive rate" in error and "groups like these" in error
    for wrong, reason in {
        "--prevalence=0.01": "name one with --report", "--prevalence=0": "between 0 and 1, got 0",
        "--prevalence=1e400": "between 0 and 1", "--confidence=1": "--confidence must lie",
        "--miss_rate=0": "--miss_rate must lie", "--fpr=0": "budgets must keep",
    }.items():  # fmt: skip
        assert main([*arguments, wrong]) == 2
        assert reason in capsys.readouterr().err, wrong
    assert main(["--guard", "nowhere", "--data", str(world)]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_command_reports_bounds_and_prevalences(guard_run, world, tmp_path, capsys):
    run = tmp_path / "guard"
    shutil.copytree(guard_run, run, ignore=shutil.ignore_patterns("calibration.json"))
    options = [
        "--split=validation",
        "--fpr=0.5",
        "--review_fpr=0.6",
        "--report",
        "test",
        "--prevalence",
        "0.01",
        "0.0001",
    ]
    assert main(["--guard", str(run), "--data", str(world), "--train_data", str(world), *options]) == 0
    text = capsys.readouterr().out
    assert "image groups:" in text and "severe ones (at least" in text and "harmless ones blocked (at most" in text
    assert "blocked or reviewed: " in text and "where 0.01% of the responses are harmful, per million blocked: " in text
    measured = json.loads((run / "assessment.json").read_text())["test"]
    assert measured["severe_recall_at_block_lower"] <= measured["severe_recall_at_block"]
    row = measured["prevalence"]["0.0001"]["blocked"]
    assert row["alerts_low"] <= row["alerts"] <= row["alerts_high"] and row["precision_low"] <= row["precision_high"]
    facts = json.loads((run / "calibration.json").read_text())["certificate"]
    assert facts["responses_groups"] == Manifest.load(world).splits["validation"].groups
    assert facts["responses_harmless"] + facts["responses_harmful"] == facts["responses_groups"]


def test_a_split_of_one_side_has_no_prevalence():
    rows = outputs(50)._replace(levels=torch.full((50,), 3))
    assert assess_prevalence(rows, Calibration("m", "x", 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, WIDE, {}), [0.01]) == {}
