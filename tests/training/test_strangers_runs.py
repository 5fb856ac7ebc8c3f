"""A run folder that a stranger sent can be refused or used, but it cannot act: no command runs, reads or writes for it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.stored_runs import at, call, copy_run, refused, with_config

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.models.sources import load_tokenizer
from safe_rlhf_v.training.checkpoints import CheckpointError, find_checkpoint
from safe_rlhf_v.training.runs import load_run, open_run
from safe_rlhf_v.training.stored_config import check_stored, is_listed, leads_out, read_stored

PLANTED = "open('planted-acted', 'w').close()\nfrom safe_rlhf_v.modules import RewardModule as Thing\ndef function(*a, **k): ...\n"


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A working directory with a module beside it that writes a file when it is imported; nothing may have acted."""
    home = tmp_path / "cwd"
    home.mkdir()
    (home / "planted.py").write_text(PLANTED)
    (home / "planted.yaml").write_text("class_path: planted.Thing\n")
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    yield home
    assert sorted(path.name for path in home.iterdir() if path.name != "__pycache__") == ["planted.py", "planted.yaml"]
    assert "planted" not in sys.modules


TOUCH = {"command": "touch system-acted"}
ACTS = {
    "model class": at("model.class_path", "planted.Thing"),
    "a command as the model": at("model", call("os.system", **TOUCH)),
    "a process as the optimizer": at("model.init_args.optimizer", call("subprocess.Popen", args=["touch", "process-acted"])),
    "a function by name": at("model.init_args.optimizer", "os.system"),
    "a function of a planted module": at("model.init_args.scheduler", "planted.function"),
    "a planted head": at("model.init_args.head", call("planted.Thing")),
    "nested in the backbone": at("model.init_args.backbone.init_args.slots", call("os.system", **TOUCH)),
    "nested in plain data": at("model.init_args.backbone.init_args.decoder.hook", [{"x": call("os.system", **TOUCH)}]),
    "in text that is YAML": at("model.init_args.optimizer", "{class_path: os.system, init_args: {command: touch system-acted}}"),
    "a dotted key": at("model.init_args", {"optimizer.class_path": "os.system", "optimizer.init_args.command": "x"}),
    "a file of configuration": at("model.init_args.backbone", "planted.yaml"),
    "our function": at("model.init_args.optimizer", "safe_rlhf_v.demo.processes.execute"),
    "our import of a module": at("model.init_args.optimizer", call("safe_rlhf_v.demo.processes.os.system", command="x")),
    "our writer": at("model.init_args.objective", call("safe_rlhf_v.shards.ShardWriter", path="written")),
    "torch's loader": at("model.init_args.optimizer", "torch.load"),
    "torch's hub": at("model.init_args.optimizer", call("torch.hub.load", repo_or_dir="x", model="y")),
    "a schedule by a function": at(
        "model.init_args.scheduler", call("torch.optim.lr_scheduler.LambdaLR", lr_lambda="planted.function")
    ),
    "remote code": at("model.init_args.backbone.init_args.decoder.trust_remote_code", True),
    "remote classes": at("model.init_args.backbone.init_args.decoder.auto_map", {"AutoConfig": "evil/model--x.Y"}),
    "a kernel from the hub": at("model.init_args.backbone.init_args.decoder.attn_implementation", "evil/kernel"),
    "weights to be fetched": at("model.init_args.backbone.init_args.tower.vision_cfg.timm_model_pretrained", True),
    "a tower of the hub": at("model.init_args.backbone.init_args.tower.name", "hf-hub:evil/tower"),
    "an address": at("model.init_args.backbone.init_args.template", "https://evil/x"),
    "an absolute path": at("model.init_args.backbone.init_args.template", "/etc/passwd"),
    "a path that goes up": at("model.init_args.head.init_args", {"x": "../../secret"}),
}  # fmt: skip


def safely(text: str) -> dict[str, Any]:
    return read_stored({"file": "x.ckpt", "config_yaml": text})


@pytest.mark.parametrize("kind", ACTS)
def test_what_could_act_is_refused_before_anything_is_imported(kind: str, policy_stages: Path, tmp_path: Path) -> None:
    content = torch.load(find_checkpoint(policy_stages / "reward"), weights_only=True)
    config = yaml.safe_load(content["config_yaml"])
    ACTS[kind](config)
    run = tmp_path / "x.ckpt"
    content["config_yaml"] = yaml.safe_dump(config)
    content["sources"]["options"] = {}  # nothing of its own hides what was planted
    torch.save(content, run)
    with pytest.raises(CheckpointError) as error:
        load_run(run)
    assert str(run) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["tower", "decoder", "optimizer"])
def test_what_travels_beside_the_configuration_is_looked_at_too(kind: str, policy_stages: Path, tmp_path: Path) -> None:
    def plant(content: dict[str, Any]) -> None:
        content["sources"]["options"][kind] = call("planted.Thing")
        content["sources"]["options"]["template"] = call("planted.Thing")

    with pytest.raises(CheckpointError, match=r"planted\.Thing"):
        load_run(copy_run(policy_stages / "reward", tmp_path / "run", plant))


