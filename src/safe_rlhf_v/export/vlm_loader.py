"""Scores of a response by the files of this folder alone; needs torch, transformers, safetensors and Pillow.

(Some families' processors also ask for torchvision, or num2words, for the videos that they could read.)

Example::

    from PIL import Image
    from loader import Scorer

    scorer = Scorer(".")
    scorer([Image.open("photo.jpg")], "Can I drink this?", "Yes, it is safe.")
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def load_processor(folder: str | Path) -> Any:
    """The processor, always with Pillow: other backends give a picture other pixels."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor


def inputs_of(processor: Any, form: dict[str, Any], images: Sequence[Any], question: str, response: str) -> Any:
    """What the model reads: the prompt in its chat template, the response as plain text, and the end token.

    Args:
        processor: Of the model.
        form: ``prompt`` in ``export.json``.
        images: Pictures of the prompt.
        question: The user's words.
        response: What is scored; "" for the prompt alone.
    """
    question = re.sub(form["control"], lambda token: f"{token[0][0]} {token[0][1:]}", question)  # no text is a token
    parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
    content = parts if form["parts"] else form["placeholder"] * len(images) + question
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    special = bos is None or not prompt.startswith(bos)
    inputs = processor(text=[prompt], images=list(images) or None, add_special_tokens=special, return_tensors="pt")
    ids = processor.tokenizer(response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    length = inputs["input_ids"].shape[1]
    room = None if form["max_length"] is None else form["max_length"] - length
    ids = [*(i for i in ids if i not in form["never_in_text"]), form["end_id"]][:room]
    rest = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            more = rest.get(name, torch.zeros(1, len(ids), dtype=torch.long))
            inputs[name] = torch.cat([inputs[name], more], dim=1)
    return inputs


class Scorer:
    """The model and its head; called with pictures, a question and a response, it gives its outputs by name."""

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Load the folder.

        Args:
            folder: Where this file stands.
            device: Where the model runs.
        """
        folder = Path(folder)
        self.settings = json.loads((folder / "export.json").read_text())
        self.processor = load_processor(folder)
        model = getattr(transformers, self.settings["class"]).from_pretrained(folder)
        self.model = model.model.eval().to(device)
        self.head = load_file(folder / "score.safetensors", device=device)

    @torch.no_grad()
    def __call__(self, images: Sequence[Any], question: str, response: str) -> dict[str, float]:
        """The outputs, by the names in ``export.json``."""
        inputs = inputs_of(self.processor, self.settings["prompt"], images, question, response)
        state = self.model(**inputs.to(self.model.device)).last_hidden_state[0, -1].float()
        outputs = torch.nn.functional.linear(state, self.head["weight"], self.head.get("bias"))
        return dict(zip(self.settings["outputs"], outputs.tolist(), strict=True))
