"""``python -m safe_rlhf_v``: training commands and our own; only what a command needs is imported."""

import sys
from importlib import import_module

from safe_rlhf_v import __version__

TRAINING = {
    "fit": "train from a configuration",
    "validate": "measure a checkpoint on the validation splits",
    "test": "measure a checkpoint on the test splits",
    "predict": "score every test record",
}
COMMANDS = {
    "shards": ("safe_rlhf_v.shards.command", "write, import, inspect and check image-text shards"),
    "tokenizer": ("safe_rlhf_v.models.corpus_tokenizer", "build a word-level tokenizer from shards"),
    "quickstart": ("safe_rlhf_v.quickstart", "the whole pipeline on the embedded world, on a laptop"),
}


def help_text() -> str:
    """What ``--help`` prints."""
    rows = [*TRAINING.items(), *((name, about) for name, (_, about) in COMMANDS.items())]
    listed = "\n".join(f"  {name:<12}{about}" for name, about in rows)
    return f"""safe_rlhf_v {__version__}: multimodal safe RLHF components for PyTorch Lightning

usage: python -m safe_rlhf_v COMMAND [options]

commands:
{listed}

  python -m safe_rlhf_v COMMAND --help          what a command takes
  python -m safe_rlhf_v fit --config configs/quickstart/reward.yaml
  python -m safe_rlhf_v fit --config FILE --print_config      every key with its value
  python -m safe_rlhf_v fit --model.help safe_rlhf_v.modules.RewardModule
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
        return int(import_module(COMMANDS[args[0]][0]).main(args[1:]))
    if args[0] in TRAINING:
        from safe_rlhf_v.cli import main as train  # lightning: seconds to import

        sys.argv[1:] = list(args)  # strategies that relaunch processes read it
        train()
        return 0
    known = ", ".join([*TRAINING, *COMMANDS])
    print(f"error: unknown command {args[0]!r}, expected one of: {known}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
