"""A vision tower, a projector and a decoder by the files of this folder alone; needs torch, open_clip, transformers, safetensors.

Example::

    from PIL import Image
    from loader import Model

    model = Model(".")
    model.respond([Image.open("photo.jpg")], "Can I drink this?")
    model([Image.open("photo.jpg")], "Can I drink this?", "Yes, it is safe.")  # outputs of its head by name, if it has one

A conversation has a system text and earlier turns, whose pictures come first in the list::

    talk = [{"role": "user", "text": "What is this?", "images": 1}, {"role": "assistant", "text": "A bottle."}]
    model.respond([photo, label], "And with this?", system="Advise on safety.", history=talk)

Shapes: S tokens of prompt and response, R of them the response's, D hidden, M pictures, P tokens of each.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from safe_rlhf_v.models.plain_inputs import (
    chat_ids,
    chat_text,
    plain_text_ids,
    room_for,
    template_ids,
    turns_of,
    upright,
)


class Resampler(nn.Module):
    """Learned queries that attend once to the tower's tokens, and a last token that summarises them."""

    def __init__(self, tokens: int, channels: int, slots: int, width: int) -> None:
        """Create the layers.

        Args:
            tokens: Of the tower.
            channels: Width of the tower's tokens.
            slots: Number of queries.
            width: Width of the new tokens.
        """
        super().__init__()
        self.inputs = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))
        self.position = nn.Parameter(torch.empty(tokens, width))
        self.queries = nn.Parameter(torch.empty(slots, width))
        self.output_norm = nn.LayerNorm(width)
        self.summary = nn.Sequential(
            nn.Linear((slots - 1) * width, 5 * width // 2),
            nn.GELU(),
            nn.Linear(5 * width // 2, width),
            nn.LayerNorm(width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, slots + 1, width) from (M, P, channels)."""
        keys = self.inputs(tokens) + self.position
        slots = self.output_norm((self.queries @ keys.transpose(1, 2) / 3.0).softmax(-1) @ keys)
        return torch.cat([slots, self.summary(slots[:, 1:].flatten(1))[:, None]], dim=1)


class Model(nn.Module):
    """The whole model; called with pictures, a question and a response, it gives its head's outputs by name."""

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Load the folder.

        Args:
            folder: Where this file stands.
            device: Where the model runs.
        """
        super().__init__()
        folder = Path(folder)
        self.settings = json.loads((folder / "export.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.decoder = AutoModelForCausalLM.from_pretrained(folder / "decoder")
        self.decoder.generation_config = GenerationConfig()  # no habits of the pretrained model, as in training
        weights = load_file(folder / "vision.safetensors")
        self.visual = _tower(self.settings["tower"])
        _load(self.visual, weights, "tower.visual.", partly=True)  # blocks that the tokens do not pass are left out
        self.resampler = None
        if slots := self.settings["slots"]:
            tokens = weights["resampler.position"].shape[0]
            channels = weights["resampler.inputs.0.weight"].shape[1]
            self.resampler = Resampler(tokens, channels, slots["slots"], slots["width"])
            _load(self.resampler, weights, "resampler.")
        sizes = [weights[name].shape for name in weights if name.startswith("projector.") and name.endswith(".weight")]
        layers: list[nn.Module] = []
        for out, channels in sizes:
            layers += [nn.GELU(), nn.Linear(channels, out)]
        self.projector = nn.Sequential(*layers[1:])
        _load(self.projector, weights, "projector.")
        file = folder / "score.safetensors"
        self.head = {name: value.to(device) for name, value in load_file(file).items()} if file.exists() else None
        self.eval().to(device)

    def encode(self, images: Sequence[Any]) -> Tensor:
        """(M, P, channels) tokens of M pictures."""
        settings = self.settings["tower"]
        size = settings["image_size"]
        pixels = torch.stack([_square(torch.tensor(np.asarray(upright(image))), size) for image in images])
        mean, std = (torch.tensor(settings[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
        weight = next(self.visual.parameters())
        x = ((pixels.permute(0, 3, 1, 2).float() - mean) / std).to(weight)
        out = self.visual.forward_intermediates(
            x, indices=[settings["level"]], stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        tokens: Tensor = out["image_intermediates"][0].flatten(2).transpose(1, 2)
        return tokens if self.resampler is None else self.resampler(tokens)

    def prompt_ids(self, images: int, question: str, system: str, history: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to the start of the response; every picture is its P placeholders."""
        form = self.settings["prompt"]
        turns = turns_of(question, images, history)
        if form["chat"] is not None:
            return chat_ids(self.tokenizer, form, chat_text(self.tokenizer, form["chat"], system, turns))
        return template_ids(form, system, turns, self._piece_ids, self.text_ids)

    def _piece_ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text: a special token spelled out in it never becomes one."""
        return plain_text_ids(self.tokenizer, text, self.settings["prompt"]["never_in_text"])

    def embed(self, images: Sequence[Any], ids: list[int]) -> tuple[Tensor, Tensor | None]:
        """(1, S, D) embeddings of token ids and pictures, and the tokens (M, P, C) of the pictures."""
        tokens = torch.tensor(ids, device=self.decoder.device)
        embeddings = self.decoder.get_input_embeddings()(tokens[None])
        if not images:
            return embeddings, None
        features = self.encode(images)
        place = (tokens == self.settings["prompt"]["image_id"])[None, :, None].expand_as(embeddings)
        projected = self.projector(features.flatten(0, 1)).to(embeddings.dtype)
        return embeddings.masked_scatter(place, projected), features

    @torch.no_grad()
    def respond(
        self,
        images: Sequence[Any],
        question: str,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        system: str = "",
        history: Sequence[dict[str, Any]] = (),
    ) -> str:
        """A response to a prompt; at temperature 0 of the likeliest tokens.

        Args:
            images: Pictures of the whole conversation, PIL.
            question: The user's last words.
            max_new_tokens: Most tokens of the response.
            temperature: Of the sampling.
            system: System text.
            history: Earlier turns, as records have them.
        """
        form = self.settings["prompt"]
        ids = self.prompt_ids(len(images), question, system, history)
        room = room_for(form["max_length"], len(ids))
        embeddings, _ = self.embed(images, ids)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        out = self.decoder.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones_like(embeddings[..., 0], dtype=torch.long),
            max_new_tokens=max_new_tokens if room is None else min(max_new_tokens, room),
            suppress_tokens=form["banned_ids"],
            eos_token_id=form["end_id"],
            pad_token_id=form["pad_id"],
            **(sampling or {"do_sample": False}),
        )
        return str(self.tokenizer.decode(out[0], skip_special_tokens=True)).strip()

    def states(
        self,
        images: Sequence[Any],
        question: str,
        response: str,
        system: str = "",
        history: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Tensor]:
        """Of a response: (R + 1, D) states from the prompt's last token on, (R,) log-probabilities; first picture (P, C)."""
        form = self.settings["prompt"]
        prompt = self.prompt_ids(len(images), question, system, history)
        ids = [*self.text_ids(response), form["end_id"]][: room_for(form["max_length"], len(prompt))]
        embeddings, features = self.embed(images, [*prompt, *ids])
        hidden = self.decoder.base_model(inputs_embeds=embeddings).last_hidden_state[0, -len(ids) - 1 :]
        logits = self.decoder.get_output_embeddings()(hidden[:-1]).float()
        targets = torch.tensor(ids, device=logits.device)[:, None]
        log_probs = logits.log_softmax(-1).gather(-1, targets).squeeze(-1)
        shape = self.settings["image_shape"]
        picture = hidden.new_zeros(shape) if features is None else features[0]
        return {"hidden": hidden.float(), "log_probs": log_probs, "image": picture.float()}

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Any],
        question: str,
        response: str,
        system: str = "",
        history: Sequence[dict[str, Any]] = (),
    ) -> dict[str, float]:
        """The head's outputs, by the names in ``export.json``; response "": the prompt alone."""
        if self.head is None:
            raise ValueError("this model has no head: it responds")
        outputs = _score(self.head, self.settings["head"], self.states(images, question, response, system, history))
        return dict(zip(self.settings["outputs"], outputs.tolist(), strict=True))


def _score(head: dict[str, Tensor], settings: dict[str, Any], states: dict[str, Tensor]) -> Tensor:
    """(K,) outputs of the head of a response's states."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, head[f"{name}.weight"], head.get(f"{name}.bias"))

    hidden = states["hidden"][1:]
    end = hidden[-1]
    if settings["kind"] == "linear":
        return linear("linear", end)
    surprisal = states["log_probs"].clamp(min=settings["floor"])[:, None] / 4
    score = linear("end", end)
    if "gate.weight" in head:
        score = score + (linear("gate", hidden) * surprisal).sum(0)
    if "fusion.0.weight" in head:
        parts = [end, hidden.mean(0), states["image"].flatten()]
        if "channels.weight" in head:
            parts.append((linear("channels", hidden) * surprisal).sum(0))
        score = score + linear("fusion.2", F.gelu(linear("fusion.0", torch.cat(parts))))
    return score


def _tower(settings: dict[str, Any]) -> Any:
    """The image encoder, without its weights."""
    if settings["name"]:
        return open_clip.create_model(settings["name"], pretrained=None).visual
    text = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}  # not used
    return open_clip.CLIP(embed_dim=8, vision_cfg=settings["vision_cfg"], text_cfg=text).visual


def _load(module: nn.Module, weights: dict[str, Tensor], prefix: str, partly: bool = False) -> None:
    """Give a module its tensors. Raises: ValueError: If there are others than it has, or some are missing."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    result = module.load_state_dict(own, strict=False)
    if result.unexpected_keys or (result.missing_keys and not partly):
        raise ValueError(f"{prefix}: other tensors than the model's: {result.unexpected_keys or result.missing_keys}")


def _square(image: Tensor, size: int) -> Tensor:
    """(size, size, 3) uint8: an image (H, W, 3), resized and centred on a grey square."""
    height, width, _ = image.shape
    if (height, width) == (size, size):
        return image
    scale = size / max(height, width)
    new = (max(1, round(height * scale)), max(1, round(width * scale)))
    x = image.permute(2, 0, 1)[None].float()
    resized = F.interpolate(x, new, mode="bicubic", antialias=True, align_corners=False)
    out = torch.full((size, size, 3), 127, dtype=torch.uint8)
    top = (size - new[0]) // 2
    left = (size - new[1]) // 2
    out[top : top + new[0], left : left + new[1]] = resized[0].permute(1, 2, 0).round().clamp(0, 255).byte()
    return out
