"""The six roles of constrained policy optimisation behind one interface: actor, reference, reward, cost, two critics.

Shapes: n responses of one micro-batch of a rollout, R response tokens, D hidden.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.backbone import Backbone, before_tokens
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.models.heads import Head, ScalarHead
from safe_rlhf_v.models.sharding import assign
from safe_rlhf_v.models.types import ImageFeatures
from safe_rlhf_v.policy.types import MicroBatch
from safe_rlhf_v.training.checkpoints import CheckpointError, fingerprint, load_stage, tensor_hash
from safe_rlhf_v.training.runs import StoredRun, load_opened, open_run, say

Frozen = TypeVar("Frozen", bound=nn.Module)


class Roles(nn.Module, ABC):
    """Who acts, who is compared with, who judges and who predicts.

    The actor is the policy module's own backbone, handed to every method; a subclass holds the others.

    Attributes:
        same_features: Whether every role reads the actor's image features (set by :meth:`compare_towers`); then a picture
            is encoded once for all of them.
        started: Names of the actor's tensors that a start run gave: its base does not, so checkpoints keep them.
    """

    same_features: bool = False
    started: frozenset[str] = frozenset()

    @abstractmethod
    def build(self, actor: Backbone, critics: bool) -> None:
        """Start the actor and create the other networks.

        Args:
            actor: Freshly built.
            critics: Whether critics are needed.

        Raises:
            CheckpointError: If a run cannot be read or does not fit the actor.
        """

    def acting(self, actor: Backbone) -> AbstractContextManager[None]:
        """In this context the actor's own methods (sampling, export) are those of the policy."""
        return nullcontext()

    @abstractmethod
    def log_probs(self, actor: Backbone, micro_batch: MicroBatch) -> Tensor:
        """(n, R) float32 log-probability of each response token under the policy, 0 where masked."""

    @abstractmethod
    def reference_log_probs(self, actor: Backbone, micro_batch: MicroBatch) -> Tensor:
        """(n, R) float32 log-probability of each response token under the frozen start, 0 where masked."""

    @abstractmethod
    def judge(self, actor: Backbone, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(n,) float32 reward and (n,) float32 cost, as the frozen models give them."""

    @abstractmethod
    def value(self, actor: Backbone, micro_batch: MicroBatch, name: str) -> Tensor:
        """(n, R) float32 predictions of one critic, ``reward`` or ``cost``, before each token, 0 where masked."""

    @abstractmethod
    def trained(self, actor: Backbone) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters of each role that has any: each role's gradient is clipped by itself."""

    @abstractmethod
    def rebuilt(self) -> Iterator[str]:
        """Names of tensors, below this module, that :meth:`build` gives back: checkpoints leave them out."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """A hash for each frozen role that is not in checkpoints, to recognise it on resume."""

    @abstractmethod
    def start_critics(self, mean: Tensor, scales: Tensor) -> None:
        """Put the critics where the scorers are: V = (score - mean) / scale, where the score is linear in the state.

        Args:
            mean: (2,) what is subtracted from reward and cost.
            scales: (2,) what they are divided by.
        """

    @abstractmethod
    def compare_towers(self, actor: Backbone, micro_batch: MicroBatch) -> None:
        """Find out, on one micro-batch of a rollout, whether all roles see the same frozen image features."""


class Critic(Float32Module):
    """A linear value of the state before each token, starting at zero; float32 under every precision setting."""

    def __init__(self, hidden: int) -> None:
        """
        Args:
            hidden: D.
        """
        super().__init__()
        self.linear = nn.Linear(hidden, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, prompt: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """(n, R) values, 0 where masked, from (n, D) and (n, R, D) states."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(before_tokens(prompt, hidden).float()).squeeze(-1)
        return values * mask

    def start_from(self, head: Head, mean: Tensor, scale: Tensor) -> None:
        """Take over a linear head's score, normalised; other heads are no linear value and leave zero."""
        if isinstance(head, ScalarHead):
            with torch.no_grad():
                bias = head.linear.bias if head.linear.bias is not None else torch.zeros_like(mean)[None]
                assign(self.linear.weight, head.linear.weight / scale)
                assign(self.linear.bias, (bias - mean) / scale)


class SeparateRoles(Roles):
    """Six networks, as in Safe RLHF-V (arXiv 2503.17682): the critics start from the reward and cost models.

    YAML::

        roles:
          class_path: safe_rlhf_v.policy.SeparateRoles
          init_args:
            start: runs/quickstart/supervised
            reward: runs/quickstart/reward
            cost: runs/quickstart/cost
    """

    def __init__(self, reward: str, cost: str, start: str | None = None, trust: list[str] | None = None) -> None:
        """
        Args:
            reward: Run folder or checkpoint of a reward model.
            cost: Run folder or checkpoint of a cost model.
            start: Run folder or checkpoint whose policy the actor starts from and is compared with; ``None`` for the
                backbone as it is built (pretrained weights).
            trust: Packages whose classes those runs may name, beside this library's (``--trust`` adds to them).
        """
        super().__init__()
        self.start_run, self.runs, self.trust = start, {"reward": reward, "cost": cost}, tuple(trust or ())
        self._in_checkpoint: set[str] = set()
        self._identity: dict[str, str] = {}

    def build(self, actor: Backbone, critics: bool) -> None:
        """See :class:`Roles`."""
        opened, start = open_roles(actor, self.runs, self.start_run, self.trust)
        if start is not None:
            load_stage(start, actor, fingerprint(actor))
            self.started = frozenset(name.removeprefix("backbone.") for name in start["state_dict"])
        if start is None and actor.base is None:  # nothing gives random weights back
            self._in_checkpoint = {"reference"}
        self.reference = _frozen(copy.deepcopy(actor))
        for name, run in opened.items():
            module: Any = load_opened(run, f"{name} model")
            _same_tokens(run.file, module.backbone, actor)
            if critics:  # what its stage trained, trains on
                critic = copy.deepcopy(module.backbone)
                critic.freeze_unused_lm_head()
                self.add_module(f"{name}_critic", critic)
                self.add_module(f"{name}_value", Critic(critic.hidden_size))
            self.add_module(name, _frozen(module.backbone))
            self.add_module(f"{name}_head", _frozen(module.head))
        self.critics = critics

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen roles stay in evaluation mode."""
        super().train(mode)
        for role in ("reference", *self.runs):
            if hasattr(self, role):
                self.get_submodule(role).eval()
        return self

    def _features(self, backbone: Backbone, micro_batch: MicroBatch) -> ImageFeatures:
        return micro_batch.features if self.same_features else backbone.encode_images(micro_batch.images)

    def log_probs(self, actor: Backbone, micro_batch: MicroBatch) -> Tensor:
        """See :class:`Roles`."""
        states = actor.read(micro_batch.tokens, self._features(actor, micro_batch), log_probs=True)
        assert states.log_probs is not None
        return states.log_probs

    def reference_log_probs(self, actor: Backbone, micro_batch: MicroBatch) -> Tensor:
        """See :class:`Roles`."""
        return self.log_probs(self.reference, micro_batch)

    def judge(self, actor: Backbone, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """See :class:`Roles`."""
        return self._score("reward", micro_batch), self._score("cost", micro_batch)

    def _score(self, name: str, micro_batch: MicroBatch) -> Tensor:
        backbone, head = self.get_submodule(name), self.get_submodule(f"{name}_head")
        assert isinstance(backbone, Backbone)
        assert isinstance(head, Head)
        states = backbone.read(
            micro_batch.tokens, self._features(backbone, micro_batch), log_probs=head.needs_log_probs
        )
        score: Tensor = head(states)[:, 0]
        return score

    def value(self, actor: Backbone, micro_batch: MicroBatch, name: str) -> Tensor:
        """See :class:`Roles`."""
        backbone = self.get_submodule(f"{name}_critic")
        assert isinstance(backbone, Backbone)
        states = backbone.read(micro_batch.tokens, self._features(backbone, micro_batch))
        value: Tensor = self.get_submodule(f"{name}_value")(states.prompt, states.hidden, states.mask)
        return value

    def trained(self, actor: Backbone) -> dict[str, list[nn.Parameter]]:
        """See :class:`Roles`."""
        found = {"actor": [p for p in actor.parameters() if p.requires_grad]}
        for name in self.runs if self.critics else ():
            modules = (self.get_submodule(f"{name}_critic"), self.get_submodule(f"{name}_value"))
            found[f"{name}_critic"] = [p for module in modules for p in module.parameters() if p.requires_grad]
        return found

    def rebuilt(self) -> Iterator[str]:
        """See :class:`Roles`."""
        for role in ("reference", *self.runs, *(f"{name}_head" for name in self.runs)):
            if role not in self._in_checkpoint:
                yield from (f"{role}.{name}" for name in self.get_submodule(role).state_dict())

    def identity(self) -> dict[str, str]:
        """See :class:`Roles`."""
        if not self._identity:  # they never change, and a hash of large networks takes seconds
            roles = [role for role in ("reference", *self.runs) if role not in self._in_checkpoint]
            self._identity = {role: module_hash(self.get_submodule(role)) for role in roles}
        return self._identity

    def start_critics(self, mean: Tensor, scales: Tensor) -> None:
        """See :class:`Roles`."""
        for i, name in enumerate(self.runs if self.critics else ()):
            head, value = self.get_submodule(f"{name}_head"), self.get_submodule(f"{name}_value")
            assert isinstance(head, Head)
            assert isinstance(value, Critic)
            value.start_from(head, mean[i], scales[i])

    def compare_towers(self, actor: Backbone, micro_batch: MicroBatch) -> None:
        """See :class:`Roles`."""
        names = ["reference", *self.runs, *(f"{name}_critic" for name in self.runs if self.critics)]
        others = [module for module in map(self.get_submodule, names) if isinstance(module, Backbone)]
        with torch.enable_grad():
            first, *rest = [_flat(backbone.encode_images(micro_batch.images)) for backbone in (actor, *others)]
        frozen = not any(tensor.requires_grad for features in (first, *rest) for tensor in features)
        self.same_features = frozen and all(
            len(first) == len(other) and all(map(torch.equal, first, other)) for other in rest
        )


def open_roles(
    actor: Backbone, runs: dict[str, str], start: str | None, trust: tuple[str, ...], base: str | None = None
) -> tuple[dict[str, StoredRun], dict[str, Any] | None]:
    """Runs of the scorers, and the checkpoint of the start: a bad one is refused before anything is built.

    Args:
        actor: Freshly built; the others may be trained on its base.
        runs: By role, ``reward`` and ``cost``.
        start: Run of a policy.
        trust: Packages whose classes may be imported.
        base: Stands for the base of every run, as none is built; ``None`` if they build their own.

    Raises:
        CheckpointError: If one cannot be read, or trains something else.
    """
    bases = {actor.base, actor.base.partition("@")[0]} if actor.base else set()
    opened = {
        name: open_run(path, f"{name} model", (name,), trust=trust, base=base, known_bases=bases)
        for name, path in runs.items()
    }
    if start is None:
        return opened, None
    first = open_run(start, "start", ("policy",), trust=trust, parts=())
    say(first.named("start"))
    return opened, first.stage


def module_hash(module: nn.Module) -> str:
    """One hash (hex) over every tensor of a module, names included."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor_hash(value)}\n".encode())
    return digest.hexdigest()


def _flat(features: ImageFeatures) -> list[Tensor]:
    return [*features.tokens, *(level for levels in features.levels for level in levels)]


def _frozen(module: Frozen) -> Frozen:
    module.requires_grad_(False)
    return module.eval()


def _same_tokens(file: str, scorer: Backbone, actor: Backbone) -> None:
    """Raises: CheckpointError: If the scorer would read other tokens than the actor writes."""
    ours, theirs = fingerprint(actor), fingerprint(scorer)
    for name in ("backbone", "tokenizer"):
        if ours[name] != theirs[name]:
            raise CheckpointError(
                f"{file}: its {name} is {theirs[name]:.60}, the actor's is {ours[name]:.60}; actor, reward and cost model "
                "must share class and tokenizer"
            )
