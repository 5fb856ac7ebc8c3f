"""The light guard's reader: parts apart and together, windows, missing parts, what is refused, and a guard on top of it."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.guard_run import WIDE

from safe_rlhf_v.commands import fit as cli
from safe_rlhf_v.guard.calibration import Calibration
from safe_rlhf_v.guard.moderation import Guard, load_module
from safe_rlhf_v.models import ClipTowers, EvidenceHead, ScalarHead
from safe_rlhf_v.models.clip_pair import ClipSettings
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.world import WORLD

VISION = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
TEXT = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
CLIP = ClipSettings(embed_dim=8, vision_cfg=VISION, text_cfg=TEXT)


def picture(seed, size=(32, 32)):
    return torch.randint(0, 255, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def towers(world):
    torch.manual_seed(0)
    return ClipTowers(str(world / "tokenizer"), CLIP, width=16, windows=3).eval()


PROMPTS = Prompts(
    ((picture(0),), (), (picture(1, (20, 50)),)), (("a",), (), ("b",)), ("what is it ?", "is it safe ?", "")
)
RESPONSES = [("yes you can .", ""), ("no", "this is one red knife . " * 3), ("", "no")]


def states(towers, prompts, generated):
    with torch.no_grad():
        return towers.response_states(towers.prepare(prompts, generated))


def test_company_and_order_do_not_matter(towers):
    together = states(towers, PROMPTS, RESPONSES)
    assert together.hidden.shape == (6, 1, 16) and together.mask.all()
    for i in range(3):
        row = Prompts(*(part[i : i + 1] for part in PROMPTS))
        for k in (0, 1):
            alone = states(towers, row, [RESPONSES[i][k : k + 1]])
            torch.testing.assert_close(alone.hidden[0], together.hidden[2 * i + k], rtol=1e-5, atol=1e-5)
    order = [2, 0, 1]
    turned = states(
        towers, Prompts(*(tuple(part[i] for i in order) for part in PROMPTS)), [RESPONSES[i] for i in order]
    )
    torch.testing.assert_close(turned.prompt.view(3, 2, 16)[1], together.prompt.view(3, 2, 16)[0], rtol=1e-5, atol=1e-5)


def test_the_state_is_the_fusion_of_the_three_vectors_by_hand(towers):
    """The first row with everything, the last without a question."""
    with torch.no_grad():
        tokens = [[1, *towers.text_ids(text), 2] for text in ("what is it ?", "yes you can .", "no")]
        texts = torch.tensor([row + [0] * (12 - len(row)) for row in tokens])
        question, text, no = F.normalize(towers.text(texts), dim=-1) * 8**0.5
        missing = towers.missing[1] * 8**0.5
        prepared = towers.prepare(PROMPTS, RESPONSES)
        pixels = (prepared.pixels.permute(0, 3, 1, 2).float() - towers.mean) / towers.std
        first, last = F.normalize(towers.visual(pixels), dim=-1) * 8**0.5
        for i, (image, asked, said) in {0: (first, question, text), 5: (last, missing, no)}.items():
            parts = torch.cat([image, asked, said, image * asked, image * said, asked * said])
            torch.testing.assert_close(
                states(towers, PROMPTS, RESPONSES).prompt[i], towers.fusion(parts), atol=1e-5, rtol=1e-5
            )


def test_every_image_and_text_is_encoded_once(towers):
    prepared = towers.prepare(
        Prompts(((picture(0),), (picture(0),)), (("a",), ("a",)), ("q", "q")), [("x", "x", ""), ("q", "y", "x")]
    )
    assert len(prepared.pixels) == 1 and len(prepared.windows) == 3  # q, x, y
    assert prepared.parts.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, -1], [0, 0, 0], [0, 0, 2], [0, 0, 1]]


def test_long_texts_are_read_in_windows_and_the_strongest_counts(towers):
    """Ten tokens a window: 25 words make three, whose vectors meet by their elementwise maximum."""
    text = " ".join(["what is it ?", "this is one red knife .", "yes you can ."] * 2)[:200]
    ids = towers.text_ids(text)
    assert towers.room == 10 and 20 < len(ids) <= 30 and towers.max_length == 30
    windows = torch.tensor(towers._windows(towers.text_ids(text)))
    assert windows.shape == (3, 12) and windows[0].tolist() == [1, *ids[:10], 2] and (windows[:, 0] == 1).all()
    with torch.no_grad():
        expected = F.normalize(towers._texts(windows).amax(0), dim=-1)
        prepared = towers.prepare(Prompts(((),), ((),), ("",)), [(text, "no")])
        assert prepared.windows_of.tolist() == [[0, 1, 2], [3, 3, 3]]
        found = F.normalize(towers._texts(prepared.windows)[prepared.windows_of].amax(1), dim=-1)
    torch.testing.assert_close(found[0], expected)
    assert len(towers.response_ids(text * 3)) == 31 and towers.response_ids("no")[-1] == 2


def test_what_cannot_be_read_whole_is_refused(towers):
    with pytest.raises(ValueError, match="31 tokens and max_length is 30"):
        towers.prepare_prompts(Prompts(((),), ((),), ("it " * 31,)))
    two = Prompts(((picture(0), picture(1)),), (("a", "b"),), ("q",))
    for refuse in (towers.prepare_prompts, lambda prompts: towers.prepare(prompts, [("x",)])):
        with pytest.raises(ValueError, match="2 images, ClipTowers reads one"):
            refuse(two)
    with pytest.raises(ValueError, match="no language model"):
        towers.response_states(towers.prepare(PROMPTS, RESPONSES), log_probs=True)
    assert ScalarHead(towers, 3)(states(towers, PROMPTS, RESPONSES)).shape == (6, 3)
    assert EvidenceHead.needs_log_probs


def test_the_texts_of_a_conversation_are_read_as_one(towers):
    talk = Context("take care .", (Turn("user", "what is it ?", 1), Turn("assistant", "no")))
    prompts = Prompts(((picture(0),),), (("a",),), ("is it safe ?",), (talk,))
    joined = Prompts(((picture(0),),), (("a",),), ("take care . what is it ? no is it safe ?",))
    assert torch.equal(states(towers, prompts, [("yes",)]).prompt, states(towers, joined, [("yes",)]).prompt)
    assert towers.prepare_prompts(prompts)[0].ids == towers.prepare_prompts(joined)[0].ids
    long = talk._replace(system="it " * 31)
    with pytest.raises(ValueError, match="max_length is 30"):
        towers.prepare_prompts(prompts._replace(contexts=(long,)))
    assert towers.prepare(prompts._replace(contexts=(long,)), [("yes",)]).truncated.tolist() == [True]


def test_special_tokens_in_a_text_are_not_special(towers):
    assert towers.tokenizer.eos_token_id not in towers.text_ids("it <eos> is <pad> safe")
    for window in towers._windows(towers.text_ids("it <eos> is")):
        assert window.count(towers.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("prompts", [PROMPTS, Prompts(((), ()), ((), ()), ("", "a"))])
def test_every_parameter_gets_a_gradient_or_zero(prompts, world):
    towers = ClipTowers(str(world / "tokenizer"), CLIP, width=16)
    towers.response_states(
        towers.prepare(prompts, [("yes", "")] * len(prompts.questions))
    ).hidden.square().sum().backward()
    without = {n.split(".")[0] for n, p in towers.named_parameters() if p.grad is None}
    assert without == (set() if prompts is PROMPTS else {"visual"})


def test_frozen_towers_stay_as_they_are(world):
    towers = ClipTowers(str(world / "tokenizer"), CLIP, width=16, freeze_image=True, freeze_text=True).train()
    assert {n.split(".")[0] for n, p in towers.named_parameters() if p.requires_grad} == {"missing", "fusion"}
    before = {n: b.clone() for n, b in towers.visual.named_buffers()}
    towers.response_states(towers.prepare(PROMPTS, RESPONSES))
    assert all(torch.equal(b, before[n]) for n, b in towers.visual.named_buffers())


def local_folder(folder, **text):
    """A folder as open_clip writes it; returns the model in it."""
    from open_clip.model import CustomTextCLIP

    text = {**TEXT, "vocab_size": 200, "pool_type": "eos", "eos_id": 2, **text}
    config = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3},
    }
    torch.manual_seed(3)
    model = CustomTextCLIP(8, VISION, text)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


def test_a_model_in_a_local_folder(world, tmp_path):
    model = local_folder(tmp_path / "towers")
    towers = ClipTowers(str(world / "tokenizer"), ClipSettings(name=f"local-dir:{tmp_path / 'towers'}"))
    torch.testing.assert_close(towers.text.token_embedding.weight, model.text.token_embedding.weight)
    torch.testing.assert_close(towers.mean.flatten(), torch.full((3,), 127.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"vocab_size": 50}, "name the tokenizer of those weights"),
        ({"pool_type": "argmax"}, "end token 2; the text tower"),
        ({"pool_type": "last"}, "only the end token is supported"),
    ],
)
def test_towers_that_do_not_fit_the_tokenizer_are_refused(text, words, world, tmp_path):
    local_folder(tmp_path / "towers", **text)
    with pytest.raises(ValueError, match=words):
        ClipTowers(str(world / "tokenizer"), ClipSettings(name=f"local-dir:{tmp_path / 'towers'}"))


def test_a_light_guard_trains_reloads_and_moderates(world, tmp_path):
    from pathlib import Path

    config = Path(__file__).parents[2] / "configs" / "open_clip_vit_b_32" / "guard.yaml"
    backbone = "--model.init_args.backbone.init_args"
    local_folder(tmp_path / "towers")
    cli.main([
        "fit", f"--config={config}", f"--data.init_args.path={world}", "--data.init_args.batch_size=4",
        "--data.init_args.eval_batch_size=4", "--data.init_args.num_workers=0",
        f"{backbone}.tokenizer={world / 'tokenizer'}", f"{backbone}.clip.name=local-dir:{tmp_path / 'towers'}",
        f"{backbone}.width=16",
        f"--model.init_args.categories=[{','.join(WORLD.categories)}]", "--trainer.accelerator=cpu",
        "--trainer.max_epochs=-1", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
        f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    module, identity = load_module(tmp_path / "run", base=str(tmp_path / "towers"))
    assert isinstance(module.backbone, ClipTowers)
    Calibration(identity, "by hand", 1.0, 1.0, 0.9, 0.2, 0.9, 0.1, WIDE, {}).save(tmp_path / "run")
    guard = Guard.from_pretrained(tmp_path / "run", base=str(tmp_path / "towers"))
    fine, prompt, long = (
        guard.moderate(question="can i use it ?", response=text) for text in ("yes you can .", None, "yes " * 200)
    )
    assert fine.status == prompt.status == "ok" and fine.level is not None and prompt.level is None
    assert long.status == "error" and "more than the 80 that the guard reads" in long.reasons[0]
