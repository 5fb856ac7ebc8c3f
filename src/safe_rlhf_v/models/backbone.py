"""The interface of a vision-language backbone, with everything that does not depend on the model family.

A family (``clip_decoder.py``, ``hf_vlm.py``) tokenises prompts, encodes images and runs its trunk; layout, caching,
gathering and log-probabilities are implemented here. Full-vocabulary logits are never built for more positions than needed.

Shapes: B rows, S columns, N responses, R response tokens, D hidden, M images, P image tokens, V vocabulary.
"""

from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safe_rlhf_v.functional.language import token_log_probs
from safe_rlhf_v.models.layout import PaddingSide, PromptTokens, layout, position_ids, visibility
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.plain_inputs import plain_text_ids
from safe_rlhf_v.models.reader import Reader, row_by_row
from safe_rlhf_v.models.sharding import is_sharded
from safe_rlhf_v.models.types import ImageFeatures, ImageInputs, ResponseStates, TokenBatch
from safe_rlhf_v.records.batches import Prompts


class Prepared(NamedTuple):
    """Inputs of one forward: token rows and the images they refer to.

    Attributes:
        tokens: N responses, prompt by prompt.
        images: Images of the prompts.
        truncated: (N,) bool, the response did not fit into ``max_length``.
        same: (B,) bool, the prompt's responses have the same tokens, which truncation can cause.
    """

    tokens: TokenBatch
    images: ImageInputs
    truncated: Tensor
    same: Tensor


