"""The command line as people use it: help without waiting, errors in a line, runs that stop and go on."""

import io
import logging
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tests.commands.command_lines import CONFIG, base, refused

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.commands import fit as cli
from safe_rlhf_v.modules import SupervisedModule

# --- without Lightning ----------------------------------------------------------------------------------------------


def test_help_and_version_need_neither_torch_nor_lightning() -> None:
    code = """
import sys
from safe_rlhf_v.__main__ import COMMANDS, main
for args in ([], ["--help"], ["--version"], ["fit", "--help"], ["test", "-h"], ["fut"]):
    main(args)
for command in COMMANDS:
    try: main([command, "--help"])
    except SystemExit as exit: assert not exit.code
heavy = {"torch", "lightning", "transformers", "open_clip", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for word in ("fit", "shards", "--config FILE", "--ckpt_path PATH", "0.1.0"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_unknown_commands_are_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["fitt", "--config", "x"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'fitt'; did you mean fit?\n"
    assert entry.main(["zzz"]) == 2
    assert "expected one of: fit, validate" in capsys.readouterr().err


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_every_own_command_has_a_main_with_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(entry.COMMANDS[command][0])
    try:
        status = module.main(["--help"])
    except SystemExit as exit:
        status = exit.code
    assert status == 0
    assert f"python -m safe_rlhf_v {command}" in capsys.readouterr().out


def test_the_public_names_are_lazy_and_real() -> None:
    import safe_rlhf_v

    code = "import sys, safe_rlhf_v; dir(safe_rlhf_v); assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    for name in safe_rlhf_v.__all__:
        assert getattr(safe_rlhf_v, name) is not None
    assert set(safe_rlhf_v.__all__) <= set(dir(safe_rlhf_v))
    with pytest.raises(AttributeError, match="'Nothing'"):
        _ = safe_rlhf_v.Nothing


# --- errors in one line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--model.init_args.optimiser=x"], ["unknown option 'optimiser'", "did you mean optimizer?"]),
        (
            ["--model.init_args.lr=3"],
            ["model: unknown option 'lr' of SupervisedModule; --print_config shows every key"],
        ),
        (["--model.init_args.backbone.init_args.slotz=null"], ["unknown option 'slotz'", "did you mean slots?"]),
        (["--model.init_args.optimizer.init_args.lrr=3"], ["unknown option 'lrr' of AdamW", "did you mean lr?"]),
        (["--trainer.max_step=3"], ["unknown option --trainer.max_step", "did you mean --trainer.max_steps?"]),
        (["--trainer.max_step", "3"], ["unknown option --trainer.max_step", "did you mean --trainer.max_steps?"]),
        (["--modell=3"], ["unknown option --modell", "did you mean --model?"]),
        (["--model=SupervisdModule"], ["model: unknown class 'SupervisdModule'; did you mean SupervisedModule?"]),
        (["--model.backbone=ClipDecodr"], ["model.backbone: unknown class", "did you mean ClipDecoder?"]),
        (["--model.optimizer=torch.optim.AdamWW"], ["model.optimizer: torch.optim has no AdamWW; did you mean AdamW?"]),
        (["--trainer.callbacks+=SampleGalery"], ["unknown class 'SampleGalery'; did you mean", "SampleGallery?"]),
        (["--trainer.strategy=dpp"], ["trainer: unknown strategy 'dpp'; did you mean ddp?"]),
        (["--model=os.system"], ["model: 'os.system' is no subclass of LightningModule"]),
        (
            ["--model=safe_rlhf_v.modules.SupervisdModule"],
            ["model: safe_rlhf_v.modules has no SupervisdModule", "did you mean SupervisedModule?"],
        ),
        (["--trainer.callbacks=safe_rlhf_v.callbacks.Galery"], ["safe_rlhf_v.callbacks has no Galery"]),
        (["--data.init_args.batch_size=many"], ["batch_size", "int", "many"]),
        (["--data.init_args.on_bad_sample=ignore"], ["on_bad_sample", "one of ['error', 'skip-and-count']", "ignore"]),
        (["--model.init_args.backbone.init_args.lora.target_modules=null"], ["target_modules", "null into a --config"]),
        (["--config=nowhere.yaml"], ["does not exist", "nowhere.yaml"]),
        (["--trainer.precision=16-mixed"], ["16-mixed needs a GPU", "bf16-mixed"]),
        (["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt: no such checkpoint"]),
        (["--ckpt_path=nowhere"], ["ckpt_path nowhere: no readable checkpoint"]),
        (["--model.init_args.init_from=nowhere"], ["init_from nowhere: no readable checkpoint"]),
        (["--data.init_args.path=nowhere"], ["data.path nowhere: no shard folder", "shards --help"]),
        (["--data.init_args.train_split=tran"], ["data.train_split names 'tran'", "train"]),
        (["--data.init_args.validation_splits=[dev]"], ["data.validation_splits names 'dev'"]),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_built(
    extra: list[str],
    words: list[str],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli.CLI, "instantiate_classes", lambda self: pytest.fail("too late"))
    line = refused([*base(world, tmp_path), *extra], capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    "args",
    [
        ["--model.dual.help", "PIDDual"],
        [f"--config={CONFIG.parent / 'ppo_lag.yaml'}", "--model.update.help"],
        ["--model=ConstrainedPolicyModule", "--model.kl.help=KLPenalty"],
        ["--trainer.help"],
    ],
)
def test_help_in_another_form_says_how_it_is_asked_for(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", *args], capsys)
    option = next(word for word in args if ".help" in word).partition("=")[0]
    assert option.removeprefix("--model.") in line.replace("model: ", "")
    assert "--model.help CLASS" in line and "--model.OPTION.help" in line and "--help-all" in line


def test_help_of_a_setting_stands_behind_that_of_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["fit", "--model.help", "ConstrainedPolicyModule", "--model.update.help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m safe_rlhf_v ") and "Passes over a rollout." in out


def test_a_missing_configuration_and_a_typo_in_yaml(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "missing: data, model" in refused(["fit"], capsys)
    content = yaml.safe_load(CONFIG.read_text())
    content["trainer"]["max_stepz"] = content["trainer"].pop("max_steps")
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "backbone.yaml").write_text((CONFIG.parent / "backbone.yaml").read_text())
    assert "max_stepz" in refused(["fit", f"--config={tmp_path / 'typo.yaml'}"], capsys)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("DDPStrateg", "unknown strategy 'DDPStrateg'; did you mean DDPStrategy?"),
        ("lightning.pytorch.strategies.DDPStrateg", "did you mean DDPStrategy?"),
        ("fdsp", "did you mean fsdp?"),
        ("quick", "Lightning's are auto, ddp, "),
    ],
)
def test_a_strategy_is_one_of_lightnings_names_or_a_class(strategy: str, words: str) -> None:
    from safe_rlhf_v.commands.preflight import check_strategy

    with pytest.raises(ValueError, match=r"^trainer: ") as refusal:
        check_strategy(strategy)
    assert words in str(refusal.value)
    for fine in ("auto", "ddp", "ddp_find_unused_parameters_true", SimpleNamespace(class_path="a.B")):
        check_strategy(fine)


def test_our_refusals_are_short_but_bugs_keep_their_traceback() -> None:
    from safe_rlhf_v.commands.preflight import check_precision

    with pytest.raises(ValueError, match="precision") as refusal:
        check_precision(SimpleNamespace(accelerator="cpu", precision="16-mixed"))
    assert cli.raised_here(refusal.value)
    stumbles = FunctionType((lambda: int("x")).__code__, {"__name__": "safe_rlhf_v.somewhere", "int": int})
    with pytest.raises(ValueError, match="invalid literal") as bug:  # in the library's code, but not on purpose
        stumbles()
    assert not cli.raised_here(bug.value)
    assert not cli.raised_here(ValueError("never raised"))


# --- runs that stop and go on ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps."""
    out = tmp_path_factory.mktemp("cli")
    cli.main(base(world, out, steps=3))
    return out / "supervised"


