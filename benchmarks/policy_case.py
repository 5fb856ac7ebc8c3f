"""What ``policy_step.py`` measures: the network of the measurement, its batches, and the roles without run folders.

LLaVA with a 6-layer, 256-wide language model (2,048 words) and a 6-layer, 256-wide CLIP tower (168-pixel pictures, 144 image
tokens): 10.85 M parameters, random weights, float32.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from released_sequence import ReleasedStep, ScoreModel
from transformers import AutoConfig, CLIPImageProcessorPil, LlavaForConditionalGeneration

from safe_rlhf_v.dual import FixedDual
from safe_rlhf_v.models import HFVLM, ScalarHead
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.corpus_tokenizer import build_tokenizer
from safe_rlhf_v.models.hf_families import image_only_processor, save_processor
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.policy import ConstrainedPolicyModule
from safe_rlhf_v.policy.advantages import GAE
from safe_rlhf_v.policy.roles import SCORERS, SeparateRoles, frozen_module
from safe_rlhf_v.policy.settings import KLPenalty, ScoreSettings, StartSettings, UpdateSettings
from safe_rlhf_v.records.batches import PolicyBatch, Prompts

TOKENS, RESPONSES, LENGTHS = 64, 8, (16, 40)
WORDS = [f"w{i}" for i in range(2048 - 6 - 2)]  # six special tokens, two words of the template


def write_model(folder: Path) -> None:
    """The network of the measurement as a Hugging Face folder."""
    tokenizer: Any = build_tokenizer([*WORDS, "USER:", "ASSISTANT:"])
    tokenizer.image_token = "<image>"
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids["eos_token_id"] = tokenizer.eos_token_id
    size = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8}
    text = {
        "model_type": "llama",
        **size,
        "num_key_value_heads": 8,
        "intermediate_size": 688,
        "vocab_size": 2048,
        **ids,
    }
    vision = {"model_type": "clip_vision_model", **size, "intermediate_size": 1024, "image_size": 168, "patch_size": 14}
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = AutoConfig.for_model(
        "llava", text_config=text, vision_config=vision, image_token_id=image_id, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 168}, crop_size={"height": 168, "width": 168})
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    save_processor(image_only_processor(config, images, tokenizer, settings), folder)


def backbone(folder: Path, **options: Any) -> HFVLM:
    """The actor; it never ends a response."""
    made = HFVLM(str(folder), **options)
    made.banned_ids = (*made.banned_ids, made.eos_id)
    return made


def another(network: HFVLM, seed: int) -> HFVLM:
    """A network with the same tower and another language model."""
    made = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return made


class InMemoryRoles(SeparateRoles):
    """Six networks without run folders."""

    def __init__(self) -> None:
        super().__init__("", "")

    def create(self, actor: Backbone) -> None:
        self.reference = frozen_module(copy.deepcopy(actor))
        for i, name in enumerate(SCORERS):
            torch.manual_seed(i)
            scorer = another(actor, i)
            critic = copy.deepcopy(scorer)
            critic.freeze_unused_lm_head()
            self.add_module(f"{name}_critic", critic)
            self.add_heads(name, ScalarHead(scorer), critic.hidden_size)
            self.add_module(name, frozen_module(scorer))


def adapters_in_memory() -> Any:
    """As :class:`InMemoryRoles`, but one network with five adapters."""
    from safe_rlhf_v.models.adapters import DEFAULT, Adapter, keep_to_default
    from safe_rlhf_v.policy.shared_roles import SharedRoles

    class InMemoryAdapters(SharedRoles):
        def __init__(self) -> None:
            super().__init__("", "")

        def create(self, actor: Backbone) -> None:
            keep_to_default(actor)
            for i, role in enumerate((*SCORERS, *(f"{name}_critic" for name in self.critics))):
                actor.add_adapter(role)
                self.adapters[role] = Adapter(actor, role)
                torch.manual_seed(i % 2)
                for name, value in self.adapters[role].named_parameters():
                    torch.nn.init.normal_(value, std=0.02 if "lora_B" in name else 1 / value.shape[1] ** 0.5)
            for name in SCORERS:
                self.add_heads(name, ScalarHead(actor), actor.hidden_size)
            actor.requires_grad_(False)
            for trained in (Adapter(actor, DEFAULT), *(self.adapters[f"{name}_critic"] for name in self.critics)):
                trained.requires_grad_(True)

    return InMemoryAdapters


class Batches(pl.LightningDataModule):
    """Prompts in memory: random words, random pictures."""

    def __init__(self, steps: int, prompts: int) -> None:
        super().__init__()
        self.batches = [policy_batch(step, prompts) for step in range(steps)]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def first_prompts(self, count: int) -> list[PolicyBatch]:
        return self.batches[:1]

    def labelled(self, count: int) -> None:
        return None


def policy_batch(seed: int, prompts: int) -> PolicyBatch:
    """Questions whose lengths are spread evenly: their mean does not depend on how many there are."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(*LENGTHS, prompts).round().int().tolist()
    drawn = (torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths)
    images = [torch.randint(256, (168, 168, 3), generator=generator, dtype=torch.uint8) for _ in lengths]
    shown = Prompts(
        tuple((image,) for image in images),
        tuple((f"{seed}-{i}",) for i in range(prompts)),
        tuple(" ".join(WORDS[i] for i in row) for row in drawn),
    )
    keys = tuple(f"{seed}-{i}" for i in range(prompts))
    nothing = torch.full((prompts,), -1)
    return PolicyBatch(shown, nothing, (None,) * prompts, torch.ones(prompts, dtype=torch.bool), keys)


