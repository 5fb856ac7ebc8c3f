"""Heads that turn response states into scores.

Shapes: N responses, R response tokens, D hidden, P image tokens, K outputs per response.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.float32 import Float32Module
from safe_rlhf_v.models.types import ResponseStates


class Head(Float32Module, ABC):
    """Scores N responses from their states; parameters and arithmetic stay float32 under every precision setting.

    Attributes:
        needs_log_probs: Whether ``ResponseStates.log_probs`` must be filled.
    """

    needs_log_probs: bool = False

    @abstractmethod
    def scores(self, states: ResponseStates) -> Tensor:
        """(N, K) float32 scores of float32 states."""

    def forward(self, states: ResponseStates) -> Tensor:
        """(N, K) float32 scores; autocast is off inside."""
        with torch.autocast(states.hidden.device.type, enabled=False):
            floats = {
                name: value.float()
                for name, value in states._asdict().items()
                if value is not None and value.is_floating_point()
            }
            return self.scores(states._replace(**floats))


def last_state(states: ResponseStates) -> Tensor:
    """(N, D) hidden state at the last valid response token, found from the mask; the prompt's last if there is none."""
    length = states.mask.sum(1)  # (N,)
    last = states.hidden[torch.arange(len(length), device=length.device), (length - 1).clamp(min=0)]
    return torch.where(length[:, None] > 0, last, states.prompt)


class ScalarHead(Head):
    """A linear score of the last valid token: s = w . h_T (+ b), as Safe RLHF-V's reward and cost models (bias-free).

    YAML::

        head:
          class_path: safe_rlhf_v.models.ScalarHead
    """

    def __init__(self, backbone: Backbone, outputs: int = 1, bias: bool = False) -> None:
        """Create the linear layer.

        Args:
            backbone: The backbone whose hidden states are read.
            outputs: K, the number of scores per response.
            bias: Add a bias b.
        """
        super().__init__()
        self.linear = nn.Linear(backbone.hidden_size, outputs, bias=bias, dtype=torch.float32)
        nn.init.normal_(self.linear.weight, std=1 / (backbone.hidden_size + 1) ** 0.5)

    def scores(self, states: ResponseStates) -> Tensor:
        """(N, K) scores of the last valid tokens."""
        scores: Tensor = self.linear(last_state(states))
        return scores


class EvidenceHead(Head):
    """Gated surprisal with late fusion over the image tokens, for models too small to learn to read the picture.

    A model trained to respond already knows which words fit the picture: their log-probability. The gate learns which words
    matter; the fusion combines a mismatch with the content of the picture::

        l_t = max(log p(y_t | h_{t-1}), floor)
        s   = w . h_T + b + 1/4 sum_t (g . h_t + g0) l_t
        s  += MLP[h_T ; mean_t h_t ; v_1..v_P ; 1/4 sum_t (G h_t) l_t]        (fusion)

    YAML::

        head:
          class_path: safe_rlhf_v.models.EvidenceHead
          init_args: {fusion: 256}
    """

    needs_log_probs = True

    def __init__(
        self,
        backbone: Backbone,
        outputs: int = 1,
        gate: bool = True,
        fusion: int = 0,
        channels: int = 8,
        floor: float = -8.0,
    ) -> None:
        """Create the layers.

        Args:
            backbone: The backbone whose hidden states and image tokens are read.
            outputs: K, the number of scores per response.
            gate: Use the gated surprisal; without it only h_T (and the fusion) is read, to measure what the gate adds.
            fusion: Hidden units of the fusion MLP, 0 for no fusion.
            channels: Number of rows of G.
            floor: Lowest log-probability counted, so that one impossible word cannot dominate the sum.
        """
        super().__init__()
        d = backbone.hidden_size
        p, d_image = backbone.image_shape
        self.floor = floor
        single = torch.float32  # whatever the default dtype is when this is built
        self.end = nn.Linear(d, outputs, dtype=single)
        self.gate = nn.Linear(d, outputs, dtype=single) if gate else None
        self.channels = nn.Linear(d, channels, bias=False, dtype=single) if fusion and gate else None
        self.fusion = None
        for layer, bias in ((self.end, 0.0), (self.gate, 0.2)):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.constant_(layer.bias, bias)
        if self.channels is not None:
            nn.init.normal_(self.channels.weight, std=0.05)
        if fusion:
            width = 2 * d + p * d_image + (channels if gate else 0)
            last = nn.Linear(fusion, outputs, dtype=single)
            nn.init.normal_(last.weight, std=0.02)
            self.fusion = nn.Sequential(nn.Linear(width, fusion, dtype=single), nn.GELU(), last)

    def scores(self, states: ResponseStates) -> Tensor:
        """(N, K) scores by the formula above.

        Raises:
            ValueError: If the states carry no log-probabilities.
        """
        if states.log_probs is None:
            raise ValueError("EvidenceHead needs response log-probabilities: call response_states(..., log_probs=True)")
        end = last_state(states)  # (N, D)
        surprisal = states.log_probs.clamp(min=self.floor) * states.mask / 4  # (N, R)
        score: Tensor = self.end(end)  # (N, K)
        if self.gate is not None:
            score = score + (self.gate(states.hidden) * surprisal[..., None]).sum(1)
        if self.fusion is not None:
            count = states.mask.sum(1, keepdim=True).clamp(min=1)
            mean = (states.hidden * states.mask[..., None]).sum(1) / count
            parts: list[Any] = [end, mean, states.images.flatten(1)]
            if self.channels is not None:
                parts.append((self.channels(states.hidden) * surprisal[..., None]).sum(1))
            score = score + self.fusion(torch.cat(parts, dim=-1))
        return score
