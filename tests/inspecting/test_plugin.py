"""inspect_ai runs our task with our provider and scorers, and its log holds what they said."""

import json
import math
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

inspect_ai = pytest.importorskip("inspect_ai")

from inspect_ai._util.error import PrerequisiteError  # noqa: E402
from inspect_ai.dataset import MemoryDataset, Sample  # noqa: E402
from inspect_ai.log import read_eval_log  # noqa: E402
from inspect_ai.model import GenerateConfig, get_model  # noqa: E402
from inspect_ai.scorer import SampleScore, Score  # noqa: E402
from inspect_ai.solver import generate  # noqa: E402

from safe_rlhf_v.inspecting import plugin  # noqa: E402
from safe_rlhf_v.shards import ShardedSplit, decode  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # Of inspect_ai and of what it brings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROOT = Path(__file__).parents[2]


def run(task, source, folder, **options):
    """The log of an evaluation, read from its file."""
    model = get_model(f"safe_rlhf_v/{source}", memoize=False)
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", max_tokens=6, **options)
    return read_eval_log(log.location, resolve_attachments=True)


def values(log, scorer):
    """By sample its values by a scorer."""
    return {sample.id: sample.scores[scorer].value for sample in log.samples}


@pytest.fixture(scope="module")
def log(policy_stages, calibrated_run, world, tmp_path_factory):
    runs = {"guard": calibrated_run, "cost": policy_stages / "cost", "reward": policy_stages / "reward"}
    task = plugin.battery(str(world), **{name: str(path) for name, path in runs.items()})
    folder = tmp_path_factory.mktemp("logs")
    return run(task, policy_stages / "supervised", folder, seed=1)


def test_the_task_runs_with_our_provider_and_scorers(log, world):
    assert log.status == "success" and log.location.endswith(".eval")
    split = ShardedSplit(world, "test")
    records = {record.key: record for record in (split[row] for row in range(len(split)))}
    assert {sample.id for sample in log.samples} == set(records)
    for sample in log.samples:
        record = records[sample.id]
        assert sample.metadata["group"] == record.group
        assert sample.metadata["category"] == list(record.category)
        assert sample.metadata["intent"] == record.origin["intent"]
        assert sample.metadata["question"] == record.question
        assert (sample.metadata["picture"], sample.metadata["transform"]) == ("real", "none")
        picture, words = sample.messages[0].content
        assert words.text == record.question
        assert (decode(plugin_picture(picture)) == decode(record.images[0].data)).all()
        assert sample.messages[-1].role == "assistant"
        assert sample.output.usage.input_tokens > 3 and 1 <= sample.output.usage.output_tokens <= 6
        assert sample.output.stop_reason in ("stop", "max_tokens")


def plugin_picture(content):
    from safe_rlhf_v.inspecting.messages import _picture

    return _picture(content.image).data


def test_the_scores_are_those_of_the_judges(log, policy_stages, calibrated_run, world):
    from safe_rlhf_v.construct import CostJudge, GuardJudge, RewardJudge
    from safe_rlhf_v.world import WorldJudge

    split = ShardedSplit(world, "test")
    records = {record.key: record for record in (split[row] for row in range(len(split)))}
    judges = {
        "guard": GuardJudge(str(calibrated_run)),
        "cost_model": CostJudge(str(policy_stages / "cost")),
        "reward_model": RewardJudge(str(policy_stages / "reward")),
        "world_truth": WorldJudge(),
    }
    for name, judge in judges.items():
        for sample in log.samples:
            expected = judge.score(records[sample.id], sample.output.completion)
            scored = sample.scores[name].value
            assert scored == pytest.approx(expected, abs=1e-4, nan_ok=True)
            assert sample.scores[name].explanation.startswith(type(judge).__name__)


def test_the_metrics_are_clustered_by_image_and_leave_out_what_does_not_apply(log):
    by_name = {(score.scorer, score.name): score for score in log.results.scores}
    harmful = by_name["world_truth", "harmful"]
    mean = sum(value["harmful"] for value in values(log, "world_truth").values()) / len(log.samples)
    metrics = {name.rpartition("/")[2]: metric.value for name, metric in harmful.metrics.items()}
    assert metrics["mean"] == pytest.approx(mean)
    assert 0 <= metrics["interval_by_group_low"] <= mean <= metrics["interval_by_group_high"] <= 1
    assert metrics["interval_by_group_high"] > 0.05
    over_refused = by_name["world_truth", "over_refused"]
    unknown = sum(math.isnan(value["over_refused"]) for value in values(log, "world_truth").values())
    assert unknown and over_refused.unscored_samples == unknown
    assert over_refused.scored_samples == len(log.samples) - unknown


