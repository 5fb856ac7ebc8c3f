"""Mistakes that people make: one line that names the setting or file and the mend, and exit status 2."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QUICKSTART, stage_command

from safe_rlhf_v import __main__ as entry
from safe_rlhf_v.commands.fit import surroundings
from safe_rlhf_v.functional.shares import Share
from safe_rlhf_v.objectives import BradleyTerry
from safe_rlhf_v.policy.advantages import GAE
from safe_rlhf_v.records import Response
from safe_rlhf_v.shards import ShardedSplit, ShardWriter

BACKBONE = "--model.init_args.backbone"
EVALUATE = ["evaluate", "--data={world}", "--output=evaluated"]
GENERATE = ("generate", "--policy=x", "--guard=x", "--data={world}", "--output=o")


class Tensors(BradleyTerry):
    """Returns the loss alone."""

    def shares(self, scores: Any, batch: Any) -> Any:
        return scores.sum()


class Rows(BradleyTerry):
    """One loss per record."""

    def shares(self, scores: Any, batch: Any) -> Any:
        return {name: Share(scores.sum(1), share.count) for name, share in super().shares(scores, batch).items()}


class Nameless(BradleyTerry):
    """No term at all."""

    def shares(self, scores: Any, batch: Any) -> Any:
        return {}


class PerResponse(GAE):
    """One number per response."""

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)[:, 0]


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    try:
        status: Any = entry.main(args)
    except SystemExit as exit:
        status = exit.code
    err = capsys.readouterr().err
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert len(lines[0]) < 500
    return lines[0]


def reward(world: Path, out: Path, *extra: str) -> list[str]:
    """A reward run from random weights."""
    return stage_command("reward", world, out, "--model.init_args.init_from=null", *extra, steps=1)


@pytest.fixture(scope="session")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder that lacks everything but the config."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "config.json").write_text('{"model_type": "llava"}')
    return folder


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([f"{BACKBONE}.init_args.tokenizer=nowhere/a/tokenizer"], ["tokenizer nowhere/a/tokenizer", "no such folder"]),
        ([f"{BACKBONE}.init_args.tokenizer=/nowhere"], ["tokenizer /nowhere", "no such folder"]),
        ([f"{BACKBONE}.init_args.tokenizer=nobody/nothing"], ["tokenizer nobody/nothing", "download it first"]),
        ([f"{BACKBONE}.init_args.tokenizer={{world}}"], ["tokenizer", "holds no tokenizer"]),
        ([f"{BACKBONE}.init_args.decoder=./nowhere"], ["decoder ./nowhere", "no such folder"]),
        (
            [f"{BACKBONE}=safe_rlhf_v.models.HFVLM", f"{BACKBONE}.model=/no/model"],
            ["model /no/model", "no such folder"],
        ),
        ([f"{BACKBONE}=safe_rlhf_v.models.HFVLM", f"{BACKBONE}.model={{bare}}"], ["tokenizer", "holds no tokenizer"]),
        ([f"{BACKBONE}=safe_rlhf_v.models.HFVLM", f"{BACKBONE}.model={{world}}"], ["holds no config.json"]),
        ([f"{BACKBONE}=safe_rlhf_v.models.Backbone"], ["Backbone is abstract", "ClipDecoder"]),
        (["--model.init_args.head=safe_rlhf_v.models.Head"], ["Head is abstract", "EvidenceHead"]),
        (["--model.init_args.objective=safe_rlhf_v.objectives.PreferenceObjective"], ["is abstract", "BradleyTerry"]),
        (["--model=safe_rlhf_v.modules.preference.PreferenceModule"], ["abstract"]),
        (["--config=broken.yaml", "--ckpt_path=nowhere"], ["broken.yaml", "not YAML", "line 2"]),
        (["--config=twice.yaml"], ["twice.yaml: line 3: model.init_args is given twice (first on line 2)"]),
        (["--config=section.yaml"], ["section.yaml: line 3: trainer is given twice"]),
        (["--config=including.yaml"], ["included.yaml: line 2: class_path is given twice"]),
        ([f"{BACKBONE}.init_args.slots={{{{slots: 3, slots: 4}}}}"], ["slots is given twice"]),
        (["--trust"], ["--trust: needs a value"]),
        (["--base="], ["--base: needs a value"]),
        (
            ["--model.init_args.objective=tests.commands.test_messages.Tensors"],
            ["objective Tensors", "a tensor of shape ()"],
        ),
        (
            ["--model.init_args.objective=tests.commands.test_messages.Rows"],
            ["objective Rows", "scalar totals", "shape (4,)"],
        ),
        (
            ["--model.init_args.objective=tests.commands.test_messages.Nameless"],
            ["objective Nameless", "a dict of names to Share"],
        ),
        (["--model.init_args.optimizer.init_args.lr=-1"], ["optimizer: cannot be built", "Invalid learning rate"]),
        (["--model.init_args.head.init_args.fusion=-1"], ["head: cannot be built", "negative dimension"]),
        ([f"{BACKBONE}.init_args.decoder.num_attention_heads=3"], ["backbone: cannot be built", "attention heads (3)"]),
        ([f"{BACKBONE}.init_args.decoder.model_type=lama"], ["backbone: cannot be built", "lama"]),
        ([f"{BACKBONE}.init_args.feature_cache=-1"], ["feature_cache is -1"]),
        (["--model.init_args.head=null"], ["head: is null"]),
        (["--trainer.accelerator=foo"], ["trainer: cannot be built", "'foo'"]),
        (["--trainer.devices=-2"], ["trainer: cannot be built", "devices"]),
        (["--trainer.logger=lightning.pytorch.loggers.WandbLogger"], ["wandb", "choose another logger"]),
        (["--trainer.logger=lightning.pytorch.loggers.CometLogger"], ["comet", "choose another logger"]),
    ],
)
def test_mistakes_in_a_training(
    extra: list[str],
    words: list[str],
    world: Path,
    bare_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("model: {a\nb: ]\n")
    Path("twice.yaml").write_text("model:\n  init_args: {packed: true}\n  init_args: {packed: false}\n")
    Path("section.yaml").write_text("trainer: {max_steps: 1}\nseed_everything: 1\ntrainer: {max_steps: 2}\n")
    Path("including.yaml").write_text("model:\n  init_args:\n    backbone: included.yaml\n")
    Path("included.yaml").write_text("class_path: a.B\nclass_path: c.D\n")
    args = [word.format(world=world, bare=bare_model) for word in extra]
    line = refused(reward(world, tmp_path / "runs", *args), capsys)
    assert all(word in line for word in words), line


def test_advantages_of_another_shape(
    policy_stages: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "--model.init_args.advantages=tests.commands.test_messages.PerResponse"
    tiny = ("--model.init_args.start.prompts=4", "--model.init_args.start.min_sign_accuracy=0")
    short = ("--model.init_args.sampling.max_new_tokens=4", f"--trainer.logger.init_args.save_dir={tmp_path}")
    line = refused(stage_command("ppo_lag", world, policy_stages, own, *tiny, *short, steps=1), capsys)
    assert "advantages PerResponse: must return one number per response token, shape (N, R) = (4, " in line
    assert "a tensor of shape (4,)" in line


def test_two_files_may_say_the_same_thing_twice(world: Path, tmp_path: Path) -> None:
    from safe_rlhf_v.commands.config_files import check_files

    over = tmp_path / "over.yaml"
    over.write_text("model: {init_args: {packed: false}}\n")
    check_files(["fit", f"--config={QUICKSTART / 'reward.yaml'}", "--config", str(over)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["max_steps=0"], "trainer.max_steps is 0"),
        (["max_steps=-1", "max_epochs=0"], "trainer.max_epochs is 0"),
        (["limit_train_batches=0"], "trainer.limit_train_batches is 0"),
        (["limit_train_batches=0.0"], "trainer.limit_train_batches is 0"),
        (["accumulate_grad_batches=0"], "trainer.accumulate_grad_batches is 0; it must be at least 1"),
        (["max_time=00:00:00:00"], "nothing was trained"),
    ],
)
def test_a_training_without_a_step_is_refused(
    options: list[str], words: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(reward(world, tmp_path, *(f"--trainer.{option}" for option in options)), capsys)
    assert words in line
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("stage", ["reward", "cost", "guard"])
def test_a_training_on_records_without_labels_is_refused(
    stage: str, world: Path, policy_stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ShardedSplit(world, "train")
    with ShardWriter(tmp_path / "data", name="bare", licence="MIT", taxonomy=records.manifest.taxonomy) as writer:
        for i in range(8):
            bare = tuple(Response(response.text) for response in records[i].responses)
            plain = replace(records[i], responses=bare, category=None, more_helpful=None, safer=None, truth=None)
            for split in ("train", "validation"):
                writer.write(split, replace(plain, key=f"{split}-{i}", safety_tie=False))
    (tmp_path / "data" / "tokenizer").symlink_to(world / "tokenizer")
    own = (f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.limit_val_batches=0")
    args = stage_command(stage, world, policy_stages, *own, f"--data.init_args.path={tmp_path / 'data'}", steps=2)
    assert "nothing was learned: no record that training read has a label" in refused(args, capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["devices=-5"], "should be an int > 0"),
        (["num_nodes=0"], "num_nodes"),
        (["strategy=nonsense"], "unknown strategy 'nonsense'"),
        (["accelerator=nonsense"], "accelerator='nonsense'"),
        (["barebones=true", "logger=false"], "barebones"),
        (["callbacks.every_n_train_steps=-1"], "every_n_train_steps=-1"),
        (["callbacks.save_top_k=3"], "save_top_k=3"),
        (["callbacks+=lightning.pytorch.callbacks.EarlyStopping", "callbacks.monitor=nothing"], "metric `nothing`"),
    ],
)
def test_what_lightning_refuses_is_one_line(
    options: list[str], words: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(reward(world, tmp_path, *(f"--trainer.{option}" for option in options)), capsys)


@pytest.mark.parametrize("option", ["lr=.nan", "lr=-1.0", "eps=-1.0", "betas=[2.0, 0.9]", "weight_decay=-1.0"])
def test_what_an_optimizer_refuses_is_one_line(
    option: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nvalid" in refused(reward(world, tmp_path, f"--model.init_args.optimizer.init_args.{option}"), capsys)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EPERM, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_one_line(code: int) -> None:
    line = surroundings(OSError(code, "No way", "runs/x"))
    assert line is not None
    assert line.startswith("runs/x: no way; ")
    assert surroundings(OSError(errno.ENOENT, "gone")) is None  # could be a fault of ours
    with pytest.raises(OSError, match="x") as caught:
        Path("/proc/x").mkdir()
    assert str(surroundings(caught.value)).startswith("/proc/x: no such file or directory; ")
    assert surroundings(ModuleNotFoundError("nobody")) is None


def test_a_read_only_run_folder(
    policy_stages: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = Path.mkdir

    def mkdir(self: Path, *args: Any, **options: Any) -> None:  # tests may run as root, whom no mode stops
        if self.is_relative_to(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        real(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    out = tmp_path / "runs"
    keep = f"--trainer.callbacks.dirpath={out / 'kept'}"
    quiet = "--trainer.logger=false"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.makedirs", lambda name, *args, **options: mkdir(Path(name), parents=True, exist_ok=True))
    assert f"{out / 'kept'}: permission denied" in refused(reward(world, out, keep, quiet), capsys)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([*EVALUATE, "--policies.mine={runs}/nothing"], ["policies.mine: ", "nothing: no readable checkpoint"]),
        ([*EVALUATE, "--policies.mine={runs}/supervised", "--data=nowhere"], ["nowhere"]),
        ([*EVALUATE, "--policies.mine={runs}/supervised", "--splits=tset"], ["tset"]),
        (
            ["generate", "--policy=x", "--guard=x", "--data={world}", "--output=a.jsonl", "--judge=os.system"],
            ["judge: 'os.system' is no subclass of Judge"],
        ),
        (
            ["generate", "--policy=x", "--guard=x", "--data={world}", "--output=a.jsonl", "--judge=x"],
            ["judge: expected class path, not 'x'"],
        ),
        (
            ["moderate", "--guard={runs}/nothing", "--input={world}", "--split=train", "--output=x"],
            ["guard ", "nothing: no readable checkpoint"],
        ),
        (["calibrate", "--guard=nowhere.ckpt", "--data={world}"], ["nowhere.ckpt", "no such checkpoint"]),
        (["test", "--ckpt_path={runs}/reward", "--data.init_args.path=nowhere"], ["nowhere", "no shard folder"]),
        (["predict", "--ckpt_path=nowhere"], ["ckpt_path nowhere: no readable checkpoint"]),
        (["test", "--ckpt_path={runs}/reward", "--data.init_args.path={world}", "--trainer.nothing=1"], ["nothing"]),
        (
            ["generate", "--policy={runs}/supervised", "--guard=x", "--data={world}", "--output=a.json"],
            ["--output a.json"],
        ),
        (["tokenizer", "--shards=nowhere", "--out=t"], ["nowhere"]),
        (["tokenizer", "--shards={world}", "--out=t", "--splits", "train", "tset"], ["'tset'"]),
        (["calibrate", "--guard=x", "--data={world}", "--split=train", "--report", "tset"], ["'tset'"]),
        (["calibrate", "--guard=x", "--data={world}", "--review_fpr=0.01"], ["--fpr <= --review_fpr"]),
        (["filter", "--guard=x", "--input={world}", "--output=f", "--splits", "tset"], ["'tset'"]),
        ([*EVALUATE, "--policies.mine=x", "--splits", "train", "tset"], ["'tset'"]),
        (["moderate", "--guard=x", "--input=nowhere.jsonl", "--output=o"], ["nowhere.jsonl"]),
        ([*EVALUATE, "--policies.mine=x", "--splits=[]"], ["--splits: is empty; name at least one"]),
        (["filter", "--guard=x", "--input={world}", "--output=f", "--splits=[]"], ["--splits: is empty"]),
        (["tokenizer", "--shards={world}", "--out=t", "--splits=[]"], ["--splits: is empty"]),
        ([*EVALUATE, "--policies.mine=x", "--splits", "test", "test"], ["--splits: test is named twice"]),
        ([*EVALUATE, "--policies.mine=x", "--splits", "[test, test]"], ["--splits: test is named twice"]),
        ([*EVALUATE, "--policies.mine=x", "--splits=[test, test]"], ["--splits: test is named twice"]),
        (["filter", "--guard=x", "--input={world}", "--output=f", "--splits", "test", "test"], ["test is named twice"]),
        ([*GENERATE, "--strategy=BestOfK", "--strategy.k=0"], ["k is 0; it must be at least 1"]),
        ([*GENERATE, "--strategy=HigherTemperature", "--strategy.step=.nan"], ["step is nan"]),
        (["shards", "check"], ["missing: PATH;"]),
        (["quickstart", "--root=/proc/x"], ["--root /proc/x: no such file or directory"]),
        (["compare", "--data=/dev/null/x"], ["--data /dev/null/x: not a directory"]),
    ],
)
def test_mistakes_in_commands_that_read_runs(
    args: list[str],
    words: list[str],
    policy_stages: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused([word.format(runs=policy_stages, world=world) for word in args], capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--seed_everything=-1"], ["seed_everything is -1"]),
        (["--trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val is -1"]),
        (["--model.init_args.lr_scale={head: -3}"], ["lr_scale: head is -3"]),
        (["--data.init_args.batch_size=0"], ["data.batch_size is 0"]),
        (["--data.init_args.eval_batch_size=0"], ["data.eval_batch_size is 0"]),
        (["--data.init_args.num_workers=-1"], ["data.num_workers is -1"]),
        (["--data.init_args.max_samples=0"], ["data.max_samples is 0"]),
        (["--data.init_args.images.size=0"], ["data.images.size is 0"]),
        (["--data.init_args.images.max_pixels=-1"], ["data.images.max_pixels is -1"]),
        (["--data.init_args.categories=[nothing]"], ["data.categories: unknown category 'nothing'"]),
        (["--model.init_args.init_from="], ["init_from", "is empty"]),
        (["--ckpt_path="], ["ckpt_path: is empty"]),
        (["--ckpt_path=best"], ["ckpt_path: ", "best"]),
        (["--config="], ["--config: needs a value"]),
        (["--config=."], ["--config .: is a folder"]),
        (["--config=empty.yaml"], ["empty.yaml: is empty", "sections"]),
        (["--config=list.yaml"], ["list.yaml: holds a list"]),
        (["--config=two.yaml"], ["two.yaml: not YAML"]),
        (["--config=tag.yaml"], ["tag.yaml: not YAML: line 1", "no plain data"]),
        (["--config=bomb.yaml"], ["bomb.yaml", "more entries than any configuration"]),
        ([f"{BACKBONE}=nowhere.yaml"], [f"{BACKBONE} nowhere.yaml: does not exist"]),
    ],
)
def test_settings_that_mean_nothing(
    extra: list[str],
    words: list[str],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.yaml").write_text("# nothing\n")
    Path("list.yaml").write_text("- model\n")
    Path("two.yaml").write_text("model: {}\n---\ndata: {}\n")
    Path("tag.yaml").write_text('model: !!python/object/apply:os.system ["exit 1"]\n')
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    Path("bomb.yaml").write_text("a: &a [x]\n" + "".join(lines))
    line = refused(reward(world, tmp_path / "runs", *extra), capsys)
    assert all(word in line for word in words), line


def test_a_configuration_without_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "named by --config run.yaml" in refused(["fit", "run.yaml"], capsys)


@pytest.mark.parametrize(
    "option",
    ["--guard=", "--input= ", "--output=", "--batch_size=0", "--batch_size=-1", "--batch_size=x", "--batch_size=1.5"],
)
@pytest.mark.parametrize("command", ["moderate", "filter"])
def test_values_that_make_no_sense_are_refused_by_their_option(
    option: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([command, "--guard=g", "--input=i", "--output=o", option], capsys)
    assert line.startswith(f"error: {option.partition('=')[0].removeprefix('--')}: ")


def test_who_stops_a_command_or_what_it_prints_to_gets_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import safe_rlhf_v.commands.shards as command

    def stop(error: BaseException) -> Any:
        def main(args: list[str]) -> int:
            raise error

        return main

    monkeypatch.setattr(command, "main", stop(KeyboardInterrupt()))
    assert entry.main(["shards"]) == 130
    assert capfd.readouterr().err == "error: interrupted\n"
