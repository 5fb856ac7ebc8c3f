"""Stop a run on NaN or infinity: nothing is saved, and the message names the checkpoint to continue from."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from safe_rlhf_v.functional.finite import NonFiniteError, non_finite_names


def refuse_broken_state(module: LightningModule) -> None:
    """Refuse to save NaN or infinity. This is a collective operation: every rank must call it.

    Args:
        module: Attached to a trainer. Trained weights and the optimizers' states are checked; buffers may hold infinity.

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
        f"not saved: {how_to_continue(trainer)}, with a smaller learning rate"
    )


def checkpoint_folder(trainer: Trainer) -> Path:
    """The folder of a run's checkpoints."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folder = next((callback.dirpath for callback in callbacks if callback.dirpath), None)
    return Path(folder or trainer.log_dir or trainer.default_root_dir)


def how_to_continue(trainer: Trainer) -> str:
    """Advice after NaN or infinity: a checkpoint of this run, the one it was resumed from, or a new start."""
    folder = checkpoint_folder(trainer)
    if folder.is_dir() and any(folder.glob("*.ckpt")):
        return f"continue from a checkpoint in {folder}"
    return f"continue from {trainer.ckpt_path}" if trainer.ckpt_path else "start again (there is no checkpoint yet)"
