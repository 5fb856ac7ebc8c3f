"""Real training on small networks, with an allocation counter over all of it."""

from functools import partial

import lightning.pytorch as pl
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule, PromptDataModule, SupervisedDataModule
from safe_rlhf_v.dual import FixedDual
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.heads import EvidenceHead
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.modules import (
    CostModule,
    GuardModule,
    PreferenceOptimisationModule,
    RewardModule,
    SupervisedModule,
)
from safe_rlhf_v.objectives import BradleyTerry, CostObjective, SafeDPO, SignTerm
from safe_rlhf_v.planning import LiveBytes, MemoryPlan
from safe_rlhf_v.planning.network import BackboneOptions
from safe_rlhf_v.planning.settings import RunSettings
from safe_rlhf_v.planning.stages import Planner
from safe_rlhf_v.planning.vision import vision_size
from safe_rlhf_v.policy import ConstrainedPolicyModule, SeparateRoles, SharedRoles
from safe_rlhf_v.policy.advantages import GAE, GroupRelative
from safe_rlhf_v.policy.settings import KLPenalty, StartSettings, UpdateSettings
from safe_rlhf_v.world import WORLD

QUIET = {k: False for k in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
ADAMW = partial(torch.optim.AdamW, lr=1e-4)
LORA = LoraSettings(r=8)
COSTS = partial(CostObjective, terms=[SignTerm()])


def config_of(folder, layers=4, words=None):
    """A small network of the folder's family, wide enough that activations count; ``words`` of its vocabulary."""
    from transformers import AutoConfig

    options = AutoConfig.from_pretrained(folder).to_dict()
    wide = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": layers}
    options["text_config"] = {**options["text_config"], **wide, "head_dim": None, "layer_types": None}
    options["text_config"]["vocab_size"] = words or options["text_config"]["vocab_size"]
    if "out_hidden_size" in options["vision_config"]:
        options["vision_config"]["out_hidden_size"] = 64
        options["text_config"]["rope_parameters"]["mrope_section"] = [2, 3, 3]
    return {k: v for k, v in options.items() if k not in ("architectures", "transformers_version", "dtype")}


class Watch(pl.Callback):
    """Counts the networks' tensors, and notes the largest rows that ran."""

    def __init__(self, live):
        self.live = live
        self.widths = []

    def on_fit_start(self, trainer, module):
        for tensor in (*module.parameters(), *module.buffers()):
            self.live.count(tensor)


def run(make, data, monkeypatch, *, steps=2, precision="32-true", accumulate=1, others=()):
    """Peak of all tensors in a training but those of other modules, and the largest (S, R) among its rows."""
    shapes = []
    read = Backbone.read

    def noted(self, tokens, features, **options):
        shapes.append((tokens.input_ids.shape[1], tokens.response_mask.shape[1]))
        return read(self, tokens, features, **options)

    monkeypatch.setattr(Backbone, "read", noted)
    with LiveBytes(tensor for module in others for tensor in module.state_dict().values()) as live:
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0,
            precision=precision, accumulate_grad_batches=accumulate, callbacks=[Watch(live)], **QUIET,
        )  # fmt: skip
        trainer.fit(make(), data)
    return live.peak, max(shapes)


def backbone(folder, config, **options):
    """Makes the same network every time."""

    def make():
        torch.manual_seed(0)
        return HFVLM(config=config, processor=str(folder), **options)

    return make


def settings(stage, config, shape, options, **more):
    """What the planner is told about a run whose widest row (S, R) is known."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(**config)
    own = {k: getattr(torch, v) if k == "dtype" else v for k, v in options.items()}
    vision = vision_size(known, tokens=4)
    width, response = shape
    responses = more.get("responses", 1) if more.get("packed", True) else 1
    if stage == "guard" and more.get("joined"):
        response = -(-response // responses)
        prompt = width - (2 * responses - 1) * response - 1
    else:
        prompt = width - responses * response - (stage == "guard")
    return RunSettings(
        stage, BackboneOptions(known, **own), vision, text=prompt - 4, response=response, cpu=True, **more
    )


def planned(given) -> MemoryPlan:
    return Planner().plan(given)


def stage_module(stage, make, reads_tokens=False):
    head = {"head": EvidenceHead} if reads_tokens else {}
    if stage == "supervised":
        return SupervisedModule(make, optimizer=ADAMW)
    if stage == "reward":
        return RewardModule(make, BradleyTerry, optimizer=ADAMW, **head)
    if stage == "cost":
        return CostModule(make, COSTS, optimizer=ADAMW, **head)
    if stage == "guard":
        return GuardModule(make, categories=WORLD.categories, response_mixing=0.0, optimizer=ADAMW, **head)
    return PreferenceOptimisationModule(make, SafeDPO, optimizer=ADAMW)


def stage_data(stage, world, batch):
    if stage == "supervised":
        return SupervisedDataModule(str(world), train_split="supervised", batch_size=batch)
    kind = PreferenceDataModule
    return kind(str(world), batch_size=batch)


def policy_module(make, roles, samples, micro, critics):
    """A policy on modules of earlier stages."""
    own = (
        {"advantages": GAE}
        if critics
        else {"advantages": partial(GroupRelative, divide=False), "kl": KLPenalty(where="loss")}
    )
    return ConstrainedPolicyModule(
        make, roles, partial(FixedDual, budget=0.0, weight=1.0), samples=samples,
        sampling=SamplingOptions(max_new_tokens=12), update=UpdateSettings(micro_batch_size=micro, ptx_weight=0.0),
        start=StartSettings(prompts=2, labelled=0, min_sign_accuracy=0), optimizer=ADAMW, **own,
    )  # fmt: skip


def policy_data(world, batch):
    return PromptDataModule(str(world), batch_size=batch, eval_batch_size=batch)


def role_sources(make, shared):
    """Roles whose reward and cost models were built, not trained, and these."""
    scorers = {}
    for stage in ("reward", "cost"):
        scorers[stage] = stage_module(stage, make)
        scorers[stage].configure_model()
    return partial(SharedRoles if shared else SeparateRoles, **scorers), list(scorers.values())
