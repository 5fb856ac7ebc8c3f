"""Data types between backbone and heads.

Shapes: B rows of tokens, S tokens per row, N responses (sequences to score), R response tokens, D hidden, M images,
P image tokens. Masks are bool, True = real token. A row may hold one response (N = B) or several behind one shared prompt
(packed); everything after the backbone only sees N responses and cannot tell the difference.
"""

from typing import NamedTuple

from torch import Tensor


class ImageInputs(NamedTuple):
    """M preprocessed images.

    Attributes:
        pixels: Output of the family's image processor, by name; the family defines the first dimension.
        ids: M ids; equal ids mean equal pixels.
    """

    pixels: dict[str, Tensor]
    ids: tuple[str, ...]


class ImageFeatures(NamedTuple):
    """Encoded images, cacheable when the tower is frozen.

    Attributes:
        tokens: M tensors (P_m, D_image), one per image, as the language model will receive them (before a trainable
            projector, if the backbone has one).
        levels: M tuples of further tensors per image (deep-stacked features), empty for most families.
    """

    tokens: tuple[Tensor, ...]
    levels: tuple[tuple[Tensor, ...], ...]

    def take(self, index: Tensor) -> "ImageFeatures":
        """The features of the images at ``index`` (E,), repeats allowed."""
        order = index.tolist()
        return ImageFeatures(tuple(self.tokens[i] for i in order), tuple(self.levels[i] for i in order))


class TokenBatch(NamedTuple):
    """B token rows and where the N responses lie in them.

    Attributes:
        input_ids: (B, S) int64, image placeholders expanded.
        attention_mask: (B, S) bool.
        segments: (B, S) int64: 0 prompt, k >= 1 the row's k-th response, -1 padding.
        response_row: (N,) int64 row of each response.
        response_index: (N, R) int64 column of each response token (0 where masked).
        response_mask: (N, R) bool, left-aligned; the end token counts as part of the response.
        prompt_end: (N,) int64 column of the last prompt token before the response.
        image_row: (E,) int64 row of each image placement, in row order (an unpacked prompt's images are placed in each
            of its rows).
        image_index: (E,) int64 which of the M images is placed.
        extras: Family-specific tensors: (B, S) token fields, or per placement (E, ...) such as grids.
    """

    input_ids: Tensor
    attention_mask: Tensor
    segments: Tensor
    response_row: Tensor
    response_index: Tensor
    response_mask: Tensor
    prompt_end: Tensor
    image_row: Tensor
    image_index: Tensor
    extras: dict[str, Tensor]


class ResponseStates(NamedTuple):
    """Everything a head may read about N responses.

    Attributes:
        hidden: (N, R, D) last hidden state at each response token, 0 where masked.
        prompt: (N, D) last hidden state at the last prompt token.
        mask: (N, R) bool.
        log_probs: (N, R) float32 log p(token | earlier tokens) by the backbone's own LM head, 0 where masked; ``None``
            unless requested.
        images: (N, P, D_image) image tokens of the response's first image, 0 where the row has none.
    """

    hidden: Tensor
    prompt: Tensor
    mask: Tensor
    log_probs: Tensor | None
    images: Tensor


class Generation(NamedTuple):
    """N sampled responses.

    Attributes:
        tokens: (N, R) int64, left-aligned; pad where masked.
        mask: (N, R) bool, the end token included.
        log_probs: (N, R) float32 log-probability of each sampled token at sampling temperature 1 (full softmax), 0 masked.
        finished: (N,) bool, False if truncated at ``max_new_tokens``.
        text: N decoded strings without special tokens.
        engine_log_probs: (N, R) float32 the same log-probabilities as the program computed them that sampled in the backbone's
            stead; ``None`` where the backbone itself sampled.
        entropy: (N, R) float32 entropy in nats of the distribution that each token was sampled from, 0 masked; ``None`` where
            it was not asked for.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    finished: Tensor
    text: tuple[str, ...]
    engine_log_probs: Tensor | None = None
    entropy: Tensor | None = None
