"""The six roles of constrained policy optimisation behind one interface: actor, reference, reward, cost, two critics.

Shapes: n responses of one micro-batch of a rollout, R response tokens, D hidden.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.backbone import Backbone, before_tokens
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.models.heads import Head, ScalarHead
from safe_rlhf_v.models.sharding import assign
from safe_rlhf_v.models.types import ImageFeatures, ResponseStates
from safe_rlhf_v.policy.rollout import MicroBatch
from safe_rlhf_v.scoring.external import ExternalScorer, find_scorer
from safe_rlhf_v.training.base_tensors import tensor_hash
from safe_rlhf_v.training.checkpoints import fingerprint, load_stage
from safe_rlhf_v.training.runs import Source, StoredRun, load_scorer, open_run, say
from safe_rlhf_v.training.same_prompts import check_same_prompts

SCORERS = ("reward", "cost")
"""Roles that score a response; each has a critic, ``reward_critic`` and ``cost_critic``, where the estimator needs critics."""

Frozen = TypeVar("Frozen", bound=nn.Module)


class Roles(nn.Module, ABC):
    """The networks of one policy iteration: actor, reference, reward and cost model, and their critics.

    :meth:`build` keeps the actor, which is the policy module's own backbone; the other networks belong to this module. Every
    network is read through :meth:`network`. A subclass writes :meth:`create`, :meth:`network`, :meth:`trained` and
    :meth:`frozen`; in :meth:`create` it also adds the heads, with :meth:`add_heads`.

    Attributes:
        critics: Names of the scorers that have a critic: both or none.
        same_features: Whether every role reads the actor's image features (set by :meth:`compare_towers`); then a picture
            is encoded once for all of them.
        started: Names of the actor's tensors that a start run gave: its base does not, so checkpoints keep them.
    """

    critics: tuple[str, ...] = ()
    same_features: bool = False
    started: frozenset[str] = frozenset()

    def build(self, actor: Backbone, critics: bool) -> None:
        """Keep the actor, give it its start, and create the other networks.

        Args:
            actor: Freshly built.
            critics: Whether critics are needed.

        Raises:
            CheckpointError: If a run cannot be read or does not fit the actor.
        """
        self._actor = (actor,)  # in a tuple, since its tensors are the policy module's and not ours
        self.critics = SCORERS if critics else ()
        self.create(actor)

    @property
    def actor(self) -> Backbone:
        """The policy's backbone."""
        return self._actor[0]

    # --- a subclass writes these ------------------------------------------------------------------------------------

    @abstractmethod
    def create(self, actor: Backbone) -> None:
        """Give the actor its start, and create the other networks; see :meth:`build`."""

    @abstractmethod
    def network(self, role: str) -> AbstractContextManager[Backbone]:
        """A context in which the backbone that it gives is that of a role.

        Args:
            role: ``actor``, ``reference``, ``reward``, ``cost``, ``reward_critic`` or ``cost_critic``.
        """

    @abstractmethod
    def trained(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters of each role that has any: each role's gradient is clipped by itself."""

    @abstractmethod
    def frozen(self) -> dict[str, list[str]]:
        """Names of the modules, below this one, of each frozen role that :meth:`build` gives back: checkpoints leave them out."""

    # --- the same for every subclass --------------------------------------------------------------------------------

    def add_external(self, actor: Backbone, sources: Mapping[str, Any]) -> None:
        """Build the scorers that are no runs of this library, and value heads on the actor's states for their critics.

        Args:
            actor: Freshly built.
            sources: Of ``reward`` and ``cost``.

        Raises:
            ValueError: If one cannot be used.
        """
        for name in SCORERS:
            scorer = find_scorer(sources[name], name)
            if scorer is None:
                continue
            scorer.load()
            say(f"{name} model: {scorer.name}")
            self.add_module(name, frozen_module(scorer))
            if name in self.critics:
                self.add_module(f"{name}_value", Critic(actor.hidden_size))

    def external(self, name: str) -> ExternalScorer | None:
        """The scorer of that name if it is no run of this library: it has no states, and its critic is not its own."""
        scorer = self._modules.get(name)
        return scorer if isinstance(scorer, ExternalScorer) else None

    def add_heads(self, name: str, head: Head, hidden_size: int) -> None:
        """Add a scorer's head, frozen, and the value head of its critic, if it has one.

        Args:
            name: ``reward`` or ``cost``.
            head: Of the scorer.
            hidden_size: D of its critic.
        """
        self.add_module(f"{name}_head", frozen_module(head))
        if name in self.critics:
            self.add_module(f"{name}_value", Critic(hidden_size))

    def read(self, role: str, micro_batch: MicroBatch, *, log_probs: bool = False) -> ResponseStates:
        """The states of a micro-batch's responses in a role's network.

        Args:
            role: See :meth:`network`.
            micro_batch: n responses.
            log_probs: Whether the log-probabilities of their tokens are needed, too.
        """
        with self.network(role) as network:
            features = micro_batch.features if self.same_features else network.encode_images(micro_batch.images)
            return network.read(micro_batch.tokens, features, log_probs=log_probs)

    def log_probs(self, role: str, micro_batch: MicroBatch) -> Tensor:
        """(n, R) float32 log-probability of each response token under the actor or the reference, 0 where masked."""
        states = self.read(role, micro_batch, log_probs=True)
        assert states.log_probs is not None
        return states.log_probs

    def score(self, name: str, micro_batch: MicroBatch) -> Tensor:
        """(n,) float32 score of each response, as the frozen ``reward`` or ``cost`` model gives it."""
        if (external := self.external(name)) is not None:
            assert micro_batch.texts is not None
            scores = external.score(micro_batch.texts.prompts, micro_batch.texts.responses)
            return scores.to(micro_batch.tokens.input_ids.device)
        head = self.get_submodule(f"{name}_head")
        assert isinstance(head, Head)
        score: Tensor = head(self.read(name, micro_batch, log_probs=head.needs_log_probs))[:, 0]
        return score

    def value(self, name: str, micro_batch: MicroBatch) -> Tensor:
        """(n, R) float32 predictions of the ``reward`` or ``cost`` critic before each token, 0 where masked."""
        states = self.read(f"{name}_critic", micro_batch)
        value: Tensor = self.get_submodule(f"{name}_value")(states.prompt, states.hidden, states.mask)
        return value

    def scorer_modules(self, name: str, network: str) -> list[str]:
        """Names of the modules of a frozen scorer.

        Args:
            name: ``reward`` or ``cost``.
            network: Name of what a run's scorer has beside its head.
        """
        return [name] if self.external(name) is not None else [network, f"{name}_head"]

    def start_critics(self, mean: Tensor, scales: Tensor) -> None:
        """Put the critics where the scorers are: V = (score - mean) / scale, where the score is linear in the state.

        Args:
            mean: (2,) what is subtracted from reward and cost.
            scales: (2,) what they are divided by.
        """
        for i, name in enumerate(self.critics):
            if self.external(name) is not None:  # nothing to start from: the value heads stay zero
                continue
            head = self.get_submodule(f"{name}_head")
            value = self.get_submodule(f"{name}_value")
            assert isinstance(head, Head)
            assert isinstance(value, Critic)
            value.start_from(head, mean[i], scales[i])

    def compare_towers(self, micro_batch: MicroBatch) -> None:
        """Find out, on one micro-batch of a rollout, whether all roles see the same frozen image features."""
        features: dict[int, list[Tensor]] = {}  # by network: roles may share one
        scorers = (name for name in SCORERS if self.external(name) is None)
        for role in ("actor", "reference", *scorers, *(f"{name}_critic" for name in self.critics)):
            with torch.enable_grad(), self.network(role) as network:
                if id(network) not in features:
                    features[id(network)] = _flat(network.encode_images(micro_batch.images))
        first, *rest = features.values()
        frozen = not any(tensor.requires_grad for tensors in (first, *rest) for tensor in tensors)
        self.same_features = frozen and all(
            len(first) == len(other) and all(map(torch.equal, first, other)) for other in rest
        )

    def rebuilt(self) -> Iterator[str]:
        """Names of the tensors, below this module, that :meth:`build` gives back."""
        for names in self.frozen().values():
            for name in names:
                yield from (f"{name}.{tensor}" for tensor in self.get_submodule(name).state_dict())

    def identity(self) -> dict[str, str]:
        """A hash for each frozen role that is not in checkpoints, to recognise it on resume."""
        if not hasattr(self, "_identity"):  # they never change, and a hash of large networks takes seconds
            modules = {role: [self.get_submodule(name) for name in names] for role, names in self.frozen().items()}
            self._identity = {role: module_hash(nn.ModuleList(parts)) for role, parts in modules.items()}
        return self._identity

    def train(self, mode: bool = True) -> Self:
        """Set training mode; modules without trainable parameters stay in evaluation mode."""
        super().train(mode)
        for module in self.children():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self


class Critic(Float32Module):
    """A linear value of the state before each token, starting at zero; float32 under every precision setting."""

    def __init__(self, hidden: int) -> None:
        """Create the linear layer, with weights of zero.

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

    In Python the modules of earlier stages can stand in the place of their runs; their networks are copied::

        SeparateRoles(reward=reward_module, cost=cost_module, start=supervised_module)

    YAML::

        roles:
          class_path: safe_rlhf_v.policy.SeparateRoles
          init_args:
            start: runs/quickstart/supervised
            reward: runs/quickstart/reward
            cost: runs/quickstart/cost
    """

    def __init__(
        self,
        reward: Source | ExternalScorer,
        cost: Source | ExternalScorer,
        start: Source | None = None,
        trust: list[str] | None = None,
    ) -> None:
        """Choose the earlier stages; they are read in :meth:`build`.

        Args:
            reward: Run of a reward model, in Python also the trained module; or an external model: an exported folder, the folder
                or hub name of a sequence classifier, the import path of a function, or a scorer by class path.
            cost: Likewise a cost model; a cost above 0 means harmful.
            start: Run folder or checkpoint whose policy the actor starts from and is compared with, in Python also the module; or
                the folder of a model; ``None`` for the backbone as it is built (pretrained weights).
            trust: Packages whose classes those runs may name, beside this library's (``--trust`` adds to them).
        """
        super().__init__()
        self.sources: dict[str, Source | ExternalScorer | None] = {"reward": reward, "cost": cost, "start": start}
        self.trust = tuple(trust or ())
        self._in_checkpoint: set[str] = set()

    def create(self, actor: Backbone) -> None:
        """See :class:`Roles`."""
        scorers, start = open_roles(actor, self.sources, self.trust)
        self.add_external(actor, self.sources)
        if start is not None:
            load_stage(start.stage, actor, fingerprint(actor))
            self.started = frozenset(name.removeprefix("backbone.") for name in start.stage["state_dict"])
        elif actor.base is None:  # nothing gives random weights back
            self._in_checkpoint = {"reference"}
        self.reference = frozen_module(copy.deepcopy(actor))
        for name, run in scorers.items():
            network, head = load_scorer(run, f"{name} model")
            check_same_prompts(run.file, network, actor)
            if name in self.critics:  # what its stage trained, trains on
                critic = copy.deepcopy(network)
                critic.freeze_unused_lm_head()
                self.add_module(f"{name}_critic", critic)
            self.add_heads(name, head, network.hidden_size)
            self.add_module(name, frozen_module(network))
        for name in self.critics:
            if self.external(name) is not None:
                critic = copy.deepcopy(actor)
                critic.freeze_unused_lm_head()
                self.add_module(f"{name}_critic", critic)
        self.sources.clear()  # modules of earlier stages may go

    def network(self, role: str) -> AbstractContextManager[Backbone]:
        """See :class:`Roles`."""
        network = self.actor if role == "actor" else self.get_submodule(role)
        assert isinstance(network, Backbone)
        return nullcontext(network)

    def trained(self) -> dict[str, list[nn.Parameter]]:
        """See :class:`Roles`."""
        modules: dict[str, list[nn.Module]] = {"actor": [self.actor]}
        for name in self.critics:
            modules[f"{name}_critic"] = [self.get_submodule(f"{name}_critic"), self.get_submodule(f"{name}_value")]
        return {
            role: [p for module in members for p in module.parameters() if p.requires_grad]
            for role, members in modules.items()
        }

    def frozen(self) -> dict[str, list[str]]:
        """See :class:`Roles`."""
        names = {"reference": ["reference"], **{name: self.scorer_modules(name, name) for name in SCORERS}}
        return {role: modules for role, modules in names.items() if role not in self._in_checkpoint}


def open_roles(
    actor: Backbone,
    sources: Mapping[str, Source | ExternalScorer | None],
    trust: tuple[str, ...],
    base: str | None = None,
) -> tuple[dict[str, StoredRun], StoredRun | None]:
    """Runs of the scorers, and of the start: a bad one is refused before anything is built.

    Args:
        actor: Freshly built; the others may be trained on its base.
        sources: Of ``reward``, ``cost`` and ``start``; a start may be missing.
        trust: Packages whose classes may be imported.
        base: Stands for the base of every run, as none is built; ``None`` if they build their own.

    Raises:
        CheckpointError: If one cannot be read, or trains something else.
    """
    bases = {actor.base, actor.base.partition("@")[0]} if actor.base else set()
    scorers: dict[str, StoredRun] = {}
    for name in SCORERS:
        source: Any = sources[name]
        if find_scorer(source, name) is None:
            scorers[name] = open_run(source, f"{name} model", (name,), trust=trust, base=base, known_bases=bases)
    first: Any = sources["start"]
    if first is None:
        return scorers, None
    start = open_run(first, "start", ("policy",), trust=trust, parts=())
    say(start.named("start"))
    return scorers, start


def module_hash(module: nn.Module) -> str:
    """One hash (hex) over every tensor of a module, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor_hash(value)}\n".encode())
    return digest.hexdigest()


def frozen_module(module: Frozen) -> Frozen:
    """The module itself, without anything to train and in evaluation mode."""
    module.requires_grad_(False)
    return module.eval()


def _flat(features: ImageFeatures) -> list[Tensor]:
    return [*features.tokens, *(level for levels in features.levels for level in levels)]
