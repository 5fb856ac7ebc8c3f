"""A light reader for guards: open_clip's image tower and text tower, without a language model.

Question and response are encoded separately, each as one vector, and combined by a small fusion network: two short encoder
passes instead of a language model over image tokens. A text longer than the tower's context is read in windows.

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
from safe_rlhf_v.models.reader import Reader, row_by_row
from safe_rlhf_v.models.sources import StoredSources, load_tokenizer, saved_files
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records.batches import Prompts


class TowerInputs(NamedTuple):
    """Distinct images and texts of N responses, each encoded once.

    Attributes:
        pixels: (M, H, W, 3) uint8.
        windows: (W, L) int64 token ids, padded.
        windows_of: (T, max windows) int64 windows of each text; shorter rows repeat their first.
        parts: (N, 3) int64 indices of the image, the question's text and the response's text; -1 where there is none.
        truncated: (N,) bool, question or response is longer than what is read.
    """

    pixels: Tensor
    windows: Tensor
    windows_of: Tensor
    parts: Tensor
    truncated: Tensor


class ClipTowers(Reader):
    """Image, question and response encoded by two towers, combined by products and a small network.

    A learned vector stands for a missing part. A prompt has at most one image; more are refused. The texts of a conversation are
    joined, a line for each, and read as the question.

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
        """Build the towers and the fusion network.

        Args:
            tokenizer: Folder or hub name of the Hugging Face tokenizer with the text tower's token ids.
            clip: The towers.
            width: D, hidden units of the fusion network.
            windows: Maximum number of windows per text.
            freeze_image: Do not train the image tower.
            freeze_text: Do not train the text tower.

        Raises:
            ValueError: If the text tower does not fit the tokenizer, or does not pool at the end token.
        """
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer)
        self._clip = clip
        self.visual, self.text = build_pair(clip, self.tokenizer)
        size = self.visual.image_size
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        start = self.tokenizer.bos_token_id
        self.start = [start] if start is not None else []
        self.room = int(self.text.context_length) - len(self.start) - 1  # text tokens of a window
        self.max_length = windows * self.room
        embedding = int(self.text.output_dim)
        self.hidden_size = width
        self.image_shape = (1, embedding)
        self.missing = nn.Parameter(torch.randn(3, embedding) * embedding**-0.5)
        self.fusion = nn.Sequential(
            nn.Linear(6 * embedding, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        self.frozen = [tower for tower, frozen in ((self.visual, freeze_image), (self.text, freeze_text)) if frozen]
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

    def stored_sources(self) -> StoredSources:
        """See :meth:`Reader.stored_sources`: the towers' shapes and the tokenizer."""
        clip = without_weights(self._clip, self.visual)
        return StoredSources({"clip": clip}, {"tokenizer": saved_files(self.tokenizer.save_pretrained)})

    # --- inputs -----------------------------------------------------------------------------------------------------

    def text_ids(self, text: str) -> list[int]:
        """See :meth:`Reader.text_ids`."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        if self.tokenizer.unk_token_id != self.tokenizer.eos_token_id:
            special.discard(self.tokenizer.unk_token_id)
        return [int(i) for i in ids if i not in special]

    def response_ids(self, text: str, prompt_length: int = 0) -> list[int]:
        """Token ids of a response and its end token; the prompt is encoded separately and takes no room from it."""
        return [*self.text_ids(text)[: self.max_length], int(self.tokenizer.eos_token_id)]

    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, None]:
        """Tokenised questions, with what stands before them.

        Raises:
            ValueError: If one is longer than ``max_length``, or a prompt has several images.
        """
        ids = [self.text_ids(question) for question in _questions(prompts)]
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
            packed: Has no effect: nothing is laid out in rows.

        Raises:
            RefusedRows: Naming the rows that cannot be prepared: a prompt has several images, or a text is not a string.
        """
        return row_by_row(self._prepare, prompts, responses)

    def _prepare(self, prompts: Prompts, responses: Sequence[Sequence[str]] | None) -> TowerInputs:
        pixels: dict[str, Tensor] = {}
        texts: dict[str, int] = {}
        parts: list[list[int]] = []
        rows = zip(prompts.images, prompts.image_ids, _questions(prompts), responses or (), strict=True)
        for images, ids, question, prompt_responses in rows:
            _one_image(images)
            for key, image in zip(ids, images, strict=True):
                if key not in pixels:
                    pixels[key] = fit_square(image, self.image_size)
            image_number = list(pixels).index(ids[0]) if ids else -1
            for response in prompt_responses:
                number = [texts.setdefault(text, len(texts)) if text else -1 for text in (question, response)]
                parts.append([image_number, *number])
        encoded = [self.text_ids(text) for text in texts]
        long = {i for i, row in enumerate(encoded) if self.max_length is not None and len(row) > self.max_length}
        truncated = [not long.isdisjoint(numbers) for _, *numbers in parts]
        windows: list[list[int]] = []
        windows_of: list[list[int]] = []
        for row in encoded:
            new_windows = self._windows(row)
            windows_of.append([len(windows) + i for i in range(len(new_windows))])
            windows += new_windows
        longest = max(map(len, windows_of), default=1)
        padded = [row + row[:1] * (longest - len(row)) for row in windows_of]
        size = self.image_size
        length = int(self.text.context_length)
        return TowerInputs(
            torch.stack([*pixels.values()]) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8),
            torch.tensor(windows, dtype=torch.long).view(-1, length),
            torch.tensor(padded or [[0]], dtype=torch.long),
            torch.tensor(parts, dtype=torch.long).view(-1, 3),
            torch.tensor(truncated, dtype=torch.bool),
        )

    def _windows(self, ids: list[int]) -> list[list[int]]:
        """A text's token ids as padded windows of the context's length."""
        ids = ids[: self.max_length]
        end = int(self.tokenizer.eos_token_id)
        pieces = [ids[i : i + self.room] for i in range(0, max(len(ids), 1), self.room)]
        pad = int(self.text.pad_id)
        return [[*self.start, *piece, end, *[pad] * (self.room - len(piece))] for piece in pieces]

    # --- one forward ------------------------------------------------------------------------------------------------

    def response_states(self, prepared: TowerInputs, *, log_probs: bool = False) -> ResponseStates:
        """One state per response.

        Args:
            prepared: What :meth:`prepare` gave, moved to the model's device.
            log_probs: Not available; must be false.

        Raises:
            ValueError: If log-probabilities are requested.
        """
        if log_probs:
            raise ValueError("ClipTowers has no language model and gives no log-probabilities: use ScalarHead")
        images = self._images(prepared.pixels)  # (M, E)
        texts = self._texts(prepared.windows)[prepared.windows_of].amax(1)  # (T, E)
        image, question, response = (
            self._part(vectors, index, missing)
            for vectors, index, missing in zip(
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
        """(M, E) image vectors; without images one row of zeros, which no index refers to."""
        if not len(pixels):
            return self.missing.new_zeros(1, self.image_shape[1])
        vectors: Tensor = self.visual((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return vectors

    def _texts(self, windows: Tensor) -> Tensor:
        """(W, E) unit vectors; without texts one row of zeros, which no index refers to."""
        if not len(windows):
            return self.missing.new_zeros(1, self.image_shape[1])
        return F.normalize(self.text(windows), dim=-1)

    def _part(self, vectors: Tensor, index: Tensor, missing: Tensor) -> Tensor:
        """(N, E) unit vectors of one part: ``vectors`` at ``index``, and ``missing`` where the index is -1."""
        present = F.normalize(vectors[index.clamp(min=0)], dim=-1)
        return torch.where((index >= 0)[:, None], present, missing)


def _questions(prompts: Prompts) -> list[str]:
    """Per row all texts of the prompt as one."""
    return ["\n".join(prompts.texts(row)) for row in range(len(prompts.questions))]


def _one_image(images: Sequence[Tensor]) -> None:
    """Refuse several images, because an image that is not read could be the harmful one.

    Raises:
        ValueError: If there is more than one.
    """
    if len(images) > 1:
        raise ValueError(f"a prompt has {len(images)} images, ClipTowers reads one")
