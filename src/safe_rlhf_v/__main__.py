"""``python -m safe_rlhf_v``: training commands and our own; only what a command needs is imported."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from safe_rlhf_v import __version__
from safe_rlhf_v.commands import CRASHED, STOPPED
from safe_rlhf_v.training.parser_errors import unknown

TRAINING = {
    "fit": "train from a configuration",
    "validate": "measure a checkpoint on the validation splits",
    "test": "measure a checkpoint on the test splits",
    "predict": "score every test record, into predictions.jsonl in the run's folder",
}
COMMANDS = {
    "shards": ("safe_rlhf_v.commands.shards", "write, import, inspect and check image-text shards"),
    "tokenizer": ("safe_rlhf_v.commands.tokenizer", "build a word-level tokenizer from shards"),
    "check": ("safe_rlhf_v.commands.check", "whether a Hugging Face model can be trained here"),
    "plan": ("safe_rlhf_v.commands.plan", "the memory that a training needs, before anything is loaded"),
    "calibrate": ("safe_rlhf_v.commands.calibrate", "fit a guard's temperatures and thresholds"),
    "moderate": ("safe_rlhf_v.commands.moderate", "a guard's verdicts on shards, JSON lines or pictures"),
    "generate": ("safe_rlhf_v.commands.generate", "a policy's responses behind a guard"),
    "filter": ("safe_rlhf_v.commands.filter", "filter or relabel training shards with a guard"),
    "evaluate": ("safe_rlhf_v.commands.evaluate", "compare policies on held-out prompts, by several judges"),
    "certify": ("safe_rlhf_v.commands.certify", "whether a policy keeps its budget, with high confidence"),
    "export": ("safe_rlhf_v.commands.export", "a run's model as a folder that loads without this library"),
    "construct": ("safe_rlhf_v.commands.construct", "build a preference data set of your own, with an audit"),
    "world": ("safe_rlhf_v.demo.world", "write the embedded world: synthetic image-text shards"),
    "compare": ("safe_rlhf_v.demo.compare", "every policy method from one start, after the quickstart"),
    "quickstart": ("safe_rlhf_v.demo.quickstart", "the whole pipeline on the embedded world, on a laptop"),
}


THREATS = """Run folders are read as a stranger's files: only listed classes are imported, nothing is unpickled or
fetched, and their trainer settings are not used; see docs/security.md."""


def help_text() -> str:
    """What ``--help`` prints."""
    rows = [*TRAINING.items(), *((name, about) for name, (_, about) in COMMANDS.items())]
    listed = "\n".join(f"  {name:<12}{about}" for name, about in rows)
    return f"""safe_rlhf_v {__version__}: multimodal safe RLHF components for PyTorch Lightning

usage: python -m safe_rlhf_v COMMAND [options]

commands:
{listed}

  python -m safe_rlhf_v COMMAND --help          what a command takes
  python -m safe_rlhf_v --version
"""


def training_help(command: str) -> str:
    """What ``fit --help`` and its like print, without the seconds that importing the Trainer takes."""
    run = f"python -m safe_rlhf_v {command}"
    if command == "fit":
        usage = "--config FILE [--config FILE ...]"
        example = f"{run} --config configs/quickstart/reward.yaml --trainer.max_steps 50"
        resume = "go on with a run: its folder, a .ckpt file, or last"
    else:
        usage = "--ckpt_path RUN [--config FILE ...]"
        example = f"{run} --ckpt_path runs/quickstart/reward"
        resume = "a run's folder or a .ckpt file; it brings its own model and data settings"
    return f"""{command}: {TRAINING[command]}

usage: {run} {usage} [--KEY VALUE ...]

  --config FILE           YAML with the sections model, data and trainer; later files and flags win
  --ckpt_path PATH        {resume}
  --model.KEY VALUE       any key of a file, dotted: --model.init_args.optimizer.init_args.lr 1e-4
  --data.KEY VALUE        --data.init_args.batch_size 16
  --trainer.KEY VALUE     every option of lightning.pytorch.Trainer: --trainer.max_steps 300
  --trainer.callbacks+ C  add a callback: --trainer.callbacks+=safe_rlhf_v.callbacks.SampleGallery
  --seed_everything N     seed of everything random (default 0)
  --trust PACKAGE         runs that are read may name classes of this package of yours
  --base PATH             folder or hub name of the pretrained model, in place of the one a run names

  --print_config          the whole resolved configuration, every key with its value; nothing is run
  --model.help CLASS      options of one class: safe_rlhf_v.modules.RewardModule
  --model.help CLASS --model.OPTION.help [CLASS]   what one of its options takes
  --data.help CLASS       likewise: safe_rlhf_v.data_modules.PreferenceDataModule
  --trainer.callbacks.help CLASS
  --help-all              every option of the Trainer with its type

{THREATS}

example: {example}
"""


def main(argv: list[str] | None = None) -> int:
    """Dispatch a command line; returns the exit status."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    if args[0] in COMMANDS:
        return _run(import_module(COMMANDS[args[0]][0]).main, args[1:])
    if args[0] in TRAINING:
        if "-h" in args or "--help" in args:
            print(training_help(args[0]), end="")
            return 0
        from safe_rlhf_v.callbacks import StopOnViolation  # lightning: seconds to import
        from safe_rlhf_v.commands.fit import main as train

        trainer: Any = train(["--help" if arg == "--help-all" else arg for arg in args]).trainer
        return STOPPED if any(isinstance(c, StopOnViolation) and c.stopped for c in trainer.callbacks) else 0
    known = [*TRAINING, *COMMANDS]
    expected = f"expected one of: {', '.join(known)}"
    print(f"error: {unknown('command', args[0], known, expected)}", file=sys.stderr)
    return 2


def _run(command: Callable[[list[str]], int], args: list[str]) -> int:
    """Run one of our own commands; who stops it, or what it prints to, needs no traceback."""
    try:
        status = int(command(args))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in "... | head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return 128 + signal.SIGPIPE
    return status


def program() -> int:
    """:func:`main` on the command line of this process: what breaks it is printed, and has a status of its own."""
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        return CRASHED
    _leave_group()
    return status


def _leave_group() -> None:
    """Close the connections between the ranks of a run that ended; Lightning closes NCCL's only.

    Gloo's threads may else still run while the interpreter is taken down, which aborts the process: a whole run would end as one
    that broke.
    """
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(program())
