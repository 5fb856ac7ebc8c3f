"""What is refused, what a folder looks like after a kill, the card, and the hub."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.export.conftest import refused
from tests.stored_runs import copy_run

from safe_rlhf_v.commands.export import export
from safe_rlhf_v.evaluation.budgets import budget_of_run
from safe_rlhf_v.export import check, hub
from safe_rlhf_v.export.card import write_card
from safe_rlhf_v.export.folder import new_folder
from safe_rlhf_v.export.trained import Trained, load_trained
from safe_rlhf_v.export.write import write_export
from safe_rlhf_v.models import SavedClipDecoder, ScalarHead
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.records.user_files import FileError
from safe_rlhf_v.shards import ShardError
from safe_rlhf_v.training.checkpoints import read_checkpoint
from safe_rlhf_v.training.lineage import run_content, trained_against
from safe_rlhf_v.training.runs import load_backbone


class Doubled(ScalarHead):
    """Computes something of its own."""

    def scores(self, states: Any) -> Any:
        return 2 * super().scores(states)


# --- the folder -----------------------------------------------------------------------------------------------------


def test_a_folder_of_others_is_refused_and_left_alone(
    policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(policy_stages / "cost")
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(full)
    for out, words in ((full, "not empty"), (file, "no folder"), (link, "no folder")):
        assert words in refused(["export", run, str(out)], capsys)
    assert (full / "notes.txt").read_text() == file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]


def test_an_empty_folder_is_filled_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RuntimeError), new_folder(out) as part:
        (part / "weights").write_text("half")
        raise RuntimeError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any(out.iterdir())
    with new_folder(out) as part:
        (part / "secret").touch(0o600)
        assert not any(out.iterdir())
        with pytest.raises(FileError, match="process"), new_folder(out):
            pass
    assert (out / "secret").stat().st_mode & 0o777 != 0o600  # as every other file that is written


def _killed(out: Path) -> None:
    with new_folder(out) as part:
        (part / "config.json").write_text("{}")
        (part / "deep").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_no_folder_of_that_name_and_the_next_call_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(out) as part:
        (part / "model").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "model"]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_nothing_is_exported_without_its_head(policy_stages: Path, tmp_path: Path) -> None:
    trained = load_trained(policy_stages / "cost")
    head: Any = Doubled(trained.backbone)
    for model in (trained._replace(head=head), trained._replace(link=torch.nn.Linear(1, 1))):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="is none that a folder can carry"):
            write_export(model, policy_stages / "cost", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_supervised_run_becomes_the_base_of_adapters(policy_stages: Path, tmp_path: Path) -> None:
    """The folder is what ``SavedClipDecoder`` reads, and so what roles on one base share."""
    export(policy_stages / "supervised", tmp_path / "base", check=False)
    pixels = torch.arange(64 * 64 * 3).remainder(251).reshape(64, 64, 3).to(torch.uint8)
    prompts = Prompts(((pixels,), ()), (("one",), ()), ("what is this", "can i eat it"))
    base = SavedClipDecoder(str(tmp_path / "base"), lora=LoraSettings(r=2)).eval()
    trained = load_backbone(policy_stages / "supervised").eval()
    with torch.no_grad():
        here, there = (
            model.response_states(model.prepare(prompts, [["yes", "no"]] * len(prompts.questions)), log_probs=True)
            for model in (trained, base)
        )
    torch.testing.assert_close(here.hidden, there.hidden, rtol=1e-5, atol=1e-6)  # new adapters add zero
    torch.testing.assert_close(here.log_probs, there.log_probs, rtol=1e-5, atol=1e-6)
    assert base.base == str(tmp_path / "base")  # checkpoints leave out what the folder gives


def test_what_is_left_out_is_named(policy_stages: Path, tmp_path: Path) -> None:
    done = export(policy_stages / "cost", tmp_path / "out", check=False)  # its objective has thresholds
    assert done.left_out == ("parameters of the training's loss",)
    assert "parameters of the training's loss" in (tmp_path / "out" / "README.md").read_text()


def test_a_towers_run_is_refused(policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["export", str(policy_stages / "vision"), str(tmp_path / "out")], capsys)
    assert "is a vision tower" in line


def test_another_model_than_the_runs_is_not_written(
    policy_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = check.values_of_run
    monkeypatch.setattr(check, "values_of_run", lambda trained: [values + 0.01 for values in own(trained)])
    command = ["export", str(policy_stages / "cost"), str(tmp_path / "out")]
    assert "differs from the run's" in refused(command, capsys)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(check, "values_of_run", lambda trained: [values[:0] for values in own(trained)])
    assert "reads other tokens" in refused(command, capsys)


def test_nan_is_no_agreement() -> None:
    with pytest.raises(ValueError, match="differs"):
        check.refuse_differences([torch.zeros(2)], [torch.full((2,), torch.nan)], rounded=True)


@pytest.mark.parametrize("where", [0, 1])
def test_nan_on_any_probe_is_no_agreement(where: int) -> None:
    values = [torch.zeros(2), torch.zeros(2)]
    values[where] = torch.tensor([0.0, torch.nan])
    with pytest.raises(ValueError, match="differs"):
        check.refuse_differences([torch.zeros(2)] * 2, values, rounded=True)


@pytest.mark.parametrize(("folder", "refused_"), [(-1.98, True), (-1.52, False)])
def test_a_folder_without_what_was_trained_is_refused_though_16_bits_could_explain_it(
    folder: float, refused_: bool
) -> None:
    run, base, written = ([torch.full((2,), value - 8), torch.tensor([-10.0])] for value in (-1.5, -2.0, folder))
    if refused_:
        with pytest.raises(ValueError, match="is the base without what the run has trained"):
            check.refuse_differences(run, written, True, base)
    else:
        assert check.refuse_differences(run, written, True, base) < 0.01


def test_a_folder_that_does_not_load_is_not_written(
    policy_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(file: Path) -> Any:
        raise ImportError("No module named 'num2words'")

    monkeypatch.setattr(check, "load_module", broken)
    line = refused(["export", str(policy_stages / "cost"), str(tmp_path / "out")], capsys)
    assert "num2words" in line and "--check false" in line
    assert not list(tmp_path.iterdir())
    assert export(policy_stages / "cost", tmp_path / "out", check=False).difference is None


def test_an_adapter_that_is_not_all_is_refused(
    family_runs: Callable[..., Path], policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = family_runs("llava", "policy", "cost")
    base = f"--base={home / 'base'}"

    def other_projector(content: dict[str, Any]) -> None:
        name = "backbone.model.model.multi_modal_projector.linear_1.bias"
        content["state_dict"][name] = torch.ones(32)
        content["rebuilt"].remove(name)

    trained_beside = copy_run(home / "policy", tmp_path / "beside", other_projector)
    for run, words in (
        (home / "cost", "cost head would be left out"),
        (policy_stages / "supervised", "without adapters"),
        (trained_beside, "multi_modal_projector.linear_1.bias"),
    ):
        assert words in refused(["export", str(run), str(tmp_path / "out"), "--adapter", base], capsys)
    assert "--dtype" in refused(
        ["export", str(home / "policy"), str(tmp_path / "out"), "--adapter", "--dtype=bfloat16", base], capsys
    )
    assert not (tmp_path / "out").exists()
    assert export(trained_beside, tmp_path / "merged", base=str(home / "base")).difference is not None


def test_options_that_make_no_sense(policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(policy_stages / "cost")
    out = str(tmp_path / "out")
    for extra, words in (
        (["--public"], "--push"),
        (["--push", "me"], "OWNER/NAME"),
        (["--push", "../me"], "OWNER/NAME"),
        (["--data", str(tmp_path)], "no manifest"),
        (["--dtype", "int4"], "dtype"),
    ):
        assert words in refused(["export", run, out, *extra], capsys)
    assert "no readable checkpoint" in refused(["export", str(tmp_path), out], capsys)
    assert not list(tmp_path.iterdir())


# --- the card -------------------------------------------------------------------------------------------------------


def test_a_guards_card_names_data_measures_and_calibration(calibrated_run: Path, world: Path, tmp_path: Path) -> None:
    run = copy_run(calibrated_run, tmp_path / "run")
    (run / "metrics.json").write_text(json.dumps({"test/<b>x</b>": 0.25, "n": {"deep": True, "y": 1e-7}}))
    (run / "assessment.json").write_text("{")
    stored = json.loads((run / "calibration.json").read_text())
    stored["certificate"] = {"responses_fpr_upper": 0.0493, "responses_severe_recall_lower": 0.9737}
    (run / "calibration.json").write_text(json.dumps(stored))
    export(run, tmp_path / "out", data=world, check=False)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("| responses severe recall lower | 0.9737 |", "bound *false alarms*", "misses are not bounded", "embedded-world", "CC0-1.0", "synthetic-data", "| block | 0.9 |", "0.25", "1e-07", "could not be read",
                  "Intended use", "Limits", "Licence", "from levels import verdict"):  # fmt: skip
        assert words in card, words
    assert "<b>" not in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "export.json").read_text()


def test_a_guard_with_the_calibration_of_other_weights_is_refused(calibrated_run: Path, tmp_path: Path) -> None:
    run = copy_run(calibrated_run, tmp_path / "run")
    stored = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps({**stored, "model": "0123456789abcdef"}))
    with pytest.raises(ValueError, match=r"fitted for guard 0123456789abcdef, these weights are .*calibrate' again"):
        export(run, tmp_path / "out", check=False)
    assert not (tmp_path / "out").exists()


def test_a_guard_without_calibration_says_so(guard_run: Path, tmp_path: Path) -> None:
    run = copy_run(guard_run, tmp_path / "run")
    (run / "calibration.json").unlink(missing_ok=True)
    export(run, tmp_path / "out", check=False)
    assert "**None.** Temperatures are 1" in (tmp_path / "out" / "README.md").read_text()
    assert not json.loads((tmp_path / "out" / "export.json").read_text())["calibrated"]


@pytest.mark.parametrize("revision", [None, "v2"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_an_adapters_card_says_which_base_it_stood_on(revision: str | None, quantization: str | None) -> None:
    from safe_rlhf_v.export import card

    settings = {"form": "adapter", "base": "me/base", "revision": revision, "quantization": quantization,
                "kind": "policy", "outputs": []}  # fmt: skip
    text = card._how(settings)
    assert ('from_pretrained("me/base", revision="v2")' in text) == (revision is not None)
    assert ("stored as nf4" in text) == (quantization is not None)


def test_the_card_of_hostile_names_is_one_page(policy_stages: Path, world: Path) -> None:
    from dataclasses import replace

    from safe_rlhf_v.export import card
    from safe_rlhf_v.shards import Manifest

    manifest = replace(Manifest.load(world), name="# x\n<script>", licence="---\nlicense: mit", origin={"|a": "`b`"})
    text = card._data(manifest) + card._licence({"base": "a\n# b"}, manifest)
    assert "<script>" not in text and "\n# " not in text and "\nlicense: mit" not in text
    with pytest.raises(ShardError):
        trained = Trained("policy", SimpleNamespace(stage={}), None)  # type: ignore[arg-type]
        write_card(trained, policy_stages, {}, Path("nowhere"), None)


@pytest.mark.slow
def test_a_policys_card_has_its_budget(policy_stages: Path, world: Path, tmp_path: Path) -> None:
    from tests.conftest import stage_command

    from safe_rlhf_v.commands.fit import main

    runs = tmp_path / "runs"
    roles = "--model.init_args.roles.init_args"
    named = [f"{roles}.{name}={policy_stages / run}" for name, run in
             (("start", "supervised"), ("reward", "reward"), ("cost", "cost"))]  # fmt: skip
    small = ["--model.init_args.start.prompts=4", "--model.init_args.start.min_sign_accuracy=0.0"]
    main(stage_command("ppo_lag", world, runs, *named, *small, "--model.init_args.sampling.max_new_tokens=6", steps=1))
    done = export(runs / "ppo_lag", tmp_path / "out")
    assert done.kind == "policy"
    assert any("critics" in part for part in done.left_out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Budget" in card and "| budget | -0.5 |" in card and "at the end: lam" in card
    for policy in (runs / "ppo_lag", tmp_path / "out"):  # the folder keeps what its policy was trained against
        assert {*trained_against(str(policy))} >= {
            f"weights:{run_content(str(policy_stages / r))}" for r in ("reward", "cost")
        }
    assert str(policy_stages) not in (tmp_path / "out" / "export.json").read_text()
    spread = read_checkpoint(runs / "ppo_lag")["state_dict"]["scale.spread"][1]
    assert budget_of_run(str(runs / "ppo_lag")) == pytest.approx(-0.5 * float(spread))


# --- the hub --------------------------------------------------------------------------------------------------------


class Hub:
    """Stands for the hub's client."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append((repo, options))

    def upload_folder(self, **options: Any) -> Any:
        if self.fault:
            raise ConnectionError(self.fault)
        self.calls.append((options["repo_id"], {"files": sorted(p.name for p in options["folder_path"].iterdir())}))
        return SimpleNamespace(repo_url="https://hub/me/cost")


def test_a_folder_is_sent_whole(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    api = Hub()
    assert hub.push(tmp_path, "me/cost", api=api) == "https://hub/me/cost"
    assert api.calls == [("me/cost", {"private": True, "exist_ok": True}), ("me/cost", {"files": ["README.md"]})]
    with pytest.raises(ValueError, match="did not take it") as error:
        hub.push(tmp_path, "me/cost", public=True, api=Hub("token hf_AbCd123 is\nno good"))
    assert "hf_AbCd" not in str(error.value) and "\n" not in str(error.value)


def test_without_a_hub_the_folder_stays(
    policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub("offline"))
    line = refused(["export", str(policy_stages / "cost"), str(tmp_path / "out"), "--push", "me/cost"], capsys)
    assert "the hub did not take it (ConnectionError: offline)" in line
    assert (tmp_path / "out" / "README.md").is_file()
