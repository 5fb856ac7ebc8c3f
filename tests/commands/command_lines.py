"""Command lines of short runs, and how a command refuses."""

from pathlib import Path

import pytest

from safe_rlhf_v.commands import fit as cli

ROOT = Path(__file__).parents[2]


CONFIG = ROOT / "configs" / "quickstart" / "supervised.yaml"


def base(world: Path, out: Path, steps: int = 2) -> list[str]:
    """A supervised run of a few steps on the tiny world, checkpointing each of them."""
    return [
        "fit",
        f"--config={CONFIG}",
        f"--data.init_args.path={world}",
        "--data.init_args.batch_size=4",
        f"--model.init_args.backbone.init_args.tokenizer={world / 'tokenizer'}",
        "--model.init_args.init_from=null",
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--trainer.callbacks=null",
        f"--trainer.logger.init_args.save_dir={out}",
        "--trainer.enable_progress_bar=false",
    ]


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit status 2; the one line it writes about it."""
    with pytest.raises(SystemExit) as exit:
        cli.main(args)
    assert exit.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("INFO", "Seed set"))]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def preference(kind: str, world: Path, out: Path, command: str = "fit", steps: int = 2) -> list[str]:
    """A reward or cost run on the tiny world with every trainable part fresh."""
    return [
        command,
        f"--config={CONFIG.parent / f'{kind}.yaml'}",
        f"--data.init_args.path={world}",
        "--data.init_args.batch_size=4",
        f"--data.init_args.eval_batch_size={3 if command == 'predict' else 4}",
        f"--model.init_args.backbone.init_args.tokenizer={world / 'tokenizer'}",
        "--model.init_args.init_from=null",
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--trainer.callbacks=null",
        f"--trainer.logger.init_args.save_dir={out}",
        "--trainer.enable_progress_bar=false",
    ]


DDP = [
    "--trainer.devices=2",
    "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
    "--trainer.strategy.init_args.process_group_backend=gloo",
    "--trainer.strategy.dict_kwargs.start_method=fork",
]
