"""What is exported of a run: its backbone, its head and link, and what is left out, by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safe_rlhf_v.guard.calibration import weights_identity
from safe_rlhf_v.models.adapters import adapter_of
from safe_rlhf_v.models.heads import Head
from safe_rlhf_v.models.links import OrdinalLink
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.training.checkpoints import fingerprint, load_stage
from safe_rlhf_v.training.runs import StoredRun, build_backbone, load_opened, open_run, say

EXPORTED = ("policy", "reward", "cost", "guard")
"""What an exported run may train."""
_OUTSIDE = {
    "roles": "critics and frozen roles (reward, cost and reference have runs of their own: export those)",
    "reference": "the reference of the training",
    "dual": "the multiplier, which stands in the card",
    "scale": "the scale of the scores in the training",
    "objective": "parameters of the training's loss",
}
"""Parts of a checkpoint that no user of the model needs, in words."""


class Trained(NamedTuple):
    """A run, loaded on the CPU and in evaluation mode.

    Attributes:
        kind: ``policy``, ``reward``, ``cost`` or ``guard``.
        run: Where it comes from.
        backbone: The network; a policy's is its actor.
        head: Of a reward, cost or guard model.
        link: Of a guard.
        categories: Of a guard.
        changed: Names of the backbone's tensors, adapters aside, that its pretrained base does not give.
        left_out: What the checkpoint holds beside these, in words.
        identity: Hash of a guard's weights, for its calibration.
    """

    kind: str
    run: StoredRun
    backbone: Reader
    head: Head | None = None
    link: OrdinalLink | None = None
    categories: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    identity: str = ""


def load_trained(path: str | Path, trust: Sequence[str] = (), base: str | None = None) -> Trained:
    """Read a run; which checkpoint it is, is printed.

    Args:
        path: Run folder or checkpoint.
        trust: Packages whose classes it may name.
        base: Its pretrained model, in place of the one that it names.

    Raises:
        CheckpointError: If it cannot be read, or trains nothing that is exported.
    """
    run = open_run(path, "run", EXPORTED, trust=trust, base=base, parts=("backbone",))
    kind: str = run.cls.trains
    if kind == "policy":  # its roles are not needed
        backbone = build_backbone(run)
        changed = changed_tensors(run.stage, backbone)
        load_stage(run.stage, backbone, fingerprint(backbone))
        say(run.named("policy"))
        return Trained(kind, run, backbone.eval(), changed=changed, left_out=_left_out(run, ("backbone",)))
    run = open_run(path, "run", EXPORTED, trust=trust, base=base)
    module: Any = load_opened(run, f"{kind} model")
    head: Head = module.head
    link: OrdinalLink | None = getattr(module, "link", None)
    categories = tuple(getattr(module, "categories", ()))
    left_out = _left_out(run, ("backbone", "head", "link"))
    identity = weights_identity(module) if link is not None else ""
    return Trained(kind, run, module.backbone, head, link, categories, left_out=left_out, identity=identity)


def changed_tensors(stage: dict[str, Any], backbone: Reader) -> tuple[str, ...]:
    """Names of a backbone's tensors, adapters aside, that a checkpoint holds with other values than the backbone was built with.

    Args:
        stage: Content of the checkpoint.
        backbone: Freshly built.
    """
    own = backbone.state_dict()
    stored = {
        name.removeprefix("backbone."): value
        for name, value in stage["state_dict"].items()
        if name.startswith("backbone.")
    }
    return tuple(
        name
        for name, value in stored.items()
        if adapter_of(name) is None and not (name in own and torch.equal(value, own[name]))
    )


def _left_out(run: StoredRun, exported: Sequence[str]) -> tuple[str, ...]:
    parts = dict.fromkeys(name.partition(".")[0] for name in run.stage["state_dict"])
    return tuple(_OUTSIDE.get(part, part) for part in parts if part not in exported)
