"""What a run does when its numbers break: nothing of it is saved, and people are told where to go on."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from safe_rlhf_v.functional.finite import NonFiniteError, non_finite_names


def refuse_broken_state(module: LightningModule) -> None:
    """Keep a state that no training can go on from out of the files. A collective: every rank must call it.

    Args:
        module: Attached to a trainer. Trained weights and the optimizers' moments count; buffers may hold infinity.

    Raises:
        NonFiniteError: On every rank, if any rank holds NaN or infinity.
    """
    trainer = module.trainer
    tensors = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for optimizer in trainer.optimizers:
        for i, state in enumerate(optimizer.state.values()):
            tensors |= {f"optimizer state {i} {k}": v for k, v in state.items() if isinstance(v, Tensor)}
    names = non_finite_names(tensors)
    if trainer.strategy.reduce_boolean_decision(not names, all=True):
        return
    more = f" (+{len(names) - 3})" if len(names) > 3 else ""
    raise NonFiniteError(
        f"step {trainer.global_step}: NaN or infinity in {', '.join(names[:3]) or 'the weights of another rank'}{more}; "
        f"not saved: {where_to_go_on(trainer)}, with a smaller learning rate"
    )


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where a run's checkpoints go."""
    keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, ModelCheckpoint)]
    folder = next((keeper.dirpath for keeper in keepers if keeper.dirpath), None)
    return Path(folder or trainer.log_dir or trainer.default_root_dir)


def where_to_go_on(trainer: Trainer) -> str:
    """What to do after a run whose numbers broke: this run's checkpoints, those it went on from, or nothing yet."""
    folder = checkpoint_folder(trainer)
    if folder.is_dir() and any(folder.glob("*.ckpt")):
        return f"go on from a checkpoint in {folder}"
    return f"go on from {trainer.ckpt_path}" if trainer.ckpt_path else "begin again (there is no checkpoint yet)"