class Backbone(Reader):
    """A vision-language model, as scorers, policies and guards use it.

    Attributes:
        tokenizer: The Hugging Face tokenizer.
        hidden_size: D.
        image_shape: (P, D_image) of ``ResponseStates.images``; P = 1 (mean-pooled) where the number of tokens varies.
        banned_ids: Token ids that must never be sampled (image placeholders, padding, ...).
        max_length: Maximum number of tokens of prompt + response; ``None`` for no limit.
        context_length: Number of positions of the network; ``None`` if its config does not state it.
        base: The pretrained model (hub name and revision, or folder) from which every frozen tensor can be rebuilt;
            ``None`` if there is none. Checkpoints omit those tensors.
        lora: Settings of its adapters; ``None`` without adapters.
        packs: Whether several responses can stand behind one prompt in a row without changing one another; where they cannot,
            each stands in a row of its own, whatever is asked for.
        images_at_once: Number of images that the tower encodes together to fill the cache; 1 where their shapes differ.
    """

    banned_ids: tuple[int, ...]
    lora: LoraSettings | None = None
    images_at_once: int = 1
    packs: bool = True

    def __init__(self, feature_cache: int = 0) -> None:
        """Create the feature cache.

        Args:
            feature_cache: Maximum number of images whose features are cached (0 for no cache); only for a frozen tower.
        """
        super().__init__()
        if feature_cache < 0:
            raise ValueError(f"feature_cache is {feature_cache}; it must be at least 0 (none)")
        self._cache: OrderedDict[str, tuple[Tensor, tuple[Tensor, ...]]] = OrderedDict()
        self._cache_size = feature_cache

    # --- implemented by a family ------------------------------------------------------------------------------------

    @abstractmethod
    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, ImageInputs]:
        """Tokenise prompts (chat template, placeholders expanded, no end token) and preprocess their images."""

    @abstractmethod
    def encode(self, images: ImageInputs) -> ImageFeatures:
        """Run the tower; no cache."""

    @abstractmethod
    def trunk(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        features: ImageFeatures | None,
        extras: dict[str, Tensor],
        cache: Any | None = None,
    ) -> Tensor:
        """(B, L, D) hidden states after the final norm, without the LM head.

        Args:
            input_ids: (B, L) new tokens.
            attention_mask: (B, S) bool over cached + new tokens, or (B, 1, L, S) bool where True may be read.
            positions: Position ids of the new tokens, from :meth:`positions`.
            features: Features of every image placement, in the order of their placeholders in ``input_ids``, row by row;
                ``None`` without images.
            extras: ``TokenBatch.extras``.
            cache: A transformers ``Cache`` to read and extend, or ``None``.
        """

    @property
    @abstractmethod
    def lm_head(self) -> nn.Module:
        """Maps (..., D) to (..., V) logits."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors), config and tokenizer as plain files."""

    @property
    def language_model(self) -> nn.Module | None:
        """The network whose blocks strategies shard, because every forward pass runs them; ``None`` if there is none."""
        return None

    def positions(self, tokens: TokenBatch) -> Tensor:
        """Position ids (B, S), or (3, B, S) for families with multi-axis rotary embeddings."""
        return position_ids(tokens)

    def new_cache(self, room: int) -> Any:
        """An empty key-value cache for a prompt and ``room`` tokens behind it."""
        from safe_rlhf_v.models.cache import decoding_cache  # loads transformers

        return decoding_cache(room)

    def visibility(self, tokens: TokenBatch) -> Tensor:
        """(B, 1, S, S) bool mask of a packed batch."""
        return visibility(tokens)

    @property
    def prompt_settings(self) -> dict[str, Any]:
        """What decides the tokens and pixels of a prompt beside the tokenizer, as plain values; {} if it is not known."""
        return {}

    def freeze_unused_lm_head(self) -> None:
        """Freeze the LM head of models that never run it: plain DDP would wait for its gradient.

        Weights that it shares with the input embeddings stay trainable.
        """
        uses = Counter(id(parameter) for _, parameter in self.named_parameters(remove_duplicate=False))
        for parameter in self.lm_head.parameters():
            if uses[id(parameter)] == 1:
                parameter.requires_grad_(False)

    def add_adapter(self, name: str) -> None:
        """Add one more adapter beside ``default``: trainable, with the same settings, zero-initialised and not active.

        Raises:
            ValueError: If the backbone has no adapters.
        """
        raise ValueError(f"{type(self).__name__} has no adapters: give it lora settings")

    # --- the same for all families ----------------------------------------------------------------------------------

    def prepare(
        self,
        prompts: Prompts,
        responses: Sequence[Sequence[str]] | None = None,
        *,
        packed: bool = False,
        side: PaddingSide = "right",
    ) -> Prepared:
        """Tokenise prompts and responses into one batch, on the CPU.

        Args:
            prompts: B prompts.
            responses: Per prompt its K responses; ``None`` prepares for generation (left-padded prompts).
            packed: One row per prompt instead of one per response, if the network :attr:`packs`.
            side: Padding side.

        Raises:
            RefusedRows: Naming the rows that cannot be prepared: the processor refuses the picture or the text, or a prompt
                alone is longer than ``max_length`` (a prompt is never truncated).
        """

        def tokenise(
            prompts: Prompts, responses: Sequence[Sequence[str]] | None
        ) -> tuple[PromptTokens, ImageInputs, list[list[list[int]]]]:
            tokens, images = self.prepare_prompts(prompts)
            for ids in tokens.ids:
                self.room(len(ids))  # refuses prompts that leave no room
            texts = [()] * len(tokens.ids) if responses is None else responses
            return tokens, images, [[[*self.text_ids(text), self.eos_id] for text in row] for row in texts]

        prompt_tokens, images, full_ids = row_by_row(tokenise, prompts, responses)
        response_ids: list[list[list[int]]] = []
        truncated: list[bool] = []
        for prompt, full in zip(prompt_tokens.ids, full_ids, strict=True):
            room = self.room(len(prompt))
            response_ids.append([ids[:room] for ids in full])
            truncated += [room is not None and len(ids) > room for ids in full]
        same = [len(row) > 1 and all(ids == row[0] for ids in row) for row in response_ids]
        side = "left" if responses is None else side
        packed = packed and self.packs
        tokens = layout(prompt_tokens, response_ids, pad_id=self.pad_id, packed=packed, side=side)
        return Prepared(tokens, images, torch.tensor(truncated, dtype=torch.bool), torch.tensor(same, dtype=torch.bool))

    def checked_prompts(self, prompts: Prompts) -> tuple[PromptTokens, ImageInputs]:
        """:meth:`prepare_prompts`, for prompts that a policy will respond to.

        Raises:
            RefusedRows: Naming the rows that the processor refuses, or that leave no room for a response.
        """

        def tokenise(prompts: Prompts, _: Any) -> tuple[PromptTokens, ImageInputs]:
            tokens, images = self.prepare_prompts(prompts)
            for ids in tokens.ids:
                self.room(len(ids))
            return tokens, images

        return row_by_row(tokenise, prompts)

    @property
    def pad_id(self) -> int:
        """Token id of padding, which is never attended to."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def eos_id(self) -> int:
        """Token id that ends every complete response."""
        return int(self.tokenizer.eos_token_id)

    def response_ids(self, text: str, prompt_length: int = 0) -> list[int]:
        """Token ids of a response with exactly one end token, truncated (losing the end token) at ``max_length``.

        Special tokens spelled out in ``text`` are plain text: a response cannot hold a placeholder or an early end.

        Raises:
            ValueError: If ``max_length`` leaves no room for a single response token.
        """
        return [*self.text_ids(text), self.eos_id][: self.room(prompt_length)]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text that is only text: a special token spelled out in it never becomes one."""
        return plain_text_ids(self.tokenizer, text, self.never_in_text)

    @property
    def never_in_text(self) -> set[int]:
        """Ids that no text may have, spelled out or not."""
        return {*self.tokenizer.all_special_ids, *self.banned_ids, self.eos_id} - {self.tokenizer.unk_token_id}

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of prompt and response: ``max_length`` or the network's positions; ``None`` for no limit."""
        limits = [length for length in (self.max_length, self.context_length) if length is not None]
        return min(limits, default=None)

    def room(self, prompt_length: int) -> int | None:
        """Maximum number of response tokens after a prompt of that length, ``None`` for no limit.

        Raises:
            ValueError: If not even one response token fits.
        """
        limit = self.most_tokens
        if limit is None:
            return None
        room = limit - prompt_length
        if room < 1:
            if self.max_length == limit:
                what = f"max_length is {self.max_length}"
                hint = "raise max_length"
            else:
                what = f"the network has {self.context_length} positions"
                hint = "use a network with more"
            raise ValueError(
                f"a prompt has {prompt_length} tokens and {what}: prompts are never truncated; {hint} or lower the image's "
                "pixel budget"
            )
        return room

    def encode_images(self, images: ImageInputs) -> ImageFeatures:
        """Features of every image, from the cache where possible.

        Images that are not cached are encoded in groups of ``images_at_once``, the last group filled up: the last bit of a
        feature depends on the shape of the batch it was computed in, and a resumed run reads its images in other batches than
        the run that filled the cache.
        """
        if not self._cache_size:
            return self.encode(images)
        missing = {key: i for i, key in enumerate(images.ids) if key not in self._cache}
        encoded: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
        for keys in batched(missing, self.images_at_once):
            group = [missing[key] for key in keys]
            group += group[:1] * (self.images_at_once - len(group))
            with torch.no_grad():
                new = self.encode(self.select_images(images, group))
            encoded |= {key: (new.tokens[i].clone(), new.levels[i]) for i, key in enumerate(keys)}
        features = [encoded[key] if key in encoded else self._cache[key] for key in images.ids]
        for key, value in zip(images.ids, features, strict=True):
            self._cache[key] = value
            self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return ImageFeatures(tuple(tokens for tokens, _ in features), tuple(levels for _, levels in features))

    def select_images(self, images: ImageInputs, index: list[int]) -> ImageInputs:
        """The images at ``index``; families whose first pixel dimension is not the image override it."""
        pixels = {name: value[index] for name, value in images.pixels.items()}
        return ImageInputs(pixels, tuple(images.ids[i] for i in index))

    def forward(self, tokens: TokenBatch, features: ImageFeatures) -> Tensor:
        """(B, S, D) hidden states of every token row."""
        packed = bool((tokens.segments > 1).any())
        mask = self.visibility(tokens) if packed else tokens.attention_mask
        placed = features.take(tokens.image_index)
        return self.trunk(tokens.input_ids, mask, self.positions(tokens), placed, tokens.extras)

    def response_states(self, prepared: Prepared, *, log_probs: bool = False) -> ResponseStates:
        """Run one forward pass and gather the states of the responses: everything a head needs.

        Args:
            prepared: Output of :meth:`prepare`, moved to the model's device.
            log_probs: Also compute each response token's log-probability (LM head at N x R positions only).
        """
        return self.read(prepared.tokens, self.encode_images(prepared.images), log_probs=log_probs)

    def read(self, tokens: TokenBatch, features: ImageFeatures, *, log_probs: bool = False) -> ResponseStates:
        """:meth:`response_states` for token rows whose images are already encoded.

        Args:
            tokens: Token rows on the model's device.
            features: Features of the M images they refer to.
            log_probs: See :meth:`response_states`.
        """
        hidden = self(tokens, features)  # (B, S, D)
        rows = tokens.response_row
        at = hidden[rows[:, None], tokens.response_index] * tokens.response_mask[..., None]  # (N, R, D)
        prompt = hidden[rows, tokens.prompt_end]  # (N, D)
        logp = None
        if log_probs:
            before = before_tokens(prompt, at)  # (N, R, D)
            targets = tokens.input_ids[rows[:, None], tokens.response_index]  # (N, R)
            # Ranks have different numbers of tokens but must gather a sharded head equally often, so it runs once.
            chunk = max(1, targets.numel()) if is_sharded(self.lm_head) else 1024
            logp = token_log_probs(before, self.lm_head, targets, tokens.response_mask, chunk=chunk)
        return ResponseStates(at, prompt, tokens.response_mask, logp, self.image_states(tokens, features))

    def image_states(self, tokens: TokenBatch, features: ImageFeatures) -> Tensor:
        """(N, P, D_image) tokens of the first image of each response's row, zeros where it has none."""
        p, d = self.image_shape
        empty = tokens.response_mask.new_zeros(p, d, dtype=torch.float32)
        first: dict[int, Tensor] = {}
        for row, image in zip(tokens.image_row.tolist(), tokens.image_index.tolist(), strict=True):
            value = features.tokens[image]
            first.setdefault(row, value if value.shape[0] == p else value.mean(0, keepdim=True))
        return torch.stack([first.get(row, empty).to(empty.dtype) for row in tokens.response_row.tolist()])


def context_length(config: Any) -> int | None:
    """Number of positions of a language model by its Hugging Face config; ``None`` if it does not state one."""
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def before_tokens(prompt: Tensor, hidden: Tensor) -> Tensor:
    """(N, R, D) state *before* each response token, from the prompt's last (N, D) and those at the tokens (N, R, D)."""
    return torch.cat([prompt[:, None], hidden[:, :-1]], dim=1)


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of ``size`` items, the last one of what remains (``itertools.batched`` of Python 3.12)."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
