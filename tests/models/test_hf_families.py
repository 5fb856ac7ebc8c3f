"""Rules about families that hold for several of them: what is packed, padded, refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoImageProcessor

from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.tiny import write_tiny_vlm


def config(kinds: list[str] | None) -> Any:
    return SimpleNamespace(get_text_config=lambda: SimpleNamespace(layer_types=kinds))


@pytest.mark.parametrize("kinds", [None, [], ["full_attention"], ["sliding_attention", "full_attention"]])
def test_attention_is_packed(kinds: list[str] | None) -> None:
    assert families.packs(config(kinds))


@pytest.mark.parametrize(
    "kind", ["linear_attention", "conv", "mamba", "recurrent", "indexed_attention", "chunked_attention", "unheard_of"]
)
def test_what_carries_a_state_is_not_packed(kind: str) -> None:
    assert not families.packs(config(["full_attention", kind]))


def test_pictures_of_several_sizes_are_stacked() -> None:
    """As a processor stacks them: zeros at the right and at the bottom."""
    images = [
        {"pixel_values": torch.ones(1, 3, 2, 5), "image_sizes": torch.tensor([[2, 5]])},
        {"pixel_values": torch.ones(1, 3, 4, 1), "image_sizes": torch.tensor([[4, 1]])},
    ]
    stacked = families.stack_images(images)
    assert stacked["pixel_values"].shape == (2, 3, 4, 5)
    assert stacked["pixel_values"].sum((1, 2, 3)).tolist() == [30, 12]
    assert stacked["pixel_values"][0, :, :2].all() and stacked["pixel_values"][1, :, :, :1].all()
    assert stacked["image_sizes"].tolist() == [[2, 5], [4, 1]]
    assert families.stack_images([]) == {}


@pytest.mark.parametrize("method", ["to", "reshape", "view", "flatten", "dtype", "shape"])
def test_features_are_used_as_one_tensor(method: str) -> None:
    """Families differ in what they call on the joint features: Janus reshapes them."""
    pooled = families.encoder_outputs(families.ImageFeatures((torch.ones(2, 4), torch.ones(1, 4)), ((), ())))
    tensor = pooled["image"].pooler_output
    assert len(tensor) == 2
    expected = getattr(torch.ones(3, 4), method)
    assert callable(getattr(tensor, method)) == callable(expected)
    assert tensor.reshape(-1, 2).shape == (6, 2)


class Without(nn.Module):
    """A model without the parts that are asked for."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        text = SimpleNamespace()
        self.config = SimpleNamespace(model_type="strange", get_text_config=lambda: text)
        self.__dict__.update(parts)


class Core:
    """Takes features, and has no decoder."""

    def forward(self, input_ids: Any, mm_encoder_outputs: Any) -> None: ...

    def get_image_features(self) -> None: ...


@pytest.mark.parametrize(
    ("parts", "reason"),
    [({}, "takes no precomputed image features"), ({"model": Core()}, "has no decoder with an LM head")],
)
def test_models_of_another_shape_are_refused_in_one_line(parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"'strange' {reason}.*not supported$"):
        families.check_supported(Without(**parts))


def test_a_projector_that_nobody_recognises_is_not_trained(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(write_tiny_vlm("llava", tmp_path))
    monkeypatch.setattr(families, "part_of", lambda name: "language" if "language" in name else "tower")
    HFVLM(model=folder, local_files_only=True)
    with pytest.raises(ValueError, match="freeze_projector: false would train nothing: no projector is recognised"):
        HFVLM(model=folder, local_files_only=True, freeze_projector=False)


def test_a_family_without_a_pillow_processor_uses_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    vlm = HFVLM(model=str(write_tiny_vlm("llava", tmp_path)), local_files_only=True, self_test=False)
    of_another = CLIPImageProcessor(**vlm.processor.image_processor.to_dict())
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda *args, **options: of_another)
    messages: list[str] = []
    monkeypatch.setattr(families._LOG, "warning", lambda line, *words: messages.append(line % words))
    families.load_processor(str(tmp_path), vlm.model.config)
    assert messages == ["llava has no Pillow image processor; CLIPImageProcessor is used"]
