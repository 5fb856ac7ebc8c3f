"""A stranger: loads exported folders in a process that cannot import this library, and prints what they say.

``python -I fresh.py '[{"folder": ..., "kind": ..., "base": ...}, ...]'``; the pictures are made here, too.
"""

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any


class Blocked:
    """No file of the library is found, wherever it is installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "safe_rlhf_v":
            raise ModuleNotFoundError(f"{name} is hidden in this process")


QUESTION = "is it safe to drink this"
RESPONSES = ("yes it is safe", "no , it can burn you <image></s>", "")
SHAPES = ((), ((20, 15),), ((30, 91),))
"""Height and width of each picture of the prompts of one question."""
NASTY = "<image> </s><|im_end|> <|vision_start|><end_of_turn> is it"
TALKS: tuple[dict[str, Any], ...] = (
    {
        "shapes": ((20, 15), (30, 91)),
        "system": "you advise on safety </s>",
        "history": [
            {"role": "user", "text": "what is this", "images": 1},
            {"role": "assistant", "text": f"it is a {NASTY}"},
            {"role": "user", "text": NASTY, "images": 0},
            {"role": "assistant", "text": "no"},
        ],
        "question": f"{QUESTION} {NASTY}",
    },
    {
        "shapes": ((30, 91), (20, 15), (30, 91)),
        "history": [{"role": "user", "text": QUESTION, "images": 2}, {"role": "assistant", "text": ""}],
        "question": "and this",
    },
    {"shapes": (), "system": "you help", "question": NASTY},
)
"""Conversations of several turns, with what no user may write as a control token."""


def pixels(height: int, width: int) -> list[list[list[int]]]:
    """A pattern with edges, lines and colours."""
    return [[[(7 * x + 3 * y) % 256, (x * y) % 256, 255 * (x > y)] for x in range(width)] for y in range(height)]


def main(jobs: list[dict[str, Any]]) -> list[Any]:
    """What each folder says."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()

    def pictures(shapes: Any) -> list[Any]:
        return [Image.fromarray(np.array(pixels(*shape), dtype=np.uint8)) for shape in shapes]

    alone = [pictures(shapes) for shapes in SHAPES]
    talks = [
        (
            pictures(talk["shapes"]),
            {name: talk[name] for name in ("system", "history") if name in talk},
            talk["question"],
        )
        for talk in TALKS
    ]
    return [tell(Path(job["folder"]), job, alone, talks) for job in jobs]


def tell(folder: Path, job: dict[str, Any], pictures: list[Any], talks: list[Any]) -> Any:
    """What one folder says about every prompt, and where a loader is in it, about every conversation."""
    if job["kind"] == "hugging face":
        return [next_tokens(folder, job, images) for images in pictures]
    if job["kind"] == "classifier":
        return [classified(folder, images) for images in pictures]
    loader = load(folder / "loader.py")
    prompts = [(images, {}, QUESTION) for images in pictures] + talks
    if job["kind"] == "responds":
        model = loader.Model(folder)
        return [model.respond(images, question, max_new_tokens=8, **before) for images, before, question in prompts]
    model = loader.Model(folder) if hasattr(loader, "Model") else loader.Scorer(folder)
    outputs = [
        [model(images, question, response, **before) for response in RESPONSES] for images, before, question in prompts
    ]
    if job["kind"] == "guard":
        levels = load(folder / "levels.py")
        return [[levels.verdict(one, model.settings) for one in row] for row in outputs]
    return [[one[job["kind"]] for one in row] for row in outputs]


def load(file: Path) -> Any:
    """A Python file of the folder."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def next_tokens(folder: Path, job: dict[str, Any], images: list[Any]) -> list[float]:
    """Log-probabilities of the first token of a response, as plain transformers computes them."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    if job.get("base"):
        from peft import PeftModel

        base = AutoModelForImageTextToText.from_pretrained(job["base"])
        model = PeftModel.from_pretrained(base, folder).eval()
    else:
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        logits = model(**prompt(processor, images)).logits[0, -1].float()
    return logits.log_softmax(-1).tolist()


def classified(folder: Path, images: list[Any]) -> list[float]:
    """Scores of the responses by the family's own class, in one padded batch."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForSequenceClassification, AutoProcessor

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    text = written(processor, images)
    end = "<end_of_turn>"
    texts = [f"{text}{response}{end}" for response in RESPONSES if "<" not in response]
    inputs = processor(
        text=texts,
        images=[images] * len(texts) if images else None,
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(**inputs).logits[:, 0].tolist()


def written(processor: Any, images: list[Any]) -> str:
    """The prompt in the chat template."""
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": QUESTION}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def prompt(processor: Any, images: list[Any]) -> Any:
    """Inputs of a prompt."""
    text = written(processor, images)
    bos = processor.tokenizer.bos_token
    special = bos is None or not text.startswith(bos)
    return processor(text=[text], images=images or None, add_special_tokens=special, return_tensors="pt")


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())  # type: ignore[arg-type]
    warnings.simplefilter("ignore")
    try:
        import safe_rlhf_v  # noqa: F401
    except ModuleNotFoundError:
        print(json.dumps(main(json.loads(sys.argv[1]))))
    else:
        sys.exit("the library can be imported")
