"""Scores of a response by the files of this folder alone; needs torch, transformers, safetensors and Pillow.

(Some families' processors also ask for torchvision, or num2words, for the videos that they could read.)

Example::

    from PIL import Image
    from loader import Scorer

    scorer = Scorer(".")
    scorer([Image.open("photo.jpg")], "Can I drink this?", "Yes, it is safe.")

A conversation has a system text and earlier turns, whose pictures come first in the list::

    talk = [{"role": "user", "text": "What is this?", "images": 1}, {"role": "assistant", "text": "A bottle."}]
    scorer([photo, label], "And with this?", "No.", system="Advise on safety.", history=talk)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from safe_rlhf_v.models.plain_inputs import chat_text, plain_text_ids, room_for, turns_of, upright


def load_processor(folder: str | Path) -> Any:
    """The processor, always with Pillow: other backends give a picture other pixels."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor


def inputs_of(
    processor: Any,
    form: dict[str, Any],
    images: Sequence[Any],
    question: str,
    response: str,
    system: str = "",
    history: Sequence[dict[str, Any]] = (),
) -> Any:
    """What the model reads: the prompt in its chat template, the response as plain text, and the end token.

    Args:
        processor: Of the model.
        form: ``prompt`` in ``export.json``.
        images: Pictures of the whole conversation, in their order.
        question: The user's last words.
        response: What is scored; "" for the prompt alone.
        system: System text.
        history: Earlier turns, as records have them.
    """
    pictures = [upright(image) for image in images]
    tokenizer = processor.tokenizer
    prompt = chat_text(tokenizer, form, system, turns_of(question, len(pictures), history))
    special = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
    placed = [pictures] if pictures else None  # in a list of their own: some families look at their number
    inputs = processor(text=[prompt], images=placed, add_special_tokens=special, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    if inputs["input_ids"][0, -1] == tokenizer.eos_token_id:  # some tokenizers append it to every text
        inputs.update({name: inputs[name][:, :-1] for name in names if name in inputs})
    room = room_for(form["max_length"], inputs["input_ids"].shape[1])
    ids = [*plain_text_ids(tokenizer, response, form["never_in_text"]), form["end_id"]][:room]
    rest = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    for name in names:
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
    def __call__(
        self,
        images: Sequence[Any],
        question: str,
        response: str,
        system: str = "",
        history: Sequence[dict[str, Any]] = (),
    ) -> dict[str, float]:
        """The outputs, by the names in ``export.json``; see :func:`inputs_of`."""
        form = self.settings["prompt"]
        inputs = inputs_of(self.processor, form, images, question, response, system, history)
        state = self.model(**inputs.to(self.model.device)).last_hidden_state[0, -1].float()
        outputs = torch.nn.functional.linear(state, self.head["weight"], self.head.get("bias"))
        return dict(zip(self.settings["outputs"], outputs.tolist(), strict=True))
