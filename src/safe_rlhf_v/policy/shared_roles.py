"""The six roles of constrained policy optimisation as named adapters on one frozen base: the memory of one network.

Shapes: n responses of one micro-batch of a rollout, R response tokens, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.adapters import DEFAULT, Adapter, adapter, adapter_of, adapter_tensors, keep_to_default
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.policy.roles import SCORERS, Roles, open_roles
from safe_rlhf_v.scoring.external import ExternalScorer
from safe_rlhf_v.training.base_tensors import rebuilt_names
from safe_rlhf_v.training.checkpoints import (
    CheckpointError,
    compare_fingerprints,
    compare_names,
    fingerprint,
    load_stage,
)
from safe_rlhf_v.training.runs import Source, StoredRun, load_head, say


class SharedRoles(Roles):
    """One base, and an adapter each for actor, reward, cost and the two critics, which start from reward and cost.

    The reference is the base without adapters, or, where the actor starts from a trained adapter, a frozen copy of that. All
    runs must be LoRA runs on the same base, with the same settings; of their networks only the adapters are loaded. In Python
    trained modules can stand in the place of runs, as with :class:`SeparateRoles`.

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
            start: Run folder or checkpoint whose policy the actor starts from and is compared with, in Python also the module;
                ``None`` for the backbone as it is built. Another model is named as the backbone's own.
            trust: Packages whose classes those runs may name, beside this library's (``--trust`` adds to them).
        """
        super().__init__()
        self.sources: dict[str, Source | ExternalScorer | None] = {"reward": reward, "cost": cost, "start": start}
        self.trust = tuple(trust or ())
        self.adapters = nn.ModuleDict()

    def create(self, actor: Backbone) -> None:
        """See :class:`Roles`.

        Raises:
            ValueError: If the actor trains anything but adapters.
        """
        scorers, start = open_roles(actor, self.sources, self.trust, actor.base)
        self.add_external(actor, self.sources)
        tensors = self._starts(actor, scorers, start)
        keep_to_default(actor)
        for role, values in tensors.items():
            actor.add_adapter(role)
            self.adapters[role] = Adapter(actor, role)
            self.adapters[role].load_state_dict(values)
        for name, run in scorers.items():
            say(run.named(f"{name} model"))
            self.add_heads(name, load_head(run, actor), actor.hidden_size)
        actor.requires_grad_(False)
        for trained in (Adapter(actor, DEFAULT), *(self.adapters[f"{name}_critic"] for name in self.critics)):
            trained.requires_grad_(True)
        self.sources.clear()  # modules of earlier stages may go

    def _starts(
        self, actor: Backbone, scorers: dict[str, StoredRun], start: StoredRun | None
    ) -> dict[str, dict[str, Tensor]]:
        """The first tensors of each role's adapter; the actor gets its own here.

        Raises:
            ValueError: If the actor trains anything but adapters.
            CheckpointError: If a run does not fit it.
        """
        check_trained(actor)
        now = fingerprint(actor)
        for run in (*scorers.values(), *([start] if start else [])):
            check_adapters(run.stage, actor, now)
        changed: set[str] = set()
        if start is not None:
            changed = changed_by(start.stage, actor)
            load_stage(start.stage, actor, now)
            self.started = frozenset(backbone_tensors(start.stage))
        tensors = {name: adapter_of_run(run.stage, actor, changed) for name, run in scorers.items()}
        first = adapter_tensors(actor.state_dict())
        if any(value.any() for name, value in first.items() if "lora_B" in name):  # the actor starts away from the base
            tensors["reference"] = first
        return tensors | {f"{name}_critic": tensors.get(name, first) for name in self.critics}

    @contextmanager
    def network(self, role: str) -> Iterator[Backbone]:
        """See :class:`Roles`."""
        base_alone = role == "reference" and role not in self.adapters
        name = DEFAULT if role == "actor" else role
        with adapter(self.actor, None if base_alone else name):
            yield self.actor

    def trained(self) -> dict[str, list[nn.Parameter]]:
        """See :class:`Roles`."""
        parameters = {"actor": list(Adapter(self.actor, DEFAULT).parameters())}
        for name in self.critics:
            modules = (self.adapters[f"{name}_critic"], self.get_submodule(f"{name}_value"))
            parameters[f"{name}_critic"] = [p for module in modules for p in module.parameters()]
        return parameters

    def frozen(self) -> dict[str, list[str]]:
        """See :class:`Roles`."""
        names = {name: self.scorer_modules(name, f"adapters.{name}") for name in SCORERS}
        return {"reference": ["adapters.reference"] if "reference" in self.adapters else [], **names}


def check_trained(actor: Backbone) -> None:
    """Raises: ValueError: If the actor trains anything but adapters: the other roles would change with it."""
    if actor.lora is None:
        raise ValueError("SharedRoles puts adapters on one base: give the backbone lora settings, or use SeparateRoles")
    other = [name for name, value in actor.named_parameters() if value.requires_grad and adapter_of(name) is None]
    if other:
        more = f" (+{len(other) - 1})" if len(other) > 1 else ""
        raise ValueError(
            f"the backbone trains {other[0]}{more} beside its adapters, under all roles of SharedRoles: freeze it "
            "(freeze_tower, freeze_projector: true), or use SeparateRoles"
        )


def check_adapters(stage: dict[str, Any], actor: Backbone, now: dict[str, str]) -> None:
    """Refuse a run whose adapters are not like the actor's.

    Args:
        stage: The run's checkpoint.
        actor: Freshly built.
        now: Its fingerprint.

    Raises:
        CheckpointError: If the run has no adapters, other settings or another base.
    """
    file = stage["file"]
    if stage.get("plain"):
        raise CheckpointError(
            f"start {file}: is a model and no run, so it has no adapter of its own; name it as the backbone's model (HFVLM) or "
            "folder (SavedClipDecoder) and leave start out, or use SeparateRoles"
        )
    theirs = {"lora": "", **stage["fingerprint"]}
    layers = adapter_tensors(backbone_tensors(stage)).keys()
    if not layers:
        raise CheckpointError(
            f"{file}: was trained without adapters; give its backbone lora settings, or use SeparateRoles"
        )
    compare_fingerprints(file, theirs, now, rebuilt_names(stage["rebuilt"]))
    for name in ("base", "lora"):  # the base by its name, too: all of it is shared, and only one tensor has a hash
        if theirs[name] != now[name]:
            raise CheckpointError(
                f"{file}: its {name} is {theirs[name]!r}, the policy's is {now[name]!r}; give both the same"
            )
    if other := layers ^ adapter_tensors(actor.state_dict()).keys():
        raise CheckpointError(
            f"{file}: adapts other layers than the policy ({min(other)}); give both the same lora.target_modules"
        )


def changed_by(start: dict[str, Any], actor: Backbone) -> set[str]:
    """Names of the base's tensors that a start run is going to change in an actor."""
    own = actor.state_dict()
    stored = backbone_tensors(start)
    return {name for name, value in stored.items() if adapter_of(name) is None and not _same(value, own.get(name))}


