"""A LLaVA-like backbone: an open_clip tower, a projector and any causal decoder (LLaVA, arXiv 2304.08485).

Shapes: B rows, S columns, M images, P image tokens, D hidden.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.adapters import DEFAULT
from safe_rlhf_v.models.backbone import Backbone, context_length
from safe_rlhf_v.models.clip_pair import without_weights
from safe_rlhf_v.models.clip_parts import (
    SETTINGS_FILE,
    build_decoder,
    build_projector,
    chat_writer,
    placeholder_tokenizer,
    prompt_template,
    saved_settings,
)
from safe_rlhf_v.models.decoder_check import decoder_abilities
from safe_rlhf_v.models.hf_families import cache_arguments
from safe_rlhf_v.models.images import fit_square
from safe_rlhf_v.models.layout import PromptTokens
from safe_rlhf_v.models.lora import LoraSettings, apply_lora, merged_state
from safe_rlhf_v.models.plain_inputs import chat_ids, template_ids
from safe_rlhf_v.models.sources import StoredSources, plain_config, saved_files
from safe_rlhf_v.models.tower import SlotResampler, SlotSettings, Tower, TowerSettings
from safe_rlhf_v.models.types import ImageFeatures, ImageInputs
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts


class ClipDecoder(Backbone):
    """A LLaVA-like model: projected tower tokens replace the image placeholder in the prompt.

    YAML::

        backbone:
          class_path: safe_rlhf_v.models.ClipDecoder
          init_args:
            tokenizer: data/world/tokenizer
            tower: {vision_cfg: {layers: [1, 1, 1, 1], width: 16, image_size: 64}}
            decoder: {model_type: llama, hidden_size: 128, num_hidden_layers: 2}
    """

    images_at_once = 8  # all pixels of a tower have one shape

    def __init__(
        self,
        tokenizer: str,
        tower: TowerSettings,
        decoder: str | dict[str, Any],
        slots: SlotSettings | None = None,
        template: str | None = None,
        projector_layers: int = 2,
        freeze_tower: bool = True,
        freeze_projector: bool = False,
        freeze_decoder: bool = False,
        lora: LoraSettings | None = None,
        max_length: int | None = None,
        feature_cache: int = 0,
        gguf_file: str | None = None,
        dtype: str = "float32",
    ) -> None:
        """Build tower, projector and decoder.

        Args:
            tokenizer: Folder or hub name of a Hugging Face tokenizer, or the path of a GGUF file that holds one.
            tower: The vision tower.
            decoder: A causal language model by hub name or folder, or its config (``model_type``, ...) for random weights.
            slots: Resample the tower's tokens to a few (for tiny models); ``None`` keeps them all.
            template: ``None`` for the tokenizer's own chat template (without one: ``<bos> <image> {question} <answer>`` if it
                was built from a corpus, else as LLaVA-1.5 does). Or a text with places for ``<image>`` and ``{question}``;
                earlier turns are written so, too, each with its response and the end token, behind the system text.
            projector_layers: 1 for a linear projector, 2 for the two-layer GELU projector of LLaVA-1.5.
            freeze_tower: Do not train tower and resampler; their features can then be cached.
            freeze_projector: Do not train the projector.
            freeze_decoder: Do not train the decoder (its LoRA adapters are trained nevertheless).
            lora: Train low-rank adapters of the decoder instead of its weights.
            max_length: Maximum number of tokens of prompt + response.
            feature_cache: Maximum number of images whose features are cached; 0 for no cache. Needs ``freeze_tower``.
            gguf_file: Name of a GGUF file inside ``decoder``.
            dtype: Dtype of the decoder's weights.

        Raises:
            ValueError: If the template lacks a part, features of a trained tower would be cached, or the decoder is one that
                would be read wrongly (:mod:`~safe_rlhf_v.models.decoder_check`).
        """
        super().__init__(feature_cache)
        self.freeze_tower = freeze_tower
        if feature_cache and not freeze_tower:
            raise ValueError("feature_cache needs freeze_tower: true (features of a tower in training get outdated)")
        self.tokenizer, self.image_id = placeholder_tokenizer(tokenizer)
        self.template = prompt_template(self.tokenizer, template)
        self.max_length = max_length
        self._settings = {
            "slots": asdict(slots) if slots else None,
            "template": self.template,
            "projector_layers": projector_layers,
            "max_length": max_length,
        }
        self.tower = Tower(tower)
        self.resampler = SlotResampler(slots, self.tower.shape) if slots else None
        self.image_shape = self.resampler.shape if self.resampler else self.tower.shape
        self.decoder = build_decoder(decoder, len(self.tokenizer), gguf_file, getattr(torch, dtype))
        self.packs, self._own_cache = decoder_abilities(self.decoder.config)
        self.hidden_size = int(self.decoder.config.hidden_size)
        self.context_length = context_length(self.decoder.config)
        self.projector = build_projector(self.image_shape[1], self.hidden_size, projector_layers)
        self._writer = chat_writer(self.tokenizer, self.decoder) if self.template is None else None
        self.banned_ids = self._banned()
        self._freeze(freeze_projector, freeze_decoder)
        self.lora = lora
        if lora is not None:
            self.decoder.requires_grad_(False)
            self.add_adapter(DEFAULT)
        self.train()

    @property
    def eos_id(self) -> int:
        """Id of the end token: what the chat template writes after a response, if the decoder stops on it."""
        return int(self.tokenizer.eos_token_id) if self._writer is None else self._writer.end_id

    def _banned(self) -> tuple[int, ...]:
        """Special tokens but the end token, placeholders, and with a chat template rows that the tokenizer does not use."""
        specials = set(self.tokenizer.all_special_ids) - {self.eos_id}
        more = () if self._writer is None else self._writer.banned_ids
        return tuple(sorted(specials | {self.image_id, *more}))

    def add_adapter(self, name: str) -> None:
        """See :meth:`Backbone.add_adapter`."""
        if self.lora is None:
            return super().add_adapter(name)
        return apply_lora(self.language_model, self.lora, name)  # not to the LM head, which scorers never run

    @property
    def language_model(self) -> nn.Module:
        """The decoder, without LM head."""
        base: nn.Module = self.decoder.base_model
        return base

    def _freeze(self, projector: bool, decoder: bool) -> None:
        for module, frozen in (
            (self.tower, self.freeze_tower),
            (self.resampler, self.freeze_tower),
            (self.projector, projector),
            (self.decoder, decoder),
        ):
            if frozen and module is not None:
                module.requires_grad_(False)

    def train_only_vision(self, tower: bool = True) -> None:
        """Train tower and resampler, or the resampler alone (their pretraining); features are no longer cached.

        Raises:
            ValueError: If nothing is left to train.
        """
        if not tower and self.resampler is None:
            raise ValueError(
                "train_tower: false leaves nothing to train: give the backbone slots, a resampler's settings"
            )
        self.freeze_tower = not tower
        self._cache_size = 0
        self.requires_grad_(False)
        if tower:
            self.tower.requires_grad_(True)
        if self.resampler is not None:
            self.resampler.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen tower stays in evaluation mode (its batch norms must not change)."""
        super().train(mode)
        if self.freeze_tower:
            self.tower.eval()
        return self

    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, ImageInputs]:
        """Fill the template, turn by turn; an image becomes P placeholders, a prompt without images has none."""
        ids: list[list[int]] = []
        image_prompt: list[int] = []
        pixels: list[Tensor] = []
        image_ids: list[str] = []
        for p, (row, names) in enumerate(zip(prompts.images, prompts.image_ids, strict=True)):
            ids.append(self._conversation_ids(prompts.contexts[p], prompts.turns(p)))
            image_prompt += [p] * len(row)
            pixels += [fit_square(image, self.tower.image_size) for image in row]
            image_ids += names
        size = self.tower.image_size
        stacked = torch.stack(pixels) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8)
        return PromptTokens(ids, image_prompt), ImageInputs({"pixels": stacked}, tuple(image_ids))

    def _conversation_ids(self, context: Context, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a prompt; texts are inserted as plain text, so that none can add a placeholder or an end token."""
        if self._writer is not None:
            text = self._writer.write(turns[-1].text, sum(turn.images for turn in turns), context)
            return chat_ids(self.tokenizer, self.prompt_form, text)
        return template_ids(self.prompt_form, context.system, turns, self._encode, self.text_ids)

    @property
    def prompt_form(self) -> dict[str, Any]:
        """How prompts are written, as :mod:`~safe_rlhf_v.models.plain_inputs` reads it."""
        return {
            "template": self.template,
            "chat": None if self._writer is None else self._writer.form,
            "bos": self.tokenizer.bos_token,
            "image_id": self.image_id,
            "image_tokens": self.image_shape[0],
            "end_id": self.eos_id,
        }

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """See :attr:`Backbone.prompt_settings`."""
        return {**self.prompt_form, "image_size": self.tower.image_size}

    @cached_property
    def _pieces(self) -> dict[str, list[int]]:
        """Token ids of the template's pieces: there are few of them, and every prompt has them."""
        return {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        return self._pieces[text]

    def encode(self, images: ImageInputs) -> ImageFeatures:
        """Run tower and resampler, without the projector."""
        if not images.ids:  # some towers fail on an empty batch
            return ImageFeatures((), ())
        tokens = self.tower(images.pixels["pixels"])  # (M, P, C)
        if self.resampler is not None:
            tokens = self.resampler(tokens)
        return ImageFeatures(tuple(tokens.unbind(0)), ((),) * len(tokens))

    def trunk(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        features: ImageFeatures | None,
        extras: dict[str, Tensor],
        cache: Any | None = None,
    ) -> Tensor:
        """(B, L, D) hidden states of the decoder after its final norm."""
        embeddings = self.decoder.get_input_embeddings()(input_ids)  # (B, L, D)
        if features is not None and features.tokens:
            projected = self.projector(torch.cat(features.tokens)).to(embeddings.dtype)  # (E * P, D)
            here = input_ids == self.image_id
            on_cpu = here.device.type == "cpu"  # an accelerator would wait for the answer
            if on_cpu and int(here.sum()) != len(projected):
                raise ValueError(f"{int(here.sum())} placeholders for {len(projected)} tokens of pictures")
            place = here[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(place, projected)
        out = self.decoder.base_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask if attention_mask.dim() == 4 else attention_mask.long(),
            position_ids=positions,
            **cache_arguments(self.decoder.base_model, cache),
        )
        states: Tensor = out.last_hidden_state
        return states

    def new_cache(self, room: int) -> Any:
        """See :meth:`Backbone.new_cache`; layers that carry a state keep it in a cache that the config describes."""
        from safe_rlhf_v.models.cache import decoding_cache

        return decoding_cache(room, self.decoder.config if self._own_cache else None)

    @property
    def lm_head(self) -> nn.Module:
        """The decoder's output embeddings."""
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def stored_sources(self) -> StoredSources:
        """See :meth:`Reader.stored_sources`: the tokenizer, and the shapes of tower and decoder, without their weights."""
        tower = without_weights(self.tower.settings, self.tower.visual)
        options = {"tower": tower, "decoder": plain_config(self.decoder.config), "gguf_file": None}
        return StoredSources(options, {"tokenizer": saved_files(self.tokenizer.save_pretrained)})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``decoder/`` and ``tokenizer/`` as Hugging Face folders, the rest as safetensors; adapters are merged."""
        from safetensors.torch import save_file

        folder = Path(folder)
        self.decoder.save_pretrained(folder / "decoder", state_dict=merged_state(self.decoder))
        self.tokenizer.save_pretrained(folder / "tokenizer")
        rest = {k: v.contiguous() for k, v in self.state_dict().items() if not k.startswith("decoder.")}
        save_file(rest, folder / "vision.safetensors")
        tower = without_weights(self.tower.settings, self.tower.visual)  # with the pixels' mean and std of its weights
        (folder / SETTINGS_FILE).write_text(json.dumps({"tower": tower, **self._settings}, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Build the model that :meth:`save_pretrained` wrote.

        Args:
            folder: A folder written by :meth:`save_pretrained`.
            options: Constructor arguments that do not change the weights' shapes (``freeze_tower``, ``lora``, ...).

        Raises:
            ValueError: If the folder was not written by :meth:`save_pretrained`.
        """
        model = cls(**{**saved_settings(folder), **options})
        model.load_vision(folder)
        return model

    def load_vision(self, folder: str | Path) -> None:
        """Load everything but the decoder from a folder written by :meth:`save_pretrained`; it becomes the base.

        Raises:
            ValueError: If the folder holds other tensors.
        """
        from safetensors.torch import load_file

        weights = load_file(Path(folder) / "vision.safetensors")
        different = {k for k in self.state_dict() if not k.startswith("decoder.")} ^ set(weights)
        if different:
            raise ValueError(f"{folder}: vision.safetensors and its settings differ in {sorted(different)[:3]}")
        self.load_state_dict(weights, strict=False)
        self.base = str(folder)


class SavedClipDecoder(ClipDecoder):
    """A :class:`ClipDecoder` from a folder that ``save_pretrained`` wrote; checkpoints omit the folder's frozen tensors.

    YAML::

        backbone:
          class_path: safe_rlhf_v.models.SavedClipDecoder
          init_args:
            folder: runs/quickstart/base
            lora: {r: 16, alpha: 32}
    """

    def __init__(
        self,
        folder: str,
        lora: LoraSettings | None = None,
        freeze_tower: bool = True,
        freeze_projector: bool = True,
        freeze_decoder: bool = False,
        max_length: int | None = None,
        feature_cache: int = 0,
        dtype: str = "float32",
    ) -> None:
        """Build the model and load its weights from the folder.

        Args:
            folder: A folder written by ``save_pretrained``.
            lora: Train low-rank adapters of the decoder instead of its weights.
            freeze_tower: Do not train tower and resampler; their features can then be cached.
            freeze_projector: Do not train the projector.
            freeze_decoder: Do not train the decoder (its LoRA adapters are trained nevertheless).
            max_length: Maximum number of tokens of prompt + response; ``None`` for the folder's value.
            feature_cache: Maximum number of images whose features are cached; 0 for no cache. Needs ``freeze_tower``.
            dtype: Dtype of the decoder's weights.

        Raises:
            ValueError: If the folder was not written by ``save_pretrained``.
        """
        settings = saved_settings(folder)
        super().__init__(
            **{**settings, "max_length": max_length or settings["max_length"]},
            freeze_tower=freeze_tower,
            freeze_projector=freeze_projector,
            freeze_decoder=freeze_decoder,
            lora=lora,
            feature_cache=feature_cache,
            dtype=dtype,
        )
        self.load_vision(folder)

    def stored_sources(self) -> StoredSources:
        """Nothing, because the folder is the base, tokenizer included."""
        return StoredSources({}, {})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """See :meth:`ClipDecoder.from_pretrained`."""
        return cls(str(folder), **options)
