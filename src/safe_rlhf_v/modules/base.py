"""What every training module shares: networks built late, one optimizer with parameter groups, exact resume."""

import random
from abc import abstractmethod
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import AdamW

from safe_rlhf_v.checkpoints import fingerprint, load_stage, read_stage

Moved = TypeVar("Moved")


def plain(value: Any) -> bool:
    """Whether a hyper-parameter is plain data (anything else would have to be unpickled from a checkpoint)."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


class BaseModule(LightningModule):
    """A short base: subclasses write :meth:`build` and the steps.

    Networks appear in ``configure_model``, so that constructors stay cheap and strategies can shard while building. The
    checkpoint holds the random states of every rank, so that a resumed run equals the uninterrupted one.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: str | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Args:
        optimizer: Called with the parameter groups.
        scheduler: Called with the optimizer; stepped after every optimizer step.
        init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from.
        lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).
        """
        super().__init__()
        self.save_hyperparameters()
        # What is not plain data would be pickled into the checkpoint; run configs travel as text instead.
        for name in [name for name, value in self.hparams.items() if not plain(value)]:
            del self.hparams[name]
        self.optimizer_factory, self.scheduler_factory = optimizer, scheduler
        self.init_from, self.lr_scale = init_from, lr_scale or {}
        self._built = False
        self._random_state: dict[str, Any] | None = None

    @abstractmethod
    def build(self) -> None:
        """Create the networks as attributes (``self.backbone`` first)."""

    def configure_model(self) -> None:
        """Build once; start from ``init_from`` if given.

        Raises:
            ValueError: If ``init_from`` does not fit.
        """
        if self._built:
            return
        stage = read_stage(self.init_from) if self.init_from else None  # refuse a bad path before anything is built
        self.build()
        self._built = True
        if stage is not None:
            load_stage(stage, self)

    def configure_optimizers(self) -> dict[str, Any]:
        """One optimizer over the trainable parameters; the schedule moves once per optimizer step.

        Raises:
            ValueError: If a prefix of ``lr_scale`` matches nothing.
        """
        groups: dict[float, list[torch.nn.Parameter]] = {}
        unused = set(self.lr_scale)
        for name, parameter in self.named_parameters():
            matches = [prefix for prefix in self.lr_scale if name.startswith(prefix)]
            unused -= set(matches)
            if parameter.requires_grad:
                groups.setdefault(self.lr_scale[max(matches, key=len)] if matches else 1.0, []).append(parameter)
        if unused:
            raise ValueError(f"lr_scale: no parameter's name starts with {sorted(unused)}")
        optimizer = self.optimizer_factory([{"params": group} for group in groups.values()])
        for group, scale in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= scale
        if self.scheduler_factory is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler_factory(optimizer), "interval": "step"},
        }

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move labels only: prompts stay on the CPU, where the backbone prepares them."""
        if not hasattr(batch, "prompts"):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        moved = super().transfer_batch_to_device(batch._replace(prompts=None), device, dataloader_idx)
        return moved._replace(prompts=batch.prompts)

    def move(self, prepared: Moved) -> Moved:
        """A nested tuple of tensors on the module's device."""
        if isinstance(prepared, torch.Tensor):
            return prepared.to(self.device, non_blocking=True)
        if isinstance(prepared, dict):
            return {name: self.move(value) for name, value in prepared.items()}  # type: ignore[return-value]
        if isinstance(prepared, tuple):
            parts = [self.move(part) for part in prepared]
            return type(prepared)(*parts) if hasattr(prepared, "_fields") else tuple(parts)  # type: ignore[return-value]
        return prepared

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add every rank's random states and what the backbone's weights mean."""
        checkpoint["fingerprint"] = fingerprint(self)
        checkpoint["random"] = _gather_random_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks a trainable tensor, and keep the random state for the start of training.

        Raises:
            ValueError: Naming the first missing tensors.
        """
        wanted = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if missing := sorted(wanted - set(checkpoint["state_dict"])):
            raise ValueError(f"the checkpoint lacks {missing[:3]} (+{len(missing[3:])}): made with another model or head?")
        self._random_state = checkpoint.get("random")

    def on_train_start(self) -> None:
        """Restore the random state: any earlier is too early, the loader's start still draws from it."""
        if self._random_state is not None:
            _restore_random_state(self._random_state, self.global_rank)
            self._random_state = None


def _gather_random_state(module: LightningModule) -> dict[str, Any]:
    """Torch, NumPy and Python states of all ranks as tensors (readable with weights-only loading)."""
    python = torch.tensor(random.getstate()[1], dtype=torch.int64)
    name, keys, position, has_gauss, gauss = np.random.get_state()
    numpy = torch.tensor([*map(int, keys), int(position)], dtype=torch.int64)
    states = {"torch": torch.get_rng_state(), "python": python, "numpy": numpy}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if module.trainer.world_size > 1:
        return {k: module.all_gather(v.to(module.device)).reshape(module.trainer.world_size, -1).cpu() for k, v in states.items()}
    return {k: v.reshape(1, -1).clone() for k, v in states.items()}


def _restore_random_state(states: dict[str, Any], rank: int) -> None:
    """Set this rank's states. A row view would crash ``set_rng_state``, so rows are cloned.

    Raises:
        ValueError: If the checkpoint was written by fewer ranks.
    """
    if rank >= len(states["torch"]):
        raise ValueError(f"the checkpoint holds random states of {len(states['torch'])} ranks, this is rank {rank}")
    torch.set_rng_state(states["torch"][rank].clone().to(torch.uint8))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][rank].clone().to(torch.uint8))
    random.setstate((3, tuple(states["python"][rank].tolist()), None))
    numpy = states["numpy"][rank].tolist()
    np.random.set_state(("MT19937", np.array(numpy[:-1], dtype=np.uint32), int(numpy[-1]), 0, 0.0))