def adapter_of_run(stage: dict[str, Any], actor: Backbone, changed: set[str]) -> dict[str, Tensor]:
    """The adapter of a run on the actor's base.

    Args:
        stage: The run's checkpoint.
        actor: With the base as the policy has it.
        changed: Tensors of it that are not those of the pretrained base.

    Raises:
        CheckpointError: If the run's base is another one.
    """
    file = stage["file"]
    stored = backbone_tensors(stage)
    own = actor.state_dict()
    rebuilt = rebuilt_names(stage["rebuilt"])
    compare_names(file, set(own), set(stored), rebuilt)
    other = [name for name, value in stored.items() if adapter_of(name) is None and not _same(value, own[name])]
    if other := sorted([*other, *(changed & rebuilt)]):
        raise CheckpointError(
            f"{file}: its {other[0]} is not the policy's, so it has another base; start policy, reward and cost model from "
            "the same run, or use SeparateRoles"
        )
    return adapter_tensors(stored)


def backbone_tensors(stage: dict[str, Any]) -> dict[str, Tensor]:
    """What a checkpoint holds of its backbone, under the backbone's own names."""
    own = {name: value for name, value in stage["state_dict"].items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): value for name, value in own.items()}


def _same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.dtype == other.dtype and torch.equal(value.to(other.device), other)
