"""``python -m safe_rlhf_v plan``: the memory that a training needs, before anything is loaded."""

import inspect
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from safe_rlhf_v.commands.options import PositiveInt
from safe_rlhf_v.commands.runner import CommandParser, Help, refuse
from safe_rlhf_v.training.parser_errors import PROGRAM

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.planning.advice import Change
    from safe_rlhf_v.planning.stages import MemoryPlan

EXAMPLES = (
    "plan --config configs/qwen2_5_vl_7b/ppo_lag.yaml --memory 24GB",
    "plan --config configs/llava_1_5_7b/grpo_lag.yaml --config configs/trainer/fsdp2.yaml --ranks 8",
)
OWN = ("memory", "prompt_tokens", "response_tokens", "image_tokens", "ranks", "model_config", "json")
"""Options of this command; all others are those of ``fit``."""

_UNITS = {"gib": 2**30, "mib": 2**20, "gb": 10**9, "mb": 10**6}
_HEADINGS = ("role", "weights", "gradients", "optimizer")
_PHASE_HEADINGS = ("phase of a step", "gradients", "activations", "cache", "pictures", "sum")


class Planned(NamedTuple):
    """What :func:`plan` gives.

    Attributes:
        plan: What each rank needs.
        memory: Bytes that it has; ``None`` if not said.
        changes: What would make it smaller, the largest saving first; only if it does not fit.
    """

    plan: "MemoryPlan"
    memory: int | None
    changes: "tuple[Change, ...]"

    @property
    def fits(self) -> bool:
        """Whether each rank has enough."""
        return self.memory is None or self.plan.peak <= self.memory


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status: 1 if the run does not fit."""
    own, training = split_options(args)
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(own))
    try:
        if "--config" not in {word.partition("=")[0] for word in training}:
            raise ValueError("plan: name the configuration of a training by --config FILE")
        result = plan(training, **{name: options[name] for name in OWN if name != "json"})
    except (ValueError, OSError) as error:
        return refuse(error)
    print(json.dumps(as_data(result), indent=1) if options.json else as_text(result))
    return 0 if result.fits else 1


def make_parser() -> CommandParser:
    """The parser of this command's own options."""
    lines = "\n".join(f"  {PROGRAM} {example}" for example in EXAMPLES)
    parser = CommandParser(
        prog=f"{PROGRAM} plan",
        description=inspect.cleandoc(plan.__doc__ or "").partition("\nArgs:")[0].replace("``", ""),
        epilog=f"examples:\n{lines}",
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_function_arguments(plan, as_group=False, skip={"training"}, fail_untyped=True)
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON, in bytes.")
    parser.add_argument("--config", help="YAML of a training, as for fit; several are joined, and later ones win.")
    parser.usage = f"{PROGRAM} plan --config FILE [--OPTION VALUE ...] [options of fit]"
    return parser


def split_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's own options, and those of ``fit``."""
    own: list[str] = []
    training: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, joined, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in OWN:
            (own if word in ("-h", "--help") else training).append(word)
        elif joined or name == "json":
            own.append(word)
        else:
            own += [word, *words[:1]]
            del words[:1]
    return own, training


def plan(
    training: Sequence[str],
    memory: str | None = None,
    prompt_tokens: PositiveInt = 128,
    response_tokens: PositiveInt | None = None,
    image_tokens: PositiveInt | None = None,
    ranks: PositiveInt | None = None,
    model_config: str | None = None,
) -> Planned:
    """How much memory a training needs on each rank, and what to change if that is too much.

    Neither weights nor data are read; of a model on the hub only its config. Counted are tensors: an allocator keeps some percent
    more, and a GPU's libraries about 1 GB. Every other option is one of fit: --model.KEY VALUE, --data.KEY VALUE, --trainer.KEY
    VALUE. It ends with status 1 if the run does not fit.

    Args:
        training: Command line behind ``fit``.
        memory: What each rank has, as 24GB (10^9 bytes) or 24GiB (2^30).
        prompt_tokens: Tokens of a prompt without its picture.
        response_tokens: Tokens of a response; without it sampling.max_new_tokens of a policy, and 512 for other stages.
        image_tokens: Tokens of a picture; without it what the model's config and max_pixels say.
        ranks: Processes; without it what the trainer's devices and num_nodes say.
        model_config: File or folder with the model's config.json, in place of the hub's.

    Raises:
        ValueError: If the configuration cannot be read or planned for.
    """
    from safe_rlhf_v.commands.plan_config import read_settings
    from safe_rlhf_v.planning.advice import changes_of
    from safe_rlhf_v.planning.stages import Planner

    limit = None if memory is None else size_of(memory)
    settings = read_settings(training, prompt_tokens, response_tokens, image_tokens, ranks, model_config)
    planner = Planner()
    result = planner.plan(settings)
    too_much = limit is not None and result.peak > limit
    return Planned(result, limit, tuple(changes_of(planner, result)) if too_much else ())


def size_of(text: str) -> int:
    """Bytes of a size as people write it.

    Raises:
        ValueError: If it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(gib|mib|gb|mb)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--memory {text}: is no size; write it as 24GB, or 22.5GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def as_text(result: Planned) -> str:
    """Tables for people."""
    s = result.plan.settings
    forms = {"nf4": " in 4 bits", "int8": " in 8 bits", "torchao_int8": " in 8 bits"}
    stored = forms.get(str(s.backbone.quantization), "")
    lines = [
        f"{s.stage} on {s.backbone.config.model_type}{stored}, {s.ranks} rank{'s' if s.ranks > 1 else ''}"
        f"{' (FSDP2)' if s.sharded else ' (DDP)' if s.ranks > 1 else ''}, each:",
        f"prompts of {s.text} + {s.vision.tokens} tokens (text and picture), responses of {s.room}; "
        f"max_length is {s.max_length or 'not set'}",
        "",
        *_table(_HEADINGS, [(role.role, *role[1:]) for role in result.plan.roles]),
        "",
        *_table(_PHASE_HEADINGS, [(phase.name, *phase[1:], phase.total) for phase in result.plan.phases]),
        "",
        f"largest at once: {_gb(result.plan.peak)} GB = {_gb(result.plan.resident)} of weights and optimizer + "
        f"{_gb(result.plan.largest.total)} ({result.plan.largest.name})",
    ]
    if result.memory is not None:
        lines.append(f"{'fits into' if result.fits else 'does not fit into'} {_gb(result.memory)} GB")
    if result.changes:
        lines += ["", "what would make it smaller:"]
        lines += [f"  {_gb(change.saved):>6} GB  {change.options}" for change in result.changes]
    return "\n".join(lines)


def as_data(result: Planned) -> dict[str, Any]:
    """The same for programs, in bytes."""
    s = result.plan.settings
    return {
        "stage": s.stage,
        "model_type": s.backbone.config.model_type,
        "quantization": s.backbone.quantization,
        "ranks": s.ranks,
        "prompt_tokens": s.prompt,
        "response_tokens": s.room,
        "roles": [role._asdict() for role in result.plan.roles],
        "phases": [{**phase._asdict(), "total": phase.total} for phase in result.plan.phases],
        "resident": result.plan.resident,
        "peak": result.plan.peak,
        "memory": result.memory,
        "fits": result.fits,
        "changes": [change._asdict() for change in result.changes],
    }


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size < 1e11 else f"{size / 1e9:.1f}"


def _table(headings: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Names to the left, GB to the right; 0 is left out."""
    cells = [[row[0], *(_gb(value) if value else "" for value in row[1:])] for row in rows]
    cells = [[headings[0], *headings[1:-1], f"{headings[-1]} (GB)"], *cells]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    return [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
