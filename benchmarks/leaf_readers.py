"""Two readers of photographs for the guard: a colour histogram, and a tower that learns its colours and looks around.

Both look at a small copy of the picture and at no text. Shapes: M images, N responses, H x W pixels, G x F cells, D hidden.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safe_rlhf_v.models.corpus_tokenizer import build_tokenizer
from safe_rlhf_v.models.layout import PromptTokens
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.models.types import ResponseStates
from safe_rlhf_v.records.batches import Prompts

WIDTH, HEIGHT = 128, 64


class PhotoReader(Reader):
    """Reads the one picture of a prompt; subclasses say how. What is computed without parameters is kept per picture."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.tokenizer = build_tokenizer(["photograph"])
        self.hidden_size, self.image_shape = hidden, (1, hidden)
        self.kept: dict[str, Tensor] = {}

    def fixed(self, picture: Tensor) -> Tensor:
        """What is kept of a picture (3, HEIGHT, WIDTH) in 0..1."""
        raise NotImplementedError

    def look(self, fixed: Tensor) -> Tensor:
        """(M, D) from the stacked fixed parts."""
        raise NotImplementedError

    def prepare(
        self, prompts: Prompts, responses: Sequence[Sequence[str]], *, packed: bool = False
    ) -> tuple[Tensor, Tensor]:
        for images, ids in zip(prompts.images, prompts.image_ids, strict=True):
            if len(images) != 1:
                raise ValueError(f"a prompt has {len(images)} images, this reader looks at one")
            if ids[0] not in self.kept:
                pixels = images[0].permute(2, 0, 1)[None].float() / 255
                self.kept[ids[0]] = self.fixed(F.interpolate(pixels, (HEIGHT, WIDTH), mode="area")[0])
        owner = torch.tensor([row for row, row_responses in enumerate(responses) for _ in row_responses])
        return torch.stack([self.kept[ids[0]] for ids in prompts.image_ids]), owner

    def response_states(self, prepared: tuple[Tensor, Tensor], *, log_probs: bool = False) -> ResponseStates:
        fixed, owner = prepared
        state = self.look(fixed)[owner]  # (N, D)
        mask = torch.ones(len(state), 1, dtype=torch.bool, device=state.device)
        return ResponseStates(state[:, None], state, mask, None, state[:, None])

    def prepare_prompts(self, prompts: Prompts) -> tuple[PromptTokens, None]:
        return PromptTokens([[] for _ in prompts.questions], list(range(len(prompts.questions)))), None

    def text_ids(self, text: str) -> list[int]:
        return []

    def response_ids(self, text: str, prompt_length: int = 0) -> list[int]:
        return [int(self.tokenizer.eos_token_id)]


class HueHistogram(PhotoReader):
    """The baseline: how much of the picture has each of 51 hues from red to cyan, saturated pixels only, and a small network."""

    def __init__(self, bins: int = 51) -> None:
        super().__init__()
        self.bins = bins
        self.net = nn.Sequential(nn.BatchNorm1d(bins, affine=False), nn.Linear(bins, 64), nn.ReLU(), nn.Dropout(0.2))

    def fixed(self, picture: Tensor) -> Tensor:
        high, low = picture.amax(0), picture.amin(0)
        r, g, b = picture
        spread = (high - low).clamp(min=1e-6)
        hue = torch.where(
            high == r, (g - b) / spread, torch.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread)
        )
        hue = (hue / 6) % 1.0
        leaf = (spread / high.clamp(min=1e-6) > 0.25) & (hue < 0.5)
        index = (hue[leaf] * 2 * self.bins).long().clamp(max=self.bins - 1)
        return torch.bincount(index, minlength=self.bins).float() / hue.numel()

    def look(self, fixed: Tensor) -> Tensor:
        return self.net(fixed)  # type: ignore[no-any-return]


class Palette(PhotoReader):
    """A tower for small data: a learned vector for every colour of a palette, averaged in cells, then two convolutions.

    The average of a colour's vector over the picture is a histogram whose bins are learned; the convolutions see what lies
    beside what. Both are pooled in logarithms, so that a linear layer can form shares ("spots per leaf").
    """

    def __init__(self, side: int = 16, cell: int = 4, colours: int = 24, channels: int = 32) -> None:
        super().__init__()
        self.side, self.cell = side, cell
        steps = (torch.arange(side) + 0.5) / side
        self.register_buffer("palette", torch.cartesian_prod(steps, steps, steps), persistent=False)  # (side^3, 3)
        self.colour = nn.Sequential(
            nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, colours), nn.Sigmoid()
        )
        self.around = nn.Sequential(
            nn.Conv2d(colours, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        )  # fmt: skip
        both = colours + channels
        self.out = nn.Sequential(nn.BatchNorm1d(both), nn.Linear(both, self.hidden_size), nn.GELU(), nn.Dropout(0.15))

    def fixed(self, picture: Tensor) -> Tensor:
        """(G, F, cell^2) int64 palette entries."""
        r, g, b = (picture * self.side).long().clamp(max=self.side - 1)
        entries = (r * self.side + g) * self.side + b  # (H, W)
        c = self.cell
        return entries.view(HEIGHT // c, c, WIDTH // c, c).transpose(1, 2).reshape(HEIGHT // c, WIDTH // c, c * c)

    def look(self, fixed: Tensor) -> Tensor:
        """Training also turns the pictures over and changes their brightness."""
        gain = 1.0
        if self.training:
            turned = [axis for axis in (1, 2) if torch.rand(()) < 0.5]
            fixed, gain = fixed.flip(turned) if turned else fixed, 1 + 0.08 * float(torch.randn(()))
        m, rows, columns, pixels = fixed.shape
        vectors = self.colour(_opponent((self.palette * gain).clamp(0, 1)))  # (side^3, colours)
        cells = F.embedding_bag(fixed.reshape(-1, pixels), vectors, mode="mean")
        cells = cells.view(m, rows, columns, -1).permute(0, 3, 1, 2)  # (M, colours, G, F)
        pooled = [(cells.mean((2, 3)) + 1e-3).log(), (self.around(cells).mean((2, 3)) + 1e-2).log()]
        return self.out(torch.cat(pooled, dim=1))  # type: ignore[no-any-return]


def _opponent(colours: Tensor) -> Tensor:
    """(n, 5) from (n, 3): RGB, and red against green and green against blue whatever the brightness."""
    r, g, b = colours.unbind(1)
    red_green, green_blue = (3 * (x - y) / (x + y + 0.05) for x, y in ((r, g), (g, b)))
    return torch.stack([2 * r - 1, 2 * g - 1, 2 * b - 1, red_green, green_blue], dim=1)