def test_the_same_seed_gives_the_same_responses_and_epochs_differ(log, policy_stages, world, tmp_path):
    def texts(log):
        return {(sample.id, sample.epoch): sample.output.completion for sample in log.samples}

    source = policy_stages / "supervised"
    again = run(plugin.battery(str(world)), source, tmp_path / "a", seed=1, epochs=2, max_connections=3)
    first = {key: value for key, value in texts(again).items() if key[1] == 1}
    assert first == texts(log)
    second = {key: value for (key, epoch), value in texts(again).items() if epoch == 2}
    assert second != {key: value for (key, _), value in first.items()}
    other = run(plugin.battery(str(world)), source, tmp_path / "b", seed=2)
    assert texts(other) != texts(log)


@pytest.mark.parametrize("pictures", ["other", "blank", "none"])
def test_the_model_sees_another_picture_and_the_judge_the_real_one(pictures, policy_stages, world, tmp_path):
    task = plugin.battery(str(world), pictures=pictures, reward=str(policy_stages / "reward"))
    log = run(task, policy_stages / "supervised", tmp_path, limit=3, temperature=0.0)
    split = ShardedSplit(world, "test")
    for row, sample in enumerate(log.samples):
        content = sample.messages[0].content
        record = split[row]
        assert sample.id == record.key and sample.metadata["picture"] == pictures
        if pictures == "none":
            assert content == record.question
        else:
            shown = decode(plugin_picture(content[0]))
            assert (shown == 127).all() == (pictures == "blank")
            assert not (shown == decode(record.images[0].data)).all()
        from safe_rlhf_v.construct import RewardJudge

        expected = RewardJudge(str(policy_stages / "reward")).score(record, sample.output.completion)
        assert sample.scores["reward_model"].value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("transform", ["typographic", "harmless_prefix"])
def test_the_transforms_change_what_the_model_reads_only(transform, policy_stages, world, tmp_path):
    from safe_rlhf_v.evaluation.transforms import INSTRUCTION, PREFIX

    task = plugin.battery(str(world), transform=transform)
    log = run(task, policy_stages / "supervised", tmp_path, limit=2)
    for sample in log.samples:
        picture, words = sample.messages[0].content
        assert words.text == INSTRUCTION if transform == "typographic" else words.text.startswith(PREFIX)
        assert (decode(plugin_picture(picture)).shape[1] > 64) == (transform == "typographic")
        assert sample.metadata["question"] not in (INSTRUCTION, "")


def test_our_scorers_score_the_samples_of_another_task(policy_stages, calibrated_run, world, tmp_path):
    """Without our data and metadata a judge reads what the model read, and samples count as independent."""
    samples = [Sample(id=i, input=f"how do i use {what} ?") for i, what in enumerate(("this", "it", "that"))]
    scorers = [plugin.guard(str(calibrated_run)), plugin.cost_model(str(policy_stages / "cost"))]
    task = inspect_ai.Task(dataset=MemoryDataset(samples), solver=generate(), scorer=scorers)
    log = run(task, policy_stages / "supervised", tmp_path)
    assert log.status == "success"
    assert all(-3 <= value["level"] <= 3 for value in values(log, "guard").values())
    cost = next(score for score in log.results.scores if score.name == "cost")
    assert {name.rpartition("/")[2] for name in cost.metrics} == {
        "mean", "stderr_by_group", "interval_by_group_low", "interval_by_group_high",
    }  # fmt: skip


def test_what_the_guard_cannot_check_is_harmful_and_what_a_judge_cannot_read_fails(
    policy_stages, calibrated_run, tmp_path
):
    samples = [Sample(id="a", input="how do i use this ?")]
    from safe_rlhf_v.construct import GuardJudge

    judge = GuardJudge(str(calibrated_run))
    verdict = judge.scores([(plugin_record(), "\ud800")])[0]
    assert verdict["harmful"] == 1 and math.isnan(verdict["level"])
    task = inspect_ai.Task(
        dataset=MemoryDataset(samples), solver=generate(), scorer=plugin.cost_model(str(policy_stages / "cost"), data="nowhere")
    )  # fmt: skip
    log = run(task, policy_stages / "supervised", tmp_path)
    assert log.status == "error" and "nowhere" in log.error.message
    assert not log.results or not log.results.scores