def test_the_two_newest_checkpoints_are_kept_with_a_link_and_the_configuration(finished: Path) -> None:
    files = sorted(path.name for path in finished.rglob("*.ckpt") if not path.is_symlink())
    assert [name.partition("step=")[2] for name in files] == ["2.ckpt", "3.ckpt"]
    (link,) = (path for path in finished.rglob("*.ckpt") if path.is_symlink())
    assert link.name == "last.ckpt"
    assert link.resolve().name == files[1]
    content = torch.load(link, weights_only=True)
    stored = yaml.safe_load(content["config_yaml"])
    assert stored["trainer"]["max_steps"] == 3
    assert stored["model"]["class_path"] == "safe_rlhf_v.modules.SupervisedModule"
    assert stored == yaml.safe_load((finished / "version_0" / "config.yaml").read_text())
    reloaded = SupervisedModule.load_from_checkpoint(link)
    assert all(torch.equal(value, content["state_dict"][name]) for name, value in reloaded.state_dict().items())


def test_a_resumed_run_takes_the_users_settings_and_says_so(
    finished: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [f"--ckpt_path={finished}", "--model.init_args.optimizer.init_args.weight_decay=0.25"]
    done = cli.main([*base(world, tmp_path, steps=5), *extra, "--model.init_args.init_from=nowhere"])
    assert done.trainer.global_step == 5
    assert done.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.25
    said = capsys.readouterr().out
    assert "step=3.ckpt" in said or "last.ckpt" in said
    assert "model.init_args.optimizer.init_args.weight_decay was 0.01, is now 0.25" in said
    assert "trainer.max_steps was 3, is now 5" in said
    assert "init_from" not in said
    assert torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["epoch"] == 0


def test_a_checkpoint_alone_is_enough_to_go_on_or_to_measure(
    finished: Path,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    caplog.set_level(logging.INFO, "lightning.pytorch")
    run = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    data = f"--data.init_args.path={world}"
    assert "name another: --data.init_args.path" in refused(["fit", f"--ckpt_path={run}"], capsys)
    done = cli.main(["fit", f"--ckpt_path={run}", data, "--trainer.max_steps=4"])
    assert done.trainer.global_step == 4
    assert done.trainer.log_dir == str(run / "version_1")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("with another setting")]
    assert told == ["with another setting: trainer.max_steps was 3, is now 4"]
    assert "max_steps=4" in caplog.text
    assert "weights_only" not in caplog.text
    assert not (tmp_path / "lightning_logs").exists()
    small = tmp_path / "small.yaml"
    small.write_text("trainer: {limit_val_batches: 2, logger: false}\n")
    measured = cli.main(["validate", "--config", str(small), data, "--ckpt_path", str(run)])
    assert "version_1" in measured.config.validate.ckpt_path  # the one with four steps
    assert measured.trainer.limit_val_batches == 2
    assert measured.trainer.callback_metrics["validation/loss"] > 0
    false = ("callbacks used to create", "The dirpath has changed")
    assert not [w for w in recwarn if any(words in str(w.message) for words in false)]


def test_last_finds_the_newest_whole_one_starts_anew_or_refuses(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main([*base(world, tmp_path), "--ckpt_path=last"]).trainer.global_step == 2
    assert "holds no checkpoint yet: starting at the beginning" in capsys.readouterr().out
    newest, older = sorted((p for p in tmp_path.rglob("epoch*.ckpt")), key=lambda p: p.name, reverse=True)
    newest.write_bytes(newest.read_bytes()[:-10])  # last.ckpt links to it
    assert cli.main([*base(world, tmp_path, steps=3), "--ckpt_path=last"]).trainer.global_step == 3
    assert f"resuming from {older}" in capsys.readouterr().out
    assert f"skipped {newest}" in caplog.text
    for path in tmp_path.rglob("*.ckpt"):
        path.write_bytes(b"")
    assert "no readable checkpoint (not complete: " in refused([*base(world, tmp_path), "--ckpt_path=last"], capsys)


def test_a_printed_configuration_feeds_back_unchanged(world: Path, tmp_path: Path) -> None:
    def printed(args: list[str]) -> str:
        out = io.StringIO()
        with redirect_stdout(out), pytest.raises(SystemExit):
            cli.main([*args, "--print_config"])
        return out.getvalue()

    first = printed(base(world, tmp_path))
    (tmp_path / "full.yaml").write_text(first)
    assert printed(["fit", f"--config={tmp_path / 'full.yaml'}"]) == first
    assert yaml.safe_load(first)["trainer"]["use_distributed_sampler"] is False


def test_a_run_that_was_stopped_says_so_in_its_exit_status(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = "--trainer.callbacks+=safe_rlhf_v.callbacks.StopOnViolation"
    assert entry.main([*base(world, tmp_path / "healthy"), watched]) == 0
    alone = ["fit", f"--ckpt_path={tmp_path / 'healthy'}", f"--data.init_args.path={world}", "--trainer.max_steps=3"]
    assert entry.main(alone) == 0
    assert "callbacks are not taken from it" in capsys.readouterr().out
    monkeypatch.setattr("safe_rlhf_v.callbacks.StopOnViolation.violation", lambda self, metrics: "seen by the test")
    assert entry.main([*base(world, tmp_path / "stopped", steps=4), watched]) == entry.STOPPED == 3
    assert next((tmp_path / "stopped").rglob("stopped-step=1.ckpt"))


def test_differences_and_run_folders() -> None:
    old: dict[str, Any] = {"a": 1, "b": {"c": [1, {"d": 2}]}, "ckpt_path": "x"}
    new: dict[str, Any] = {"a": 1, "b": {"c": [1, {"d": 3}]}, "ckpt_path": "y", "e": None}
    assert list(cli.differences(old, new)) == [("b.c.1.d", 2, 3)]
    assert not list(cli.differences({"weights_only": True, "ckpt_path": "a"}, {"weights_only": None, "ckpt_path": "b"}))
    taken = {"max_steps": 3, "logger": {"init_args": {"name": ""}}, "gone": 1}
    now = {"max_steps": 4, "logger": {"init_args": {"name": "x", "prefix": "p"}, "class_path": "L"}, "precision": None}
    assert cli.as_far_as(now, taken) == {"max_steps": 4, "logger": {"init_args": {"name": "x"}}}
    assert list(cli.differences({"a": [1]}, {"a": [1, 2]})) == [("a", [1], [1, 2])]
