"""The contract kit passes our backbones, and fails ones that break it, one by one."""

import pytest
import torch

from safe_rlhf_v.models import HFVLM, ClipDecoder
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.testing import CHECKS, check_backbone, example_case

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_vlm("llava", tmp_path_factory.mktemp("vlm") / "llava")


def load(folder, cls=HFVLM, **options):
    backbone = cls(model=str(folder), local_files_only=True, **options)
    with torch.no_grad():  # large weights: a small mistake shows
        for parameter in backbone.model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return backbone


def test_a_hugging_face_model_passes(folder):
    check_backbone(load(folder), reload=lambda path: HFVLM(model=str(path), local_files_only=True), atol=1e-4)


def test_an_open_clip_tower_with_a_decoder_passes(world):
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    torch.manual_seed(0)
    check_backbone(ClipDecoder(str(world / "tokenizer"), tower, DECODER, SlotSettings(3, 16), freeze_tower=False))


class SeesPadding(HFVLM):
    """Ignores the attention mask."""

    def trunk(self, input_ids, attention_mask, *rest, **more):
        mask = torch.ones_like(attention_mask) if attention_mask.dim() == 2 else attention_mask
        return super().trunk(input_ids, mask, *rest, **more)


class Blind(HFVLM):
    """Gives every picture the same features."""

    def encode(self, images):
        features = super().encode(images)
        return features._replace(tokens=tuple(torch.zeros_like(tokens) for tokens in features.tokens))


class ForgetsTheConversation(HFVLM):
    """Reads the question only; its pictures all stand in front of it."""

    def prepare_prompts(self, prompts):
        return super().prepare_prompts(Prompts(prompts.images, prompts.image_ids, prompts.questions))


class ForgetsTheSystemText(HFVLM):
    """Reads the turns only."""

    def prepare_prompts(self, prompts):
        turns_only = tuple(context._replace(system="") for context in prompts.contexts)
        return super().prepare_prompts(prompts._replace(contexts=turns_only))


class EndsPrompts(HFVLM):
    """Puts the end token behind each prompt."""

    def prepare_prompts(self, prompts):
        tokens, images = super().prepare_prompts(prompts)
        fields = {name: [[*row, 0] for row in rows] for name, rows in tokens.token_fields.items()}
        return tokens._replace(ids=[[*ids, self.eos_id] for ids in tokens.ids], token_fields=fields), images


class BansTheEnd(HFVLM):
    """Says that the end token may not be drawn."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.banned_ids = (*self.banned_ids, self.eos_id)


class TakesTemplates(HFVLM):
    """Lets special tokens in a response act."""

    def text_ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class Noisy(HFVLM):
    """Adds noise in evaluation, too."""

    def trunk(self, *args, **options):
        hidden = super().trunk(*args, **options)
        return hidden + 0.01 * torch.randn_like(hidden)


class ShiftedPositions(HFVLM):
    """Counts positions of single tokens from 0, as a sampler without their positions would."""

    def trunk(self, input_ids, attention_mask, positions, features, extras, cache=None):
        positions = positions if input_ids.shape[1] > 1 else torch.zeros_like(positions)
        return super().trunk(input_ids, attention_mask, positions, features, extras, cache)


class CutsPrompts(HFVLM):
    """Truncates a prompt that is too long."""

    def prepare_prompts(self, prompts):
        tokens, images = super().prepare_prompts(prompts)
        room = self.max_length - 1 if self.max_length else None
        return tokens._replace(ids=[ids[:room] for ids in tokens.ids]), images


class HalfPrecisionScores(HFVLM):
    """Gives log-probabilities in bfloat16."""

    def read(self, tokens, features, *, log_probs=False):
        states = super().read(tokens, features, log_probs=log_probs)
        return states._replace(log_probs=None if states.log_probs is None else states.log_probs.bfloat16())


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SeesPadding, "padding"),
        (Blind, "pictures"),
        (ForgetsTheConversation, "conversations"),
        (ForgetsTheSystemText, "conversations"),
        (EndsPrompts, "ends"),
        (BansTheEnd, "sampling"),
        (TakesTemplates, "special_tokens"),
        (Noisy, "repetition"),
        (ShiftedPositions, "sampling"),
        (CutsPrompts, "truncation"),
        (HalfPrecisionScores, "shapes"),
    ],
)
def test_a_backbone_that_breaks_a_promise_fails_its_check(broken, check, folder):
    with pytest.raises(AssertionError, match=rf"(?m)^{check}: "):
        check_backbone(load(folder, broken), atol=1e-4)


def test_unused_parameters_and_wrong_files_are_found(folder, tmp_path):
    backbone = load(folder)
    backbone.unused = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"gradients: no gradient reaches unused\.weight"):
        check_backbone(backbone, atol=1e-4)

    class Pickles(HFVLM):
        def save_pretrained(self, folder):
            super().save_pretrained(folder)
            torch.save({}, folder + "/extra.bin")

    with pytest.raises(AssertionError, match=r"saving: .*extra\.bin"):
        check_backbone(load(folder, Pickles), reload=lambda path: load(path), atol=1e-4)


def test_each_check_can_be_called_alone(folder):
    case = example_case(load(folder))
    CHECKS[0](case)
    with pytest.raises(ValueError, match="both prompts and responses"):
        check_backbone(case.backbone, prompts=case.prompts)