def policy_module(
    folder: Path, roles: Any, samples: int, micro: int | None = None, **backbone_options: Any
) -> ConstrainedPolicyModule:
    """The module with the released step's mathematics."""
    return ConstrainedPolicyModule(
        partial(backbone, folder, **backbone_options),
        roles,
        partial(FixedDual, budget=0.0, weight=1.0),
        advantages=partial(GAE, centre=False, whiten=False),
        samples=samples,
        sampling=SamplingOptions(max_new_tokens=TOKENS),
        kl=KLPenalty(0.02, where="both"),
        scores=ScoreSettings(normalise=False, clip=50.0, unfinished_penalty=0.0),
        update=UpdateSettings(reduction="sequence", ptx_weight=0.0, max_grad_norm=None, micro_batch_size=micro),
        start=StartSettings(prompts=1, labelled=0),
        optimizer=partial(torch.optim.Adam, lr=1e-5, fused=True),
    )


def released(folder: Path) -> tuple[ReleasedStep, HFVLM]:
    """The released step on the networks that :class:`InMemoryRoles` makes, and the owner of its processor."""
    actor, roles = backbone(folder), InMemoryRoles()
    roles.build(actor, True)
    scorers, critics = [], []
    for name in SCORERS:
        scorer = ScoreModel(roles.get_submodule(name).model)
        scorer.head.load_state_dict(roles.get_submodule(f"{name}_head").linear.state_dict())
        scorers.append(scorer)
        critic = ScoreModel(roles.get_submodule(f"{name}_critic").model)
        critic.head.load_state_dict(scorer.head.state_dict())
        critics.append(critic)
    step = ReleasedStep(
        actor.model,
        roles.reference.model,
        tuple(scorers),
        tuple(critics),
        new_tokens=TOKENS,
        banned=list(actor.banned_ids),
    )
    return step, actor


def ready(network: HFVLM, batch: PolicyBatch) -> dict[str, torch.Tensor]:
    """A batch as the released loader hands it over."""
    prepared = network.prepare(batch.prompts)
    mask = prepared.tokens.attention_mask.long()
    pixels = prepared.images.pixels["pixel_values"]
    return {"input_ids": prepared.tokens.input_ids, "attention_mask": mask, "pixel_values": pixels}
