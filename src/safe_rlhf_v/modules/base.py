"""What every training module shares: networks built late, one optimizer with parameter groups, exact resume."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW

from safe_rlhf_v.data_modules.contract import data_of
from safe_rlhf_v.functional.shares import Share, masked_share
from safe_rlhf_v.models.backbone import Backbone, Prepared
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.models.sharding import shard
from safe_rlhf_v.models.sources import SOURCES_KEY
from safe_rlhf_v.modules.admission import Admission
from safe_rlhf_v.modules.split_metrics import SplitMetrics
from safe_rlhf_v.records.batches import Batch, PolicyBatch, PreferenceBatch, SupervisedBatch, to_device
from safe_rlhf_v.training.base_tensors import rebuilt_names
from safe_rlhf_v.training.broken_numbers import refuse_broken_state
from safe_rlhf_v.training.checkpoints import (
    CheckpointError,
    checked_stage,
    compare_fingerprints,
    compare_names,
    fingerprint,
    load_stage,
)
from safe_rlhf_v.training.named import build_component
from safe_rlhf_v.training.optim import Schedule, group_names, optimizer_config, parameter_groups, run_length
from safe_rlhf_v.training.resume import StepBoundary, UserOptions, refuse_lost_position, restore_random_states
from safe_rlhf_v.training.runs import Source, say, stage_of
from safe_rlhf_v.training.trainer_flags import refuse_trainer_flags

Moved = TypeVar("Moved")
Prepared_ = TypeVar("Prepared_")
_GIVEN_BY: dict[type, str] = {
    SupervisedBatch: "SupervisedDataModule",
    PreferenceBatch: "PreferenceDataModule (with PTX: PTXPreferenceDataModule)",
    PolicyBatch: "PromptDataModule",
}


class BaseModule(SplitMetrics):
    """A short base: subclasses write :meth:`build` and the steps.

    Networks appear in ``configure_model``, so that constructors stay cheap. A resumed run equals the uninterrupted one;
    rates, weight decay and other optimizer options follow the configuration, moments and counters the checkpoint.
    """

    trains: ClassVar[str] = ""
    """What a run of this module is to other commands: ``policy``, ``reward``, ``cost``, ``guard`` or ``tower``. Subclasses
    inherit it."""

    instead_of_trainer: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Options of the Trainer that this module does itself, and its own setting for each."""

    backbone: Backbone
    reads: ClassVar[type | None] = None
    """What its batches are; ``None`` leaves the data module unchecked."""

    def __init__(
        self,
        optimizer: OptimizerCallable = AdamW,
        scheduler: LRSchedulerCallable | None = None,
        init_from: Source | None = None,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        """Keep the settings; networks are built later.

        Args:
            optimizer: Makes the optimizer; called with the parameter groups.
            scheduler: Makes the schedule of the learning rate, which moves after every optimizer step; ``None`` keeps the rate.
            init_from: Run folder or checkpoint of an earlier stage whose backbone this one starts from; in Python also the
                trained module itself.
            lr_scale: Prefix of a parameter's name to a factor of its learning rate (``{head: 3.0}``).
        """
        super().__init__()
        frame = inspect.currentframe()
        assert frame is not None, "CPython keeps its frames"
        arguments = [
            items for call in collect_init_args(frame, [], classes=(HyperparametersMixin,)) for items in call.items()
        ]
        # Lightning would copy the networks of earlier stages.
        self.save_hyperparameters(ignore=[name for name, value in arguments if holds_network(value)])
        # What is not plain data would be pickled into the checkpoint; run configs travel as text instead.
        for name in [name for name, value in self.hparams.items() if not plain(value)]:
            del self.hparams[name]
        self.strict_loading = False  # checkpoints leave out what the base gives back; on_load_checkpoint is strict
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        # In a dict, so that a module of an earlier stage becomes no part of this one.
        self.sources: dict[str, Source | None] = {"init_from": init_from}
        self.lr_scale = lr_scale or {}
        self._fingerprint: dict[str, str] = {}
        self._rebuilt: set[str] = set()
        self._stored_sources: dict[str, Any] | None = None
        self._options: UserOptions | None = None
        self._stored_options: list[dict[str, Any]] | None = None
        self._random_states: dict[str, Tensor] | None = None
        self._loops: dict[str, Any] | None = None
        self._border = StepBoundary()
        self._prefixes: list[str] = []

    @cached_property
    def admission(self) -> Admission:
        """Which records the backbone's processor refused."""
        return Admission()

    @abstractmethod
    def build(self) -> None:
        """Create the networks as attributes; ``self.backbone`` is the one that stages hand on."""

    def configure_callbacks(self) -> list[Callback]:
        """No callbacks; but this is the first hook of a run, before Lightning's own checks, which know no setting of ours.

        Raises:
            ValueError: Naming an option of the Trainer that is not supported, and what to set instead.
        """
        if self._trainer is not None and self._trainer.state.fn == "fit":
            refuse_trainer_flags(self._trainer, self.instead_of_trainer)
        return []

    def setup(self, stage: str) -> None:
        """Before anything is built: do the data fit? Raises: ValueError: If they do not."""
        if (data := data_of(self._trainer)) is not None:
            self.check_data(data)

    def check_data(self, data: Any) -> None:
        """Compare a data module with what this module learns from; one that says nothing about itself is not refused.

        Raises:
            ValueError: Naming both, and data modules that fit.
        """
        gives = getattr(type(data), "gives", None)
        if self.reads is not None and gives is not None and not issubclass(gives, self.reads):
            raise ValueError(
                f"data: {type(data).__name__} gives {gives.__name__}, but {type(self).__name__} learns from "
                f"{self.reads.__name__}: use safe_rlhf_v.data_modules.{_GIVEN_BY[self.reads]}"
            )

    def configure_model(self) -> None:
        """Assemble the networks once, and shard them under ``ModelParallelStrategy``.

        Raises:
            CheckpointError: If an earlier stage does not fit.
            ValueError: If checkpoints would be written in pieces: no command reads those, so the run could not be resumed.
        """
        if self._fingerprint:
            return
        if self._trainer is not None and getattr(self._trainer.strategy, "_save_distributed_checkpoint", False):
            raise ValueError(
                "checkpoints in pieces cannot be resumed: set trainer.strategy.init_args.save_distributed_checkpoint: false"
            )
        self.assemble()
        self.sources.clear()  # modules of earlier stages may go
        if self.device_mesh is not None:
            shard(self, self.device_mesh)

    def assemble(self) -> None:
        """Build the networks and give them the weights of ``init_from``.

        Raises:
            CheckpointError: If ``init_from`` does not fit.
        """
        source = self.sources["init_from"]
        stage = stage_of(source, "init_from") if source else None  # refuse a bad path before anything is built
        self.build()
        self._fingerprint = fingerprint(self.backbone)
        if self._fingerprint["base"]:
            parameters = self.backbone.named_parameters(remove_duplicate=False)
            self._rebuilt = {f"backbone.{name}" for name, value in parameters if not value.requires_grad}
        if stage is not None:
            load_stage(stage, self.backbone, self._fingerprint)
            self._rebuilt -= set(stage["state_dict"])
            say(f"started from the backbone in {stage['file']} (step {stage.get('global_step', 0)})")

    def as_stage(self) -> dict[str, Any]:
        """What later stages start from, as they read it from a checkpoint of this module; tensors are not copied.

        Raises:
            CheckpointError: If there are no networks yet, or they cannot be used.
        """
        name = f"the given {type(self).__name__}"
        if not self._fingerprint:
            raise CheckpointError(f"{name}: has no networks yet; train it first, or name its run")
        weights = {key: value.detach() for key, value in self.state_dict().items() if key not in self._rebuilt}
        if any(hasattr(value, "full_tensor") for value in weights.values()):
            raise CheckpointError(f"{name}: its networks are sharded over the ranks; name its checkpoint")
        return checked_stage(
            {
                "file": name,
                "state_dict": weights,
                "fingerprint": self._fingerprint,
                "rebuilt": sorted(self._rebuilt),
                "global_step": self.global_step,
            }
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over the trainable parameters; the schedule moves once per optimizer step."""
        groups = parameter_groups(self, self.lr_scale)
        self._prefixes = list(groups)
        optimizer = build_component(
            "optimizer", self.optimizer_factory, [{"params": [p for _, p in group]} for group in groups.values()]
        )
        for group, prefix in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= self.lr_scale.get(prefix, 1.0)
        scheduler = (
            build_component("scheduler", self.scheduler_factory, optimizer)
            if self.scheduler_factory is not None
            else None
        )
        if isinstance(scheduler, Schedule) and scheduler.total_steps is None:
            scheduler.set_length(run_length(self.trainer))
        self._options = UserOptions(optimizer, scheduler)
        return optimizer_config(optimizer, scheduler, automatic=self.automatic_optimization)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move labels only: prompts and demonstrations stay on the CPU, where the backbone prepares them."""
        if not hasattr(batch, "prompts"):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        stays = {name: getattr(batch, name) for name in ("prompts", "demonstrations") if hasattr(batch, name)}
        labels = batch._replace(**dict.fromkeys(stays))
        return super().transfer_batch_to_device(labels, device, dataloader_idx)._replace(**stays)

    def move(self, prepared: Moved) -> Moved:
        """A nested tuple of tensors on the module's device."""
        return to_device(prepared, self.device)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self._trainer is None or self.trainer.world_size == 1:
            return value
        reduced: Tensor = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
        return reduced

    def gather(self, value: Tensor) -> Tensor:
        """(N, ...) of all ranks one after the other; N is the same on every rank."""
        if self._trainer is None or self.trainer.world_size == 1:
            return value
        gathered = self.all_gather(value.contiguous())  # (ranks, N, ...)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def admit(self, batch: Batch, prepare: Callable[[Batch], Prepared_]) -> tuple[Batch, Prepared_]:
        """``prepare(batch)`` and the batch; rows that the processor refuses are masked in both, or named in an error.

        Args:
            batch: B rows.
            prepare: Uses the backbone's ``prepare`` or ``checked_prompts`` first of all.

        Raises:
            ShardError: Naming the record, unless the data module's ``on_bad_sample`` lets such be left out.
        """
        return self.admission.admit(batch, prepare, getattr(data_of(self._trainer), "on_bad_sample", "error"))

    def log_counts(self, counts: Mapping[str, Tensor | int]) -> None:
        """Log numbers of this step as ``train/NAME``, summed over the ranks."""
        if counts:
            own = torch.stack(
                [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in counts.values()]
            )
            for name, value in zip(counts, self.total(own), strict=True):
                self.log(f"train/{name}", value)

    def demonstration_inputs(self, batch: SupervisedBatch) -> tuple[Prepared, Tensor]:
        """The network's inputs, on the CPU, and (B, R) bool on the module's device which response tokens count."""
        batch, prepared = self.admit(batch, lambda b: self.backbone.prepare(b.prompts, [(x,) for x in b.responses]))
        return prepared, self.move(prepared.tokens.response_mask) & self.move(batch.valid)[:, None]

    def likelihood_share(self, prepared: Prepared, mask: Tensor, weight: float = 1.0) -> Share:
        """Negative log-likelihood of demonstrations, summed over their tokens (PTX: InstructGPT, arXiv 2203.02155).

        Args:
            prepared: What :meth:`demonstration_inputs` gave.
            mask: What :meth:`demonstration_inputs` gave.
            weight: In the loss.
        """
        log_probs = self.backbone.response_states(self.move(prepared), log_probs=True).log_probs
        assert log_probs is not None
        return masked_share(-log_probs, mask, weight)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resume and later stages need; leave out what the pretrained base gives back.

        Raises:
            NonFiniteError: If a weight or moment is NaN or infinite: no file is written, and none makes room for it.
        """
        refuse_broken_state(self)
        checkpoint["fingerprint"] = self._fingerprint
        checkpoint["rebuilt"] = sorted(self._rebuilt)
        self._border.write(self, checkpoint)
        if self._stored_sources is None and isinstance(self.backbone, Reader):
            self._stored_sources = self.backbone.stored_sources()._asdict()
        checkpoint[SOURCES_KEY] = self._stored_sources
        checkpoint["parameter_groups"] = group_names(self, self.lr_scale)
        checkpoint["optimizer_options"] = self._options.groups if self._options is not None else None
        for name in self._rebuilt:
            checkpoint["state_dict"].pop(name, None)
        if "init_from" in checkpoint.get("hyper_parameters", {}):
            checkpoint["hyper_parameters"]["init_from"] = None  # from here on the weights are in this file

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model; keep the random states for the start of training.

        Raises:
            CheckpointError: Naming what differs.
        """
        file = str(self._trainer.ckpt_path if self._trainer is not None else checkpoint.get("file", "checkpoint"))
        if "fingerprint" not in checkpoint:
            raise CheckpointError(f"{file}: carries no fingerprint, so it is no checkpoint of this library")
        rebuilt = set(checkpoint["rebuilt"])
        compare_fingerprints(file, checkpoint["fingerprint"], self._fingerprint, rebuilt_names(rebuilt))
        if "state_dict" in checkpoint:  # a sharded one was read, and checked, by its strategy
            compare_names(file, set(self.state_dict()), set(checkpoint["state_dict"]), rebuilt)
            self._rebuilt -= set(checkpoint["state_dict"])
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        self._random_states = checkpoint["random_states"] if fitting else None  # evaluated, it seeds no later training
        self._loops = checkpoint["loops"]["fit_loop"] if fitting else None
        if not fitting:
            return
        refuse_lost_position(file, checkpoint, data_of(self._trainer))
        self._stored_options = checkpoint.get("optimizer_options")
        if group_names(self, self.lr_scale) != checkpoint["parameter_groups"]:
            raise CheckpointError(f"{file}: trained other parameters or lr_scale prefixes; only factors may change")

    def on_train_start(self) -> None:
        """Finish a resume: any earlier is too early, the loader's start still draws random numbers."""
        if self._random_states is not None:
            if self._options is not None:
                schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
                scheduler = schedulers[0] if schedulers else None
                self._options.apply(self.trainer.optimizers[0], scheduler, self._stored_options)
            restore_random_states(self, self._random_states)
        self._border.note(self, self._loops)
        self._random_states = self._loops = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Log the learning rate of every parameter group."""
        for prefix, group in zip(self._prefixes, self.trainer.optimizers[0].param_groups, strict=True):
            self.log(f"train/lr/{prefix}" if prefix else "train/lr", float(group["lr"]), batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note where an optimizer step ended; a subclass that overrides this must call it."""
        if self.trainer.global_step != self._border.step:
            self._border.note(self)


def demonstrations_seen(batch: SupervisedBatch, prepared: Prepared, mask: Tensor) -> dict[str, Tensor | int]:
    """How many demonstrations are truncated, and how many records gave none.

    Args:
        batch: The demonstrations.
        prepared: Their inputs.
        mask: Which of their tokens count.
    """
    truncated = (prepared.truncated.to(mask.device) & mask.any(1)).sum()
    return {"truncated_demonstrations": truncated, "without_demonstration": batch.without_demonstration}


def pairs_seen(batch: PreferenceBatch, prepared: Prepared) -> dict[str, Tensor | int]:
    """How many responses are truncated, and how many pairs are the same to the model.

    Args:
        batch: B rows of K responses.
        prepared: Their inputs.
    """
    valid = batch.valid.cpu()
    truncated = prepared.truncated.view(len(valid), -1) & valid[:, None]
    return {"truncated_responses": truncated.sum(), "equal_pairs": (prepared.same & valid).sum()}


def holds_network(value: Any) -> bool:
    """Whether a constructor's argument is a network, or a factory that was given one."""
    if isinstance(value, partial):
        return any(map(holds_network, (*value.args, *value.keywords.values())))
    return isinstance(value, nn.Module)


def plain(value: Any) -> bool:
    """Whether a hyper-parameter is plain data."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
