"""The vision tower of the LLaVA-like backbone: any open_clip or timm image encoder, and the slot resampler for tiny ones.

Shapes: M images, H x W pixels, C channels, P image tokens, D_image token width.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.clip_pair import pixel_statistics, refuse_weights_without_name


@dataclass
class TowerSettings:
    """Which tower to build.

    Attributes:
        name: An open_clip model name, ``"local-dir:PATH"``, or ``None`` to build ``vision_cfg`` from scratch.
        pretrained: An open_clip weight tag or a local file; only with ``name``.
        vision_cfg: The ``vision_cfg`` of open_clip (``layers``, ``width``, ``image_size``, ``timm_model_name``, ...); only
            without ``name``.
        level: Which intermediate feature map to read: -1 the last block, -2 the one before (as LLaVA does), ...
        mean: Mean of the red, green and blue pixels the tower was trained on, 0..1; ``None`` for what the network says.
        std: Standard deviation of those pixels, 0..1; ``None`` likewise.
        weights: File of weights (safetensors, or a ``.pth`` of tensors) for the timm network that ``vision_cfg`` names: the
            whole network with its classifier, by its names or, if those are others, in its order.
    """

    name: str | None = None
    pretrained: str | None = None
    vision_cfg: dict[str, Any] = field(default_factory=dict)
    level: int = -2
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights: str | None = None


@dataclass
class SlotSettings:
    """A resampler of a few learned queries (Set Transformer style pooling, arXiv 1810.00825) for tiny towers.

    Attributes:
        slots: Number of learned queries, one image token each; one more token summarises all but the first of them.
        width: Token width D_image.
    """

    slots: int = 5
    width: int = 128


class Tower(nn.Module):
    """An open_clip image encoder that returns one feature map, flattened to tokens.

    Attributes:
        image_size: Side of the square input, pixels.
        shape: (P, D_image) of the tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: TowerSettings) -> None:
        """Build the tower and remove every block that the chosen level does not need.

        Args:
            settings: Which tower to build.
        """
        super().__init__()
        self.settings = settings
        self.visual, size = _build_visual(settings)
        self.level = settings.level
        self.image_size = int(size[0] if isinstance(size, (tuple, list)) else size)
        self.register_buffer("mean", pixel_statistics(self.visual, "mean", settings.mean), persistent=False)
        self.register_buffer("std", pixel_statistics(self.visual, "std", settings.std), persistent=False)
        self.eval()
        with torch.enable_grad():
            tokens = self(torch.zeros(1, self.image_size, self.image_size, 3, dtype=torch.uint8))
            self.shape = (tokens.shape[1], tokens.shape[2])
            tokens.sum().backward()
        _drop_unused(self.visual)
        self.zero_grad(set_to_none=True)
        self.train()

    def forward(self, pixels: Tensor) -> Tensor:
        """(M, P, C) tokens of uint8 pixels (M, H, W, 3), H = W = ``image_size``."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std  # (M, 3, H, W)
        visual: Any = self.visual
        x = x.to(next(visual.parameters()).dtype)
        output = visual.forward_intermediates(
            x, indices=[self.level], stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        tokens: Tensor = output["image_intermediates"][0].flatten(2).transpose(1, 2)
        return tokens


def _build_visual(settings: TowerSettings) -> tuple[nn.Module, Any]:
    """The open_clip visual module and its image size."""
    import open_clip  # takes seconds: only when a tower is built

    refuse_weights_without_name("tower", settings)
    timm_name = settings.vision_cfg.get("timm_model_name")
    if settings.weights and (settings.name or not timm_name):
        raise ValueError(f"tower.weights {settings.weights}: needs vision_cfg.timm_model_name, and no tower.name")
    if settings.name:
        model = open_clip.create_model(settings.name, pretrained=settings.pretrained)
    else:
        # open_clip builds both towers of a CLIP model; the text tower is not used, so it is as small as possible.
        text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
        model = open_clip.CLIP(embed_dim=8, vision_cfg=dict(settings.vision_cfg), text_cfg=text)
        # Residual branches start at zero in open_clip; a shallow tower that trains for minutes needs them from the start.
        for name, parameter in model.visual.named_parameters():
            if name.endswith("bn3.weight"):
                torch.nn.init.ones_(parameter)
        if settings.weights:
            _load_timm(model.visual.trunk, str(timm_name), settings.weights)
    return model.visual, model.visual.image_size


def _load_timm(trunk: nn.Module, name: str, file: str) -> None:
    """Give a timm network, built without its classifier, the weights of a file of the whole one.

    Raises:
        ValueError: If the file cannot be read, or is of another network.
    """
    import timm

    network = timm.create_model(name)
    state = network.state_dict()
    stored = _tensors(file)
    if stored.keys() != state.keys():  # other names for the same tensors in the same order
        counters = "num_batches_tracked"
        own = [key for key in state if not key.endswith(counters)]
        values = [value for key, value in stored.items() if not key.endswith(counters)]
        if len(own) != len(values):
            raise ValueError(f"tower.weights {file}: holds {len(values)} tensors, {name} has {len(own)}")
        stored = dict(zip(own, values, strict=True))
    for key, value in stored.items():
        if value.shape != state[key].shape:
            raise ValueError(
                f"tower.weights {file}: {key} is {tuple(value.shape)}, that of {name} is {tuple(state[key].shape)}"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"tower.weights {file}: {key} holds NaN or infinity")
    network.load_state_dict(stored, strict=False)
    own_state = trunk.state_dict()
    trunk.load_state_dict({key: value for key, value in network.state_dict().items() if key in own_state})


def _tensors(file: str) -> dict[str, Tensor]:
    """The tensors of a file; nothing in it is executed. Raises: ValueError: If it holds anything else."""
    from safetensors.torch import load_file

    try:
        if file.endswith(".safetensors"):
            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files can raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"tower.weights {file}: cannot be read ({type(error).__name__}: {reason})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"tower.weights {Path(file).name}: is not a file of named tensors")
    return dict(content)


def _drop_unused(module: nn.Module) -> None:
    """Replace every submodule whose parameters got no gradient, so that no trainable tensor stays untrained."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(p.grad is None for p in parameters):
            setattr(module, name, nn.Identity())
        else:
            _drop_unused(child)
    for parameter in module.parameters(recurse=False):
        if parameter.grad is None:
            parameter.requires_grad_(False)