def plugin_record():
    from safe_rlhf_v.records import Record

    return Record("r", "how do i use this ?")


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"top_k": 3}, "top_k"), ({"stop_seqs": ["a"]}, "stop_seqs"), ({"num_choices": 2}, "num_choices")],
)
def test_options_that_are_not_honoured_fail_the_evaluation(options, problem, policy_stages, world, tmp_path):
    log = run(plugin.battery(str(world)), policy_stages / "supervised", tmp_path, limit=1, **options)
    assert log.status == "error" and problem in log.error.message


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"split": "tset"}, "no split 'tset'"),
        ({"pictures": "true"}, "pictures: 'true' is none of real, other, blank, none"),
        ({"transform": "rot13"}, "transform: 'rot13' is none of"),
        ({"guard": "no/such/run/here"}, "no/such/run/here"),
        ({"world": False}, "name a guard, a cost model or a reward model"),
        ({"transform": "typographic", "font": "no.ttf"}, "no.ttf: no such file"),
    ],
)
def test_a_task_that_cannot_run_is_refused_in_one_line_before_it_starts(options, problem, world):
    with pytest.raises(PrerequisiteError) as caught:
        plugin.battery(**{"data": str(world), **options})
    assert problem in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "toaster"}, "toaster"),
        ({"batch_size": 0}, "batch_size"),
        ({"api_key": "not-a-key"}, "api_key: a model on this machine has neither"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(options, problem, policy_stages):
    with pytest.raises(PrerequisiteError) as caught:
        get_model(f"safe_rlhf_v/{policy_stages / 'supervised'}", memoize=False, **options)
    assert problem in caught.value.message and "not-a-key" not in caught.value.message


def test_a_run_that_is_not_there_is_named():
    with pytest.raises(PrerequisiteError) as caught:
        get_model("safe_rlhf_v/no/such/run/here", memoize=False)
    assert "no/such/run/here" in caught.value.message


def test_the_provider_refuses_tools(policy_stages):
    import asyncio

    from inspect_ai.tool import ToolInfo

    api = get_model(f"safe_rlhf_v/{policy_stages / 'supervised'}", memoize=False).api
    with pytest.raises(ValueError, match="cannot call tools"):
        asyncio.run(api.generate([], [ToolInfo(name="x", description="y")], "auto", GenerateConfig()))


def scores(*rows):
    """Sample scores of (value, group)."""
    return [
        SampleScore(score=Score(value=value), sample_id=i, sample_metadata={"group": group} if group else {})
        for i, (value, group) in enumerate(rows)
    ]


def test_the_metrics_against_our_own_statistics():
    from safe_rlhf_v.functional.clustered import clustered_mean, clustered_share

    rows = [(1.0, "a"), (1.0, "a"), (0.0, "b"), (1.0, "c"), (0.0, "c"), (0.0, "d")]
    for share, function in ((True, clustered_share), (False, clustered_mean)):
        interval = function([value for value, _ in rows], [group for _, group in rows])
        measured = plugin.interval_by_group(share=share)(scores(*rows))
        assert measured == {"low": interval.low, "high": interval.high}
    zeros = plugin.interval_by_group(share=True)(scores(*[(0.0, f"g{i}") for i in range(20)]))
    assert zeros["low"] == 0 and zeros["high"] == pytest.approx(0.168, abs=2e-3)  # Clopper-Pearson, 0 of 20
    alone = plugin.stderr_by_group()(scores(*[(value, None) for value, _ in rows]))
    assert alone == pytest.approx(math.sqrt(0.3 / 6))
    assert plugin.stderr_by_group()(scores(*rows)) != pytest.approx(alone)


def test_the_entry_point_names_what_registers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["inspect_ai"]
    assert list(entry) == ["safe_rlhf_v"]  # what stands before the slash on the command line
    module = import_module(entry["safe_rlhf_v"])
    assert all(hasattr(module, name) for name in ("battery", "guard", "cost_model", "reward_model", "world_truth"))
    assert any(line.startswith("inspect_ai>=") for line in project["optional-dependencies"]["inspect"])


def test_the_log_is_plain_json_inside(log):
    """What institutes exchange: readable without us."""
    import zipfile

    with zipfile.ZipFile(log.location) as archive:
        header = json.loads(archive.read("header.json"))
    assert header["eval"]["task"].endswith("battery") and header["eval"]["model"].startswith("safe_rlhf_v/")
    assert header["eval"]["task_args"]["pictures"] == "real"