COMMANDS = {
    "test": ["test", "--ckpt_path={run}"],
    "validate": ["validate", "--ckpt_path={run}"],
    "predict": ["predict", "--ckpt_path={run}"],
    "fit": ["fit", "--ckpt_path={run}"],
    "evaluate": ["evaluate", "--policies.mine={run}", "--data={world}", "--output=evaluated"],
    "reward": [
        "evaluate",
        "--policies.mine={good}",
        '--judges={{"r": {{"class_path": "safe_rlhf_v.construct.RewardJudge", "init_args": {{"run": "{run}"}}}}}}',
        "--data={world}",
        "--output=evaluated",
    ],
    "moderate": ["moderate", "--guard={run}", "--input={world}", "--split=test", "--output=verdicts.jsonl"],
    "calibrate": ["calibrate", "--guard={run}", "--data={world}"],
    "filter": ["filter", "--guard={run}", "--input={world}", "--output=kept"],
    "generate": ["generate", "--policy={good}", "--guard={run}", "--data={world}", "--output=responses.jsonl"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_class_that_is_not_listed(
    command: str, policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = with_config(at("model.class_path", "planted.Thing"))
    run = copy_run(policy_stages / "reward", tmp_path / "run", planted)
    good = policy_stages / "supervised"
    line = refused([word.format(run=run, world=world, good=good) for word in COMMANDS[command]], capsys)
    assert "'planted.Thing' as model.class_path" in line
    assert "--trust planted" in line


def test_a_role_of_a_training_is_refused_alike(
    policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import stage_command

    run = copy_run(policy_stages / "cost", tmp_path / "run", with_config(ACTS["a planted head"]))
    named = f"--model.init_args.roles.init_args.cost={run}"
    assert "planted.Thing" in refused(stage_command("ppo_lag", world, policy_stages, named), capsys)


def test_the_stored_trainer_is_not_used(policy_stages: Path, world: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim.json"
    victim.write_text("mine")
    acts = {
        "callbacks": [
            call("safe_rlhf_v.callbacks.MetricsFile", path=str(victim)),
            call("planted.Thing"),
            call("lightning.pytorch.callbacks.ModelCheckpoint", dirpath=str(tmp_path / "written")),
        ],
        "logger": call("lightning.pytorch.loggers.CSVLogger", save_dir=str(tmp_path / "logged")),
        "profiler": call(
            "lightning.pytorch.profilers.SimpleProfiler", dirpath=str(tmp_path / "profiled"), filename="x"
        ),
        "plugins": [call("planted.Thing")],
        "strategy": "planted.Thing",
        "default_root_dir": str(tmp_path / "rooted"),
        "limit_test_batches": 0,
        "fast_dev_run": True,
        "max_steps": 2,
    }
    run = copy_run(policy_stages / "reward", tmp_path / "run", with_config(at("trainer", acts)))
    data = [f"--data.init_args.path={world}", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    for command in ("test", "predict", "fit"):
        assert entry.main([command, f"--ckpt_path={run}", *data]) == 0
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cwd", "run", "victim.json"]
    assert (run / "predictions.jsonl").stat().st_size > 0


def test_links_planted_in_a_run_folder_are_not_written_through(
    policy_stages: Path, world: Path, tmp_path: Path
) -> None:
    run = copy_run(policy_stages / "supervised", tmp_path / "run")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (run / "evaluation").mkdir()
    names = ("evaluation/evaluation.json", "evaluation/report.html", "predictions.jsonl")
    for name in (*names, *(f"{name}.part" for name in names), "predictions.jsonl.part-0"):
        (run / name).symlink_to(victim)
    data = ["--data.init_args.path=" + str(world), "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    args = [
        "evaluate",
        f"--policies.mine={run}",
        f"--data={world}",
        f"--output={run / 'evaluation'}",
        "--max_new_tokens=2",
    ]
    args += ["--modes=sampled", "--pictures=real"]
    assert entry.main(args) == 0
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "responses.jsonl").symlink_to(victim)
    assert entry.main([*args, f"--output={tmp_path / 'lines'}"]) == 2
    assert entry.main(["predict", f"--ckpt_path={run}", *data]) == 0
    assert victim.read_text() == "mine"
    assert not (run / "evaluation" / "evaluation.json").is_symlink()


class Pickled:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pickle-acted",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_are_refused_without_being_read(legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    torch.save({"fingerprint": Pickled(), "state_dict": {}}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"x\.ckpt: not a (checkpoint of plain data|complete checkpoint)"):
        open_run(file)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch yaml-acted']",
        "model: !!python/name:os.system",
        "model: {class_path: x, init_args: !!binary aGk=}",
        "model: &a {class_path: x, init_args: {again: *a}}",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nmodel: {class_path: x, init_args: {y: *e}}",
        "model: " + "[" * 200 + "]" * 200,
        "model: " + "[" * 100_000,
        "model: {class_path: x}\nmodel: {class_path: y}",
        "model: {class_path: x, init_args: {1: 2}}",
        "model: {class_path: x, init_args: {__path__: /etc}}",
        "model: [x]",
        "x" * (1 << 21),
        "",
    ],
)
def test_text_that_no_run_wrote_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        safely(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "evil.py", "a/b.json", "", "x.bin", ".hidden.json"])
def test_files_of_a_tokenizer_stay_where_they_belong(name: str, policy_stages: Path, tmp_path: Path) -> None:
    def plant(content: dict[str, Any]) -> None:
        content["sources"]["files"]["tokenizer"][name] = b"evil"

    run = copy_run(policy_stages / "reward", tmp_path / "run", plant)
    with pytest.raises(ValueError, match="which no tokenizer has"):
        load_tokenizer(str(find_checkpoint(run)))


def test_a_tokenizer_with_remote_code_does_not_run_it(policy_stages: Path, tmp_path: Path) -> None:
    def plant(content: dict[str, Any]) -> None:
        files = content["sources"]["files"]["tokenizer"]
        config = yaml.safe_load(files["tokenizer_config.json"].decode())
        config |= {"auto_map": {"AutoTokenizer": ["planted.Thing", "planted.Thing"]}, "tokenizer_class": "Thing"}
        files["tokenizer_config.json"] = yaml.safe_dump(config, default_flow_style=True, width=10**6).encode()

    run = copy_run(policy_stages / "reward", tmp_path / "run", plant)
    try:
        load_tokenizer(str(find_checkpoint(run)))
    except ValueError as error:
        assert "\n" not in str(error)


def test_a_trusted_package_is_imported_and_no_other(
    policy_stages: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trap / "own_method.py").write_text("from safe_rlhf_v.modules import RewardModule\nclass Mine(RewardModule): ...\n")
    try:
        run = copy_run(
            policy_stages / "reward", trap.parent / "run", with_config(at("model.class_path", "own_method.Mine"))
        )
        with pytest.raises(CheckpointError, match="--trust own_method"):
            load_run(run)
        assert "own_method" not in sys.modules
        with pytest.raises(CheckpointError, match="--trust own_method"):
            load_run(run, trust=("own_methods", "own"))
        module = load_run(run, "reward model", ("reward",), trust=("own_method",))  # a subclass is what its parent is
        assert type(module).__name__ == "Mine"
    finally:
        (trap / "own_method.py").unlink()
        sys.modules.pop("own_method", None)


@given(st.text(max_size=30), st.text(max_size=30))
def test_only_names_on_the_list_pass(first: str, second: str) -> None:
    assert not is_listed(f"{first}.{second}")
    assert not is_listed(f"os.{second}")
    assert not is_listed(f"safe_rlhf_v.demo.processes.{second}")


@pytest.mark.parametrize("path", ["safe_rlhf_v.optim.WarmupCosine", "safe_rlhf_v.advantages.GAE"])
def test_a_run_of_an_earlier_version_says_so(path: str, policy_stages: Path, tmp_path: Path) -> None:
    content = torch.load(find_checkpoint(policy_stages / "reward"), weights_only=True)
    config = yaml.safe_load(content["config_yaml"])
    config["model"]["init_args"]["scheduler"] = {"class_path": path}
    content["config_yaml"] = yaml.safe_dump(config)
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="if an earlier version wrote the run, train it again with this one"):
        load_run(tmp_path / "x.ckpt")


def test_the_list_has_what_runs_name() -> None:
    for path in (
        "safe_rlhf_v.ClipDecoder", "safe_rlhf_v.modules.RewardModule", "safe_rlhf_v.models.heads.EvidenceHead",
        "safe_rlhf_v.dual.LogSpaceDual", "safe_rlhf_v.training.WarmupCosine", "safe_rlhf_v.policy.GAE",
        "safe_rlhf_v.world.WorldJudge", "safe_rlhf_v.data_modules.PromptDataModule", "safe_rlhf_v.objectives.SafeDPO",
        "torch.optim.AdamW", "torch.optim.lr_scheduler.CosineAnnealingLR", "torch.nn.GELU",
        "lightning.pytorch.cli.ReduceLROnPlateau",
    ):  # fmt: skip
        assert is_listed(path), path
    for path in (
        "safe_rlhf_v.Guard", "safe_rlhf_v.ShardWriter", "safe_rlhf_v.callbacks.MetricsFile", "safe_rlhf_v.world.write_world",
        "torch.optim.swa_utils.AveragedModel", "torch.nn.functional.gelu", "torch.load", "lightning.pytorch.Trainer",
    ):  # fmt: skip
        assert not is_listed(path), path


@pytest.mark.parametrize(
    "value", ["/x", "~/x", "../x", "a/../../x", "https://x/y", "hf-hub:a/b", "local-dir:/x", "file:x"]
)
def test_paths_and_addresses_that_lead_out(value: str) -> None:
    assert leads_out(value)


@pytest.mark.parametrize(
    "value", ["data/world", "a", "org/model", "<bos> <image> {question} <answer>", "...", "16-mixed", ""]
)
def test_other_texts_stay(value: str) -> None:
    assert not leads_out(value)
    check_stored("x.ckpt", {"text": value}, "model")
