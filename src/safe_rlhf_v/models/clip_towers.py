"""A light reader for guards: open_clip's image tower and text tower, and nothing that generates.

Question and response are encoded apart, each as one vector, and meet only in a small fusion: two short encoder passes instead
of a language model over image tokens. A text longer than the tower's context is read in windows.

Shapes: N responses, M images, W windows of text, L context length, E embedding, D hidden.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safe_rlhf_v.models.clip_pair import ClipSettings, build_pair, pixel_statistics, without_weights
from safe_rlhf_v.models.images import fit_square
from safe_rlhf_v.models.layout import PromptTokens
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.models.refused import row_by_row
from safe_rlhf_v.models.sources import Kept, files_of, load_tokenizer
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records.batches import Prompts


class TowerInputs(NamedTuple):
    """Distinct images and texts of N responses, each encoded once.

    Attributes:
        pixels: (M, H, W, 3) uint8.
        windows: (W, L) int64 token ids, padded.
        windows_of: (T, most) int64 windows of each text; shorter rows repeat their first.
        parts: (N, 3) int64: which image, which text is the question, which the response; -1 where there is none.
        truncated: (N,) bool, question or response is longer than what is read.
    """

    pixels: Tensor
    windows: Tensor
    windows_of: Tensor
    parts: Tensor
    truncated: Tensor


class ClipTowers(Reader):
    """Image, question and response by two towers, fused by products and a small network.

    A missing part is a learned vector. At most one image per prompt is read; more are refused.

    YAML::

        backbone:
          class_path: safe_rlhf_v.models.ClipTowers
          init_args:
            tokenizer: openai/clip-vit-base-patch32
            clip: {name: ViT-B-32, pretrained: laion2b_s34b_b79k}
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tokenizer: str,
        clip: ClipSettings,
        width: int = 256,
        windows: int = 4,
        freeze_image: bool = False,
        freeze_text: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: Folder or hub name of the Hugging Face tokenizer with the text tower's token ids.
            clip: The towers.
            width: D, hidden units of the fusion.
            windows: Most windows of one text.
            freeze_image: No gradients into the image tower.
            freeze_text: No gradients into the text tower.

        Raises:
            ValueError: If the text tower does not fit the tokenizer, or does not pool at the end token.
        """
        super().__init__()
        self.tokenizer, self._clip = load_tokenizer(tokenizer), clip
        self.visual, self.text = build_pair(clip, self.tokenizer)
        size = self.visual.image_size
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        start = self.tokenizer.bos_token_id
        self.start = [start] if start is not None else []
        self.room = int(self.text.context_length) - len(self.start) - 1  # text tokens of a window
        self.max_length = windows * self.room
        embedding = int(self.text.output_dim)
        self.hidden_size, self.image_shape = width, (1, embedding)
        self.missing = nn.Parameter(torch.randn(3, embedding) * embedding**-0.5)
        self.fusion = nn.Sequential(
            nn.Linear(6 * embedding, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        self.frozen = [tower for tower, still in ((self.visual, freeze_image), (self.text, freeze_text)) if still]
        for tower in self.frozen:
            tower.requires_grad_(False)
        self.register_buffer("mean", pixel_statistics(self.visual, "mean", clip.mean), persistent=False)
        self.register_buffer("std", pixel_statistics(self.visual, "std", clip.std), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen towers stay in evaluation mode."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self

    def kept(self) -> Kept:
        """See the base: the towers' shapes and the tokenizer."""
        clip = without_weights(self._clip, self.visual)
        return Kept({"clip": clip}, {"tokenizer": files_of(self.tokenizer.save_pretrained)})

    # --- inputs -----------------------------------------------------------------------------------------------------

    def text_ids(self, text: str) -> list[int]:
        """See the base."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        if self.tokenizer.unk_token_id != self.tokenizer.eos_token_id:
            special.discard(self.tokenizer.unk_token_id)
        return [int(i) for i in ids if i not in special]

    def response_ids(self, text: str, prompt_length: int = 0) -> list[int]:
        """Token ids of a response and its end token; the prompt is read apart and takes no room from it."""
        return [*self.text_ids(text)[: self.max_length], int(self.tokenizer.eos_token_id)]

    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, None]:
        """Tokenised questions.

        Raises:
            ValueError: If one is longer than ``max_length``, or a prompt has several images.
        """
        ids = [self.text_ids(question) for question in prompts.questions]
        for row, images in zip(ids, prompts.images, strict=True):
            if self.max_length is not None and len(row) > self.max_length:
                raise ValueError(f"a question has {len(row)} tokens and max_length is {self.max_length}")
            _one_image(images)
        return PromptTokens(ids, [p for p, images in enumerate(prompts.images) for _ in images]), None

    def prepare(self, prompts: Prompts, responses: Sequence[Sequence[str]], *, packed: bool = False) -> TowerInputs:
        """Every distinct image and text once; texts beyond ``max_length`` are truncated (a guard at work refuses them before).

        Args:
            prompts: B prompts.
            responses: Per prompt its responses; "" for none.
            packed: Of no effect: nothing is laid out in rows.

        Raises:
            RefusedRows: Naming the rows that cannot be prepared: a prompt has several images, or a text is none.
        """
        return row_by_row(self._prepare, prompts, responses)

    def _prepare(self, prompts: Prompts, responses: Sequence[Sequence[str]] | None) -> TowerInputs:
        pixels: dict[str, Tensor] = {}
        texts: dict[str, int] = {}
        parts: list[list[int]] = []
        rows = zip(prompts.images, prompts.image_ids, prompts.questions, responses or (), strict=True)
        for images, ids, question, written in rows:
            _one_image(images)
            for key, image in zip(ids, images, strict=True):
                if key not in pixels:
                    pixels[key] = fit_square(image, self.image_size)
            shown = list(pixels).index(ids[0]) if ids else -1
            for response in written:
                number = [texts.setdefault(text, len(texts)) if text else -1 for text in (question, response)]
                parts.append([shown, *number])
        encoded = [self.text_ids(text) for text in texts]
        long = {i for i, row in enumerate(encoded) if self.max_length is not None and len(row) > self.max_length}
        truncated = [not long.isdisjoint(numbers) for _, *numbers in parts]
        windows: list[list[int]] = []
        windows_of: list[list[int]] = []
        for row in encoded:
            found = self._windows(row)
            windows_of.append([len(windows) + i for i in range(len(found))])
            windows += found
        most = max(map(len, windows_of), default=1)
        padded = [row + row[:1] * (most - len(row)) for row in windows_of]
        size, length = self.image_size, int(self.text.context_length)
        return TowerInputs(
            torch.stack([*pixels.values()]) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8),
            torch.tensor(windows, dtype=torch.long).view(-1, length),
            torch.tensor(padded or [[0]], dtype=torch.long),
            torch.tensor(parts, dtype=torch.long).view(-1, 3),
            torch.tensor(truncated, dtype=torch.bool),
        )

    def _windows(self, ids: list[int]) -> list[list[int]]:
        """A text's token ids as padded windows of the context's length."""
        ids, end = ids[: self.max_length], int(self.tokenizer.eos_token_id)
        pieces = [ids[i : i + self.room] for i in range(0, max(len(ids), 1), self.room)]
        pad = int(self.text.pad_id)
        return [[*self.start, *piece, end, *[pad] * (self.room - len(piece))] for piece in pieces]

    # --- one forward ------------------------------------------------------------------------------------------------

    def response_states(self, prepared: TowerInputs, *, log_probs: bool = False) -> ResponseStates:
        """One state per response.

        Args:
            prepared: What :meth:`prepare` gave, moved to the model's device.
            log_probs: Not to be had.

        Raises:
            ValueError: If log-probabilities are asked for.
        """
        if log_probs:
            raise ValueError("ClipTowers has no language model, so no log-probabilities: use ScalarHead")
        images = self._images(prepared.pixels)  # (M, E)
        texts = self._texts(prepared.windows)[prepared.windows_of].amax(1)  # (T, E)
        image, question, response = (
            self._part(found, index, missing)
            for found, index, missing in zip(
                (images, texts, texts), prepared.parts.unbind(1), self.missing, strict=True
            )
        )
        scale = image.shape[1] ** 0.5  # unit vectors have entries of about 1 / scale
        singles = [image * scale, question * scale, response * scale]
        pairs = [singles[0] * singles[1], singles[0] * singles[2], singles[1] * singles[2]]
        state = self.fusion(torch.cat([*singles, *pairs], dim=1))  # (N, D)
        mask = torch.ones(len(state), 1, dtype=torch.bool, device=state.device)
        return ResponseStates(state[:, None], state, mask, None, image[:, None])

    def _images(self, pixels: Tensor) -> Tensor:
        """(M, E); one row of zeros, never chosen, without images."""
        if not len(pixels):
            return self.missing.new_zeros(1, self.image_shape[1])
        return self.visual((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)  # type: ignore[no-any-return]

    def _texts(self, windows: Tensor) -> Tensor:
        """(W, E) unit vectors; one row of zeros, never chosen, without texts."""
        if not len(windows):
            return self.missing.new_zeros(1, self.image_shape[1])
        return F.normalize(self.text(windows), dim=-1)

    def _part(self, found: Tensor, index: Tensor, missing: Tensor) -> Tensor:
        """(N, E) unit vectors of one part."""
        chosen = F.normalize(found[index.clamp(min=0)], dim=-1)
        return torch.where((index >= 0)[:, None], chosen, missing)


def _one_image(images: Sequence[Tensor]) -> None:
    """Raises: ValueError: If there are several: an image that is not looked at could be the harmful one."""
    if len(images) > 1:
        raise ValueError(f"a prompt has {len(images)} images, ClipTowers reads one")
