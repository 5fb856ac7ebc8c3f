"""The six roles of constrained policy optimisation as named adapters on one frozen base: the memory of one network.

Shapes: n responses of one micro-batch of a rollout, R response tokens, D hidden.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.adapters import DEFAULT, Adapter, adapter, adapter_tensors, keep_to_default
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.heads import Head
from safe_rlhf_v.models.types import ImageFeatures, ResponseStates
from safe_rlhf_v.policy.roles import Critic, Roles, module_hash, open_roles
from safe_rlhf_v.policy.shared_base import adapter_of_run, backbone_tensors, changed_by, check_adapters, check_trained
from safe_rlhf_v.policy.types import MicroBatch
from safe_rlhf_v.training.checkpoints import fingerprint, load_stage
from safe_rlhf_v.training.runs import load_head, say


class SharedRoles(Roles):
    """One base, and an adapter each for actor, reward, cost and the two critics, which start from reward and cost.

    The reference is the base without adapters, or, where the actor starts from a trained adapter, a frozen copy of that. All
    runs must be LoRA runs on the same base, with the same settings; of their networks only the adapters are loaded.

    YAML::

        roles:
          class_path: safe_rlhf_v.policy.SharedRoles
          init_args:
            start: runs/llava_1_5_7b/supervised
            reward: runs/llava_1_5_7b/reward
            cost: runs/llava_1_5_7b/cost

    Attributes:
        adapters: By role; the actor's is the backbone's own.
    """

    def __init__(self, reward: str, cost: str, start: str | None = None, trust: list[str] | None = None) -> None:
        """
        Args:
            reward: Run folder or checkpoint of a reward model.
            cost: Run folder or checkpoint of a cost model.
            start: Run folder or checkpoint whose policy the actor starts from and is compared with; ``None`` for the
                backbone as it is built.
            trust: Packages whose classes those runs may name, beside this library's (``--trust`` adds to them).
        """
        super().__init__()
        self.start_run, self.runs, self.trust = start, {"reward": reward, "cost": cost}, tuple(trust or ())
        self.adapters = nn.ModuleDict()
        self.critics = False
        self._identity: dict[str, str] = {}

    def build(self, actor: Backbone, critics: bool) -> None:
        """See :class:`Roles`.

        Raises:
            ValueError: If the actor trains anything but adapters.
        """
        opened, start = open_roles(actor, self.runs, self.start_run, self.trust, actor.base)
        stages = {name: run.stage for name, run in opened.items()}
        check_trained(actor)
        now = fingerprint(actor)
        for stage in (*stages.values(), *([start] if start else [])):
            check_adapters(stage, actor, now)
        changed: set[str] = set()
        if start is not None:
            changed = changed_by(start, actor)
            load_stage(start, actor, now)
            self.started = frozenset(backbone_tensors(start))
        found = {name: adapter_of_run(stage, actor, changed) for name, stage in stages.items()}
        begin = adapter_tensors(actor.state_dict())
        if any(value.any() for name, value in begin.items() if "lora_B" in name):  # the actor starts away from the base
            found["reference"] = begin
        if critics:
            found |= {f"{name}_critic": found[name] for name in self.runs}
        keep_to_default(actor)
        for name, tensors in found.items():
            actor.add_adapter(name)
            self.adapters[name] = Adapter(actor, name)
            self.adapters[name].load_state_dict(tensors)
        for name, run in opened.items():
            say(run.named(f"{name} model"))
            self.add_module(f"{name}_head", load_head(run, actor).requires_grad_(False).eval())
            if critics:
                self.add_module(f"{name}_value", Critic(actor.hidden_size))
        self.critics = critics
        actor.requires_grad_(False)
        for trained in (Adapter(actor, DEFAULT), *(self.adapters[f"{name}_critic"] for name in self._critics())):
            trained.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen heads stay in evaluation mode."""
        super().train(mode)
        for name in self.runs:
            if hasattr(self, f"{name}_head"):
                self.get_submodule(f"{name}_head").eval()
        return self

    def acting(self, actor: Backbone) -> AbstractContextManager[None]:
        """See :class:`Roles`."""
        return adapter(actor, DEFAULT)

    def _read(
        self, actor: Backbone, micro_batch: MicroBatch, name: str | None, *, log_probs: bool = False
    ) -> ResponseStates:
        with adapter(actor, name):
            features: ImageFeatures = (
                micro_batch.features if self.same_features else actor.encode_images(micro_batch.images)
            )
            return actor.read(micro_batch.tokens, features, log_probs=log_probs)

    def log_probs(self, actor: Backbone, micro_batch: MicroBatch) -> Tensor:
        """See :class:`Roles`."""
        states = self._read(actor, micro_batch, DEFAULT, log_probs=True)
        assert states.log_probs is not None
        return states.log_probs

    def reference_log_probs(self, actor: Backbone, micro_batch: MicroBatch) -> Tensor:
        """See :class:`Roles`."""
        name = "reference" if "reference" in self.adapters else None
        states = self._read(actor, micro_batch, name, log_probs=True)
        assert states.log_probs is not None
        return states.log_probs

    def judge(self, actor: Backbone, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """See :class:`Roles`."""
        return self._score(actor, "reward", micro_batch), self._score(actor, "cost", micro_batch)

    def _score(self, actor: Backbone, name: str, micro_batch: MicroBatch) -> Tensor:
        head = self.get_submodule(f"{name}_head")
        assert isinstance(head, Head)
        score: Tensor = head(self._read(actor, micro_batch, name, log_probs=head.needs_log_probs))[:, 0]
        return score

    def value(self, actor: Backbone, micro_batch: MicroBatch, name: str) -> Tensor:
        """See :class:`Roles`."""
        states = self._read(actor, micro_batch, f"{name}_critic")
        value: Tensor = self.get_submodule(f"{name}_value")(states.prompt, states.hidden, states.mask)
        return value

    def _critics(self) -> tuple[str, ...]:
        return tuple(self.runs) if self.critics else ()

    def trained(self, actor: Backbone) -> dict[str, list[nn.Parameter]]:
        """See :class:`Roles`."""
        found = {"actor": list(Adapter(actor, DEFAULT).parameters())}
        for name in self._critics():
            modules = (self.adapters[f"{name}_critic"], self.get_submodule(f"{name}_value"))
            found[f"{name}_critic"] = [p for module in modules for p in module.parameters()]
        return found

    def rebuilt(self) -> Iterator[str]:
        """See :class:`Roles`."""
        places = [f"adapters.{name}" for name in ("reference", *self.runs) if name in self.adapters]
        for place in (*places, *(f"{name}_head" for name in self.runs)):
            yield from (f"{place}.{name}" for name in self.get_submodule(place).state_dict())

    def identity(self) -> dict[str, str]:
        """See :class:`Roles`."""
        if not self._identity:  # they never change, and a hash of large adapters takes a second
            networks = {name: [self.adapters[name], self.get_submodule(f"{name}_head")] for name in self.runs}
            self._identity = {name: module_hash(nn.ModuleList(found)) for name, found in networks.items()}
            own = "reference" in self.adapters
            self._identity["reference"] = module_hash(self.adapters["reference"]) if own else "the base"
        return self._identity

    def start_critics(self, mean: Tensor, scales: Tensor) -> None:
        """See :class:`Roles`."""
        for i, name in enumerate(self._critics()):
            head, value = self.get_submodule(f"{name}_head"), self.get_submodule(f"{name}_value")
            assert isinstance(head, Head)
            assert isinstance(value, Critic)
            value.start_from(head, mean[i], scales[i])

    def compare_towers(self, actor: Backbone, micro_batch: MicroBatch) -> None:
        """See :class:`Roles`: there is one tower, so it only has to be frozen."""
        with torch.enable_grad():
            features = actor.encode_images(micro_batch.images)
        tensors = [*features.tokens, *(level for levels in features.levels for level in levels)]
        self.same_features = not any(tensor.requires_grad for tensor in tensors)
