"""Nothing of a picture is cut away on its way into a model, whatever its shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from safe_rlhf_v.models import ClipDecoder, ClipTowers
from safe_rlhf_v.models.clip_pair import ClipSettings
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.images import pad_to_square
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.models.tower import TowerSettings
from safe_rlhf_v.records.batches import Prompts

SHAPES = [(30, 180), (180, 30), (64, 64), (41, 83)]
VISION = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}


def pixels(model, image):
    """What the tower gets of one picture."""
    prompts = Prompts(((image,),), (("a",),), ("what ?",))
    prepared = model.prepare(prompts, [["no"]])
    return prepared.pixels if isinstance(model, ClipTowers) else torch.cat(
        [value.float().flatten() for name, value in sorted(prepared.images.pixels.items()) if name.startswith("pixel")]
    )  # fmt: skip


def assert_every_edge_is_seen(model):
    rng = np.random.default_rng(0)
    for height, width in SHAPES:
        image = torch.from_numpy(rng.integers(60, 120, (height, width, 3), dtype=np.uint8))
        before = pixels(model, image)
        for line in ((0,), (-1,), (slice(None), 0), (slice(None), -1)):
            changed = image.clone()
            changed[line] = 255
            after = pixels(model, changed)
            assert after.shape == before.shape and not torch.equal(after, before), (height, width, line)


@pytest.mark.parametrize(
    "family", ["llava", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "llava")]
)
def test_every_family_sees_the_outermost_pixels(family, tmp_path):
    model = HFVLM(model=str(write_tiny_vlm(family, tmp_path)), local_files_only=True)
    assert_every_edge_is_seen(model)


def test_the_readers_of_open_clip_see_the_outermost_pixels(world):
    tokenizer = str(world / "tokenizer")
    decoder = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
               "num_attention_heads": 2}  # fmt: skip
    assert_every_edge_is_seen(ClipDecoder(tokenizer, TowerSettings(vision_cfg=VISION), decoder))
    text = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
    assert_every_edge_is_seen(ClipTowers(tokenizer, ClipSettings(None, None, 8, VISION, text), width=16))


def test_llava_is_given_what_its_own_code_would_give_it(tmp_path):
    """``expand2square`` of LLaVA-1.5, written down a second time: mean colour around, the picture in the middle."""
    model = HFVLM(model=str(write_tiny_vlm("llava", tmp_path)), local_files_only=True)
    image = np.random.default_rng(1).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    square = np.empty((60, 60, 3), dtype=np.uint8)
    square[:] = [int(255 * channel) for channel in (0.48145466, 0.4578275, 0.40821073)]
    square[20:40] = image
    assert np.array_equal(np.asarray(pad_to_square(Image.fromarray(image), model.processor)), square)
    expected = model.processor.image_processor(Image.fromarray(square), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels(model, torch.from_numpy(image)), expected.flatten())
    tall = np.asarray(pad_to_square(Image.fromarray(image.transpose(1, 0, 2)), model.processor))
    assert np.array_equal(tall, square.transpose(1, 0, 2))


@pytest.mark.parametrize("size", [32, 40])
def test_a_processor_that_cuts_squares_too_is_refused(size, tmp_path):
    """Scaled to ``size`` and cut to 28: the edges are lost even of a square."""
    folder = write_tiny_vlm("llava", tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = Path(folder) / name
        if file.is_file():
            body = json.loads(file.read_text())
            body.get("image_processor", body)["size"] = {"shortest_edge": size}
            file.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=r"processor: CLIPImageProcessor.* crops the edges of pictures"):
        HFVLM(model=str(folder), local_files_only=True)
