"""Any Hugging Face image-text-to-text model as a backbone.

Images are encoded once and passed to the language model as features. Positions and, where needed, masks are always
explicit, so padding, packing and cached decoding do not change the results. Remote code is never run.

Shapes: B rows, L new tokens, S columns, M images, D hidden.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models import hf_masks as masks
from safe_rlhf_v.models.adapters import DEFAULT
from safe_rlhf_v.models.backbone import Backbone, context_length
from safe_rlhf_v.models.family_reports import family_report
from safe_rlhf_v.models.family_shrink import shrunk_config
from safe_rlhf_v.models.hf_build import build_network
from safe_rlhf_v.models.images import needs_padding, pad_to_square
from safe_rlhf_v.models.layout import PromptTokens, position_ids
from safe_rlhf_v.models.lora import LoraSettings, apply_lora, merged_state
from safe_rlhf_v.models.prompt_writer import PromptWriter
from safe_rlhf_v.models.quantization import (
    Quantization,
    as_plain_config,
    check_quantization,
    drop_storage,
    quantized_layers,
    settle,
)
from safe_rlhf_v.models.sources import StoredSources, plain_config, saved_files
from safe_rlhf_v.models.types import ImageFeatures, ImageInputs, TokenBatch
from safe_rlhf_v.records.batches import Prompts

_ROPE_FIELDS = ("position_t", "position_h", "position_w")
_PIXEL_SETTINGS = ("size", "crop_size", "image_mean", "image_std", "patch_size", "merge_size", "max_patches")
"""Settings of an image processor that decide what a network sees of a picture."""


class Conversation(NamedTuple):
    """A prompt before template and processor.

    Attributes:
        messages: (role, text, number of pictures, which stand before the text), control tokens in texts split.
        pictures: PIL pictures in their order, padded where the processor would crop them.
        special: Whether the tokenizer adds special tokens, since the template writes no token of the beginning.
    """

    messages: list[tuple[str, str, int]]
    pictures: list[Any]
    special: bool


class HFVLM(Backbone):
    """A model of ``AutoModelForImageTextToText``: LLaVA, LLaVA-NeXT, Qwen-VL, SmolVLM, Gemma 3, InternVL and others.

    ``ResponseStates.images`` is the mean of an image's tokens, as their number varies between families and pictures.

    YAML::

        backbone:
          class_path: safe_rlhf_v.models.HFVLM
          init_args:
            model: llava-hf/llava-1.5-7b-hf
            dtype: bfloat16
            lora: {r: 64, alpha: 128}
            max_length: 2048
            feature_cache: 512
    """

    def __init__(
        self,
        model: str | None = None,
        config: dict[str, Any] | str | None = None,
        processor: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        freeze_tower: bool = True,
        freeze_projector: bool = True,
        freeze_language: bool = False,
        lora: LoraSettings | None = None,
        max_length: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        feature_cache: int = 0,
        gradient_checkpointing: bool = False,
        quantization: Quantization | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        self_test: bool = True,
    ) -> None:
        """Load the network and its processor.

        Args:
            model: Hub name or local folder of the weights.
            config: Instead of ``model``: a config (``model_type`` and fields), hub name or folder for random weights.
            processor: Hub name or folder of processor and tokenizer; by default the source of the model or config.
            dtype: Dtype of the weights (rotary frequencies and adapters stay float32).
            freeze_tower: Do not train the vision tower.
            freeze_projector: Do not train the projector (connector, merger).
            freeze_language: Do not train the language model and the LM head.
            lora: Train low-rank adapters of the language model instead of its weights.
            max_length: Most tokens of prompt + response; a prompt is never truncated.
            min_pixels: Smallest area, in pixels, of a resized image (families with a pixel budget, such as Qwen-VL).
            max_pixels: Largest area, in pixels, of a resized image, likewise.
            feature_cache: Maximum number of images whose features are cached; 0 for no cache. Needs tower and projector
                frozen.
            gradient_checkpointing: Recompute activations in the backward pass.
            quantization: Store the frozen linear layers of the language model, but not its LM head, in 4 or 8 bits, with
                ``lora`` on top: ``nf4`` or ``int8`` (bitsandbytes), ``torchao_int8`` (torchao).
            revision: Hub revision of model, config and processor.
            local_files_only: Never use the network.
            self_test: Try what the method relies on with a small random copy of the network first: seconds, once per config.

        Raises:
            ValueError: If the settings contradict each other, the family is not supported, or its processor crops pictures.
        """
        super().__init__(feature_cache)
        if feature_cache and not (freeze_tower and freeze_projector):
            raise ValueError(
                "feature_cache needs freeze_tower and freeze_projector: true (else cached features get outdated)"
            )
        check_quantization(quantization, model, lora)
        hub = {"revision": revision, "local_files_only": local_files_only}
        self.model = build_network(model, config, getattr(torch, dtype), hub, quantization)
        self.base = f"{model}@{revision}" if model and revision else model
        families.check_supported(self.model)
        source = processor or model or config
        if not isinstance(source, str):
            raise ValueError("processor: name a hub model or folder; a bare config has no tokenizer")
        self.processor = families.load_processor(source, self.model.config, min_pixels, max_pixels, **hub)
        self.max_length = max_length
        self._freezing = (freeze_tower, freeze_projector, freeze_language)
        self._assemble(lora)
        self.family_report = family_report(self) if self_test else None
        if gradient_checkpointing:
            families.enable_checkpointing(self.model)

    def _assemble(self, lora: LoraSettings | None) -> None:
        """What follows from network and processor."""
        self._pads = needs_padding(self.processor)
        self.tokenizer = self.processor.tokenizer
        self._writer = PromptWriter(self.processor, self.model.config, self.model.generation_config)
        self.banned_ids = self._writer.banned_ids
        self.hidden_size = int(self.model.config.get_text_config().hidden_size)
        self.context_length = context_length(self.model.config.get_text_config())
        self.image_shape = (1, self.hidden_size)
        self._image_id = int(self.model.config.image_token_id)
        self.packs = families.packs(self.model.config)
        self._freeze(*self._freezing, lora)

    def small_copy(self, narrow: bool) -> Self:
        """A backbone of the same family, processor and settings whose network is small and random; see :mod:`family_check`.

        Args:
            narrow: Also use fewer heads in its language model.
        """
        from transformers import AutoModelForImageTextToText

        copy = type(self).__new__(type(self))
        Backbone.__init__(copy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = shrunk_config(self.model.config, narrow)
            copy.model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        copy.model.generation_config = self.model.generation_config
        copy.base = None
        copy.processor = self.processor
        copy.max_length = None
        copy._freezing = self._freezing
        copy._assemble(self.lora)
        return copy.eval()

    def _freeze(self, tower: bool, projector: bool, language: bool, lora: LoraSettings | None) -> None:
        if quantized_layers(self.model):
            settle(self.model, self.language_model)
            self.register_state_dict_post_hook(drop_storage)  # type: ignore[no-untyped-call]  # torch gives it no types
        frozen = {"tower": tower, "projector": projector, "language": language or lora is not None}
        recognised = set()
        for name, parameter in self.model.named_parameters():
            part = families.part_of(name)
            recognised.add(part)
            parameter.requires_grad_(not frozen[part])
        missing = [part for part in ("tower", "projector") if not frozen[part] and part not in recognised]
        if missing:
            raise ValueError(
                f"freeze_{missing[0]}: false would train nothing: no {missing[0]} is recognised in model_type "
                f"{self.model.config.model_type!r}; leave it frozen"
            )
        self._frozen_vision = tower and projector
        self.lora = lora
        if lora is not None:
            self.add_adapter(DEFAULT)

    def add_adapter(self, name: str) -> None:
        """See :meth:`Backbone.add_adapter`."""
        if self.lora is None:
            return super().add_adapter(name)
        return apply_lora(self.language_model, self.lora, name)

    @property
    def language_model(self) -> nn.Module:
        """The decoder, without LM head."""
        decoder: nn.Module = self.model.model.get_decoder()
        return decoder

    @property
    def eos_id(self) -> int:
        """Id of the end token: what the chat template writes after a response, if the model stops on it."""
        return self._writer.end_id

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """See :attr:`Backbone.prompt_settings`."""
        pixels = {k: v for k, v in self.processor.image_processor.to_dict().items() if k in _PIXEL_SETTINGS}
        return {"chat": self._writer.form, "end_id": self.eos_id, **pixels}

    @property
    def lm_head(self) -> nn.Module:
        """The model's output embeddings."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, ImageInputs]:
        """Chat template and processor, row by row and without padding."""
        ids: list[list[int]] = []
        image_prompt: list[int] = []
        fields: dict[str, list[list[int]]] = {}
        pixels: list[dict[str, Tensor]] = []
        for p, (row, question, context) in enumerate(
            zip(prompts.images, prompts.questions, prompts.contexts, strict=True)
        ):
            tokens, tensors = self._process(self._writer.write(question, len(row), context), row)
            grids = [image["image_grid_thw"] for image in tensors if "image_grid_thw" in image]
            joint = torch.cat(grids) if grids else None
            for name, value in families.rope_fields(self.model.model, tokens, self._image_id, joint).items():
                fields.setdefault(name, []).append(value)
            ids.append(tokens)
            image_prompt += [p] * len(row)
            pixels += tensors
        names = tuple(
            families.feature_key(name, tensors)
            for name, tensors in zip((name for row_ids in prompts.image_ids for name in row_ids), pixels, strict=True)
        )
        tokens_of = PromptTokens(ids, image_prompt, fields, dict.fromkeys(fields, 0))
        return tokens_of, ImageInputs(families.stack_images(pixels), names)

    def _process(self, text: str, row: tuple[Tensor, ...]) -> tuple[list[int], list[dict[str, Tensor]]]:
        """Token ids of one prompt, placeholders expanded, and the tensors of each of its images."""
        joint, pictures = self._processed(text, row)
        tokens = [int(i) for i in joint["input_ids"][0]]
        if tokens[-1] == self.tokenizer.eos_token_id:  # some tokenizers append it to every text
            tokens.pop()
        if len(pictures) <= 1:
            return tokens, [families.image_tensors(joint) for _ in pictures]
        mark = self.processor.image_token
        alone = (self.processor(text=[mark], images=[picture], return_tensors="pt") for picture in pictures)
        return tokens, families.images_of_prompt(joint, alone)

    def _processed(self, text: str, row: tuple[Tensor, ...]) -> tuple[Any, list[Any]]:
        """The processor's output for one prompt, and its pictures as they were handed over."""
        pictures = self._pictures(row)
        images = [pictures] if pictures else None  # in a list of their own: some families look at their number
        special = self._adds_special_tokens(text)
        return self.processor(text=[text], images=images, add_special_tokens=special, return_tensors="pt"), pictures

    def _pictures(self, row: tuple[Tensor, ...]) -> list[Any]:
        from PIL import Image

        pictures = [Image.fromarray(image.cpu().numpy()) for image in row]
        return [pad_to_square(picture, self.processor) for picture in pictures] if self._pads else pictures

    def _adds_special_tokens(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)  # some templates write it

    def conversation(self, prompts: Prompts, row: int) -> Conversation:
        """One prompt for a program that applies template and processor itself.

        Args:
            prompts: B prompts.
            row: Which of them.
        """
        question = prompts.questions[row]
        images = prompts.images[row]
        context = prompts.contexts[row]
        text = self._writer.write(question, len(images), context)
        messages = self._writer.messages(question, len(images), context)
        return Conversation(messages, self._pictures(images), self._adds_special_tokens(text))

    def plain_inputs(self, prompts: Prompts) -> dict[str, Tensor]:
        """What transformers' own forward pass and ``generate`` take for a single prompt: token ids and pixels."""
        text = self._writer.write(prompts.questions[0], len(prompts.images[0]), prompts.contexts[0])
        return dict(self._processed(text, prompts.images[0])[0])

    def encode(self, images: ImageInputs) -> ImageFeatures:
        """Tower and projector, without a graph when both are frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen_vision):
            features = families.encode_images(self.model.model, images)
        if not self._cache_size:
            return features
        # Clones, because a cached slice would hold the memory of its whole batch.
        levels = tuple(tuple(level.clone() for level in image) for image in features.levels)
        return ImageFeatures(tuple(tokens.clone() for tokens in features.tokens), levels)

    def new_cache(self, room: int) -> Any:
        """See :meth:`Backbone.new_cache`; layers that carry a state keep it in a cache that the config describes."""
        from safe_rlhf_v.models.cache import decoding_cache

        return decoding_cache(room, None if families.packs(self.model.config) else self.model.config.get_text_config())

    def select_images(self, images: ImageInputs, index: list[int]) -> ImageInputs:
        """The images at ``index``."""
        return families.select_images(images, index)

    def positions(self, tokens: TokenBatch) -> Tensor:
        """Position ids (B, S), or (3, B, S) for multi-axis rotary embeddings.

        A response continues after the prompt's largest position.
        """
        plain = position_ids(tokens)  # (B, S)
        if not all(name in tokens.extras for name in _ROPE_FIELDS):
            return plain
        axes = torch.stack([tokens.extras[name] for name in _ROPE_FIELDS])  # (3, B, S), 0 outside the prompt
        shift = axes.amax((0, 2)) + 1 - (tokens.segments == 0).sum(1)  # (B,)
        return torch.where(tokens.segments > 0, plain + shift[:, None], axes)

    def visibility(self, tokens: TokenBatch) -> Tensor:
        """(B, 1, S, S) bool mask of a packed batch, image blocks included where the family has them."""
        seen = super().visibility(tokens)
        if masks.sees_images_both_ways(self.model):
            seen = seen | masks.image_blocks(tokens.input_ids, self._image_id)[:, None]
        return seen

    def trunk(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        features: ImageFeatures | None,
        extras: dict[str, Tensor],
        cache: Any | None = None,
    ) -> Tensor:
        """(B, L, D) hidden states after the final norm; see :meth:`Backbone.trunk`. ``extras`` is not needed."""
        has_images = features is not None and len(features.tokens) > 0
        out = self.model.model(
            input_ids=input_ids,
            attention_mask=masks.attention_masks(self.model, input_ids, attention_mask, cache),
            position_ids=positions,
            mm_encoder_outputs=families.encoder_outputs(features) if features is not None and has_images else None,
            **families.cache_arguments(self.model.model, cache),
        )
        states: Tensor = out.last_hidden_state
        return states

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen vision parts stay in evaluation mode."""
        super().train(mode)
        for part in self.model.model.children():
            if part is not self.model.model.get_decoder() and not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move rotary frequencies, but never cast them: bfloat16 is too coarse for positions."""
        frequencies = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and name.endswith("inv_freq") and not buffer.is_meta
        ]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        for module, name, buffer in frequencies:
            moved = module._buffers[name]
            assert moved is not None
            module._buffers[name] = buffer.to(moved.device)
        return self

    def stored_sources(self) -> StoredSources:
        """See :meth:`Reader.stored_sources`: processor and tokenizer, and the config if no weights are named."""
        options = {} if self.base else {"config": plain_config(self.model.config)}
        return StoredSources(
            options, {"processor": saved_files(lambda folder: families.save_processor(self.processor, folder))}
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face folder that ``model: folder`` loads; adapters are merged into the weights."""
        folder = Path(folder)
        if not quantized_layers(self.model):
            self.model.save_pretrained(folder, state_dict=merged_state(self.model) if self.lora else None)
        else:
            with torch.device("meta"):  # its shapes only: the model itself would be written as it is stored
                plain = type(self.model)._from_config(as_plain_config(self.model.config), dtype=self.model.dtype)
            plain.generation_config = self.model.generation_config
            plain.save_pretrained(folder, state_dict=merged_state(self.model))
        families.save_processor(self.processor, folder)