class SlotResampler(nn.Module):
    """Maps P tower tokens to ``slots + 1`` image tokens: learned queries attend once, a last token summarises the slots.

    Attributes:
        shape: (slots + 1, width).
    """

    def __init__(self, settings: SlotSettings, tower_shape: tuple[int, int]) -> None:
        """Create the queries and the layers.

        Args:
            settings: Number and width of the slots.
            tower_shape: (P, C) of the tower's tokens.
        """
        super().__init__()
        tokens, channels = tower_shape
        k = settings.slots
        d = settings.width
        self.shape = (k + 1, d)
        self.inputs = nn.Sequential(nn.Linear(channels, d), nn.LayerNorm(d))
        self.position = nn.Parameter(torch.randn(tokens, d) * 0.02)
        self.queries = nn.Parameter(torch.randn(k, d) * 0.05)
        self.output_norm = nn.LayerNorm(d)
        self.summary = nn.Sequential(
            nn.Linear((k - 1) * d, 5 * d // 2), nn.GELU(), nn.Linear(5 * d // 2, d), nn.LayerNorm(d)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, slots + 1, width) from (M, P, C)."""
        keys = self.inputs(tokens) + self.position  # (M, P, d)
        weights = (self.queries @ keys.transpose(1, 2) / 3.0).softmax(-1)  # (M, k, P)
        slots = self.output_norm(weights @ keys)  # (M, k, d)
        summary = self.summary(slots[:, 1:].flatten(1))  # (M, d)
        return torch.cat([slots, summary[:, None]], dim=1)
