"""What would make a run smaller: options by their names, each with what it saves."""

from collections.abc import Iterator
from typing import NamedTuple

from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.planning.settings import RunSettings
from safe_rlhf_v.planning.stages import MemoryPlan, Planner

_BACKBONE = "model.init_args.backbone.init_args"
_UPDATE = "model.init_args.update"
_WORTH_SAYING = 0.005
"""Share of the peak below which a change is not named."""


class Change(NamedTuple):
    """One change.

    Attributes:
        options: Names and values, as on a command line.
        saved: Bytes less at the peak.
        peak: Bytes with it.
    """

    options: str
    saved: int
    peak: int


def changes_of(planner: Planner, plan: MemoryPlan) -> Iterator[Change]:
    """Changes that save something, the largest saving first, then all of them together.

    Args:
        planner: Knows the networks.
        plan: Of the run as it is.
    """
    changed = [(options, settings) for options, settings in _variants(plan.settings)]
    single = []
    for options, settings in changed:
        peak = planner.plan(settings).peak
        if plan.peak - peak > _WORTH_SAYING * plan.peak:
            single.append((Change(options, plan.peak - peak, peak), settings))
    single.sort(key=lambda pair: -pair[0].saved)
    yield from (change for change, _ in single)
    together = plan.settings
    for _, settings in single:
        if not (settings.sharded and together.backbone.quantization) and not (
            together.sharded and settings.backbone.quantization
        ):
            together = _joined(plan.settings, together, settings)
    if len(single) > 1:
        peak = planner.plan(together).peak
        yield Change("all that go together", plan.peak - peak, peak)


def _joined(start: RunSettings, first: RunSettings, second: RunSettings) -> RunSettings:
    """Both changes."""
    own = {n: getattr(second, n) for n in second._fields if n != "backbone" and getattr(second, n) != getattr(start, n)}
    backbone = {
        n: getattr(second.backbone, n)
        for n in second.backbone._fields
        if n != "config" and getattr(second.backbone, n) != getattr(start.backbone, n)
    }
    return first._replace(**own, backbone=first.backbone._replace(**backbone))


def _variants(s: RunSettings) -> Iterator[tuple[str, RunSettings]]:
    backbone = s.backbone
    if backbone.lora is None:
        adapters = backbone._replace(lora=LoraSettings(64, 128.0), freeze_projector=True)
        yield f"--{_BACKBONE}.lora {{r: 64, alpha: 128}} (adapters only are trained)", s._replace(backbone=adapters)
    elif backbone.quantization is None and not s.sharded:
        yield f"--{_BACKBONE}.quantization nf4", s._replace(backbone=backbone._replace(quantization="nf4"))
    if not backbone.gradient_checkpointing:
        again = backbone._replace(gradient_checkpointing=True)
        yield f"--{_BACKBONE}.gradient_checkpointing true", s._replace(backbone=again)
    if backbone.lora is not None and backbone.lora.r > 16:
        small = backbone._replace(lora=LoraSettings(16, 32.0, backbone.lora.dropout, backbone.lora.target_modules))
        yield f"--{_BACKBONE}.lora {{r: 16, alpha: 32}}", s._replace(backbone=small)
    if s.ranks > 1 and not s.sharded and backbone.quantization is None:
        yield "--config configs/trainer/fsdp2.yaml (sharded over the ranks)", s._replace(sharded=True)
    if s.evaluated > 1:
        yield "--data.init_args.eval_batch_size 1", s._replace(evaluated=1)
    if s.feature_cache:
        yield f"--{_BACKBONE}.feature_cache 0", s._replace(feature_cache=0)
    yield from _smaller_policy(s) if s.stage == "policy" else _smaller_batch(s)


def _smaller_batch(s: RunSettings) -> Iterator[tuple[str, RunSettings]]:
    if s.batch > 1:
        count = s.accumulated * s.batch
        options = f"--data.init_args.batch_size 1 --trainer.accumulate_grad_batches {count} (the same step)"
        yield options, s._replace(batch=1, accumulated=count)


def _smaller_policy(s: RunSettings) -> Iterator[tuple[str, RunSettings]]:
    if not s.shared and s.backbone.lora is not None:
        yield "--model.init_args.roles safe_rlhf_v.policy.SharedRoles (one base)", s._replace(shared=True)
    if (s.micro_batch or s.minibatch or s.batch) > 1:
        yield f"--{_UPDATE}.micro_batch_size 1 (the same step)", s._replace(micro_batch=1)
    if s.batch > 1:
        half = s.batch // 2  # validation samples as well: lowering one of the two alone may save nothing
        options = f"--data.init_args.batch_size {half} --data.init_args.eval_batch_size {min(half, s.evaluated) or 1}"
        yield options, s._replace(batch=half, evaluated=min(half, s.evaluated))
    if s.demonstrations > 1:
        yield "--data.init_args.demonstration_batch_size 1", s._replace(demonstrations=1)
    if s.critics:
        options = "--model.init_args.advantages safe_rlhf_v.policy.GroupRelative (no critics; samples above 1)"
        yield options, s._replace(critics=False)
    if s.response > 128:
        options = f"--model.init_args.sampling.max_new_tokens {s.response // 2}"
        yield options, s._replace(response=s.response // 2)
