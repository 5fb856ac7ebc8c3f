"""Options of the Trainer that would do something else here than they promise: refused in one line that names what to set instead.

What each option does, module by module, stands in ``docs/reference/trainer_flags.md``.
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

_DEFAULTS = {"gradient_clip_val": None, "accumulate_grad_batches": 1}


def refuse_trainer_flags(trainer: "pl.Trainer", instead: Mapping[str, str]) -> None:
    """Refuse what the library cannot keep; the same whether the Trainer comes from the command line or from Python.

    Args:
        trainer: The trainer that is about to run.
        instead: Options that the module does itself (``gradient_clip_val``, ``accumulate_grad_batches``), and its own
            setting for each.

    Raises:
        ValueError: Naming the option and the setting to use instead.
    """
    for option, setting in instead.items():
        value = getattr(trainer, option)
        if value and value != _DEFAULTS[option]:
            raise ValueError(f"trainer.{option} {value}: this module does that itself; set model.init_args.{setting}")
    if overfit := getattr(trainer, "overfit_batches", 0):  # Lightning sets it without declaring it
        raise ValueError(
            f"trainer.overfit_batches {overfit}: would take other records in each epoch, as the data module "
            "keeps its own order; set data.init_args.max_samples"
        )
    if str(trainer.precision) in ("16-true", "64-true", "transformer-engine", "transformer-engine-float16"):
        raise ValueError(f"trainer.precision {trainer.precision}: is not supported; set bf16-mixed")
    _refuse_strategies(trainer.strategy)


def _refuse_strategies(strategy: Any) -> None:
    """Raises: ValueError: For strategies that the losses of several ranks were not made for."""
    name = type(strategy).__name__
    if name in ("FSDPStrategy", "DeepSpeedStrategy"):
        raise ValueError(f"trainer.strategy {name}: is not supported; compose with configs/trainer/fsdp2.yaml")
    options = getattr(strategy, "_ddp_kwargs", {})
    for option in ("find_unused_parameters", "static_graph"):
        if options.get(option):
            raise ValueError(
                f"trainer.strategy {name} with {option}: hides parameters that never learn; leave it out, and freeze what is "
                "not used"
            )
