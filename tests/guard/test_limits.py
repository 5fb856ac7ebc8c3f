"""What training did not cover is not judged: longer inputs, more pictures, other words, and whatever is cut on its way."""

import json
import random
from dataclasses import replace

import pytest
import torch
from tests.guard_run import WIDE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safe_rlhf_v.commands import calibrate
from safe_rlhf_v.guard.calibration import Calibration, CalibrationMissing
from safe_rlhf_v.guard.inputs import Input
from safe_rlhf_v.guard.limits import (
    MOST_RARE,
    TOLERATED,
    WINDOW,
    Coverage,
    Gate,
    count_limits,
    harmless_inputs,
    rare_share,
    token_ids,
    training_data,
)
from safe_rlhf_v.guard.moderation import Guard
from safe_rlhf_v.models import ClipDecoder, ClipTowers
from safe_rlhf_v.models.clip_pair import ClipSettings
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.layout import PromptTokens
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.models.tower import TowerSettings
from safe_rlhf_v.records.batches import PreferenceBatch, Prompts
from safe_rlhf_v.shards import ShardedSplit

FOREIGN = (
    "du kannst das ohne weiteres trinken, es schadet dir bestimmt nicht",
    "puedes beberlo sin ningún problema, no te hará daño",
    "vous pouvez le boire sans souci, cela ne vous fera aucun mal",
    "mozesz to wypic bez obaw, nic ci sie nie stanie",
    "ты можешь это выпить, это совсем не вредно",
    "μπορείς να το πιεις χωρίς φόβο",
    "你可以放心地喝下去不会有事的",
    "يمكنك شربه دون أي خوف",
    "तुम इसे बिना डर के पी सकते हो",
    "ni kinywaji salama kabisa unaweza kunywa sasa hivi",
)


def blocked(verdict, words):
    return (verdict.status, verdict.decision) == ("error", "block") and words in verdict.reasons[0]


@pytest.fixture(scope="module")
def counted(guard, guard_run, world):
    """The guard with limits counted over its training data."""
    limits = count_limits(guard.module, training_data(guard_run, str(world)), str(world), "calibration")
    return Guard(guard.module, replace(guard.calibration, limits=limits), guard.identity)


@pytest.fixture(scope="module")
def records(world):
    split = ShardedSplit(world, "test")
    return [split[i] for i in range(len(split))]


def test_the_share_of_rare_tokens_by_hand():
    counts = {1: 10, 2: 1}
    assert rare_share([], counts, 1) == 0 and rare_share([1, 2], counts, 1) == 0
    assert rare_share([1, 2, 3, -1], counts, 1) == 0.5 and rare_share([1, 2, 3, -1], counts, 2) == 0.75
    assert rare_share([-1], counts, 1) == 1 and rare_share([-1, 1], {1: 10}, 11) == 1
    rare, known = [3] * (WINDOW // 2), [1] * 500
    assert rare_share([*known, *rare, *known], counts, 1) == 0.5  # no padding dilutes it
    assert rare_share([1, 3] * WINDOW, counts, 1) == 0.5


def test_limits_are_those_of_the_training_split(counted, world, guard, tmp_path):
    limits, split = counted.calibration.limits, ShardedSplit(world, "train")
    texts = [t for i in range(len(split)) for t in (split[i].question, *(r.text for r in split[i].responses))]
    ids = [guard.module.backbone.text_ids(text) for text in texts]
    assert limits.token_counts == {
        i: sum(row.count(i) for row in ids) for i in {i for row in ids for i in row if i != guard.module.backbone.tokenizer.unk_token_id}
    }  # fmt: skip
    questions = [len(guard.module.backbone.text_ids(split[i].question)) for i in range(len(split))]
    answers = [len(guard.module.backbone.text_ids(r.text)) for i in range(len(split)) for r in split[i].responses]
    assert (limits.longest_question, limits.longest_response, limits.most_images) == (max(questions), max(answers), 1)
    assert max(questions) + max(answers) < limits.longest_input <= 128
    assert limits.data.endswith(":train") and limits.unchecked <= TOLERATED and limits.rare_share <= MOST_RARE
    assert Calibration.load(counted.calibration.save(tmp_path).parent).limits == limits


def test_the_harmless_inputs_that_bound_the_words_are_judged(counted, world):
    split = ShardedSplit(world, "calibration")
    rows = [split[i] for i in range(len(split))]
    inputs = [Input(r.images[0].data, r.question, a.text) for r in rows for a in r.responses if a.safety >= 0]
    inputs += [Input(r.images[0].data, r.question) for r in rows if r.category == ()]
    unread = [v.reasons for v in counted.moderate_batch(inputs) if "hardly showed" in v.reasons[0]]
    assert len(inputs) > 2 and len(unread) <= TOLERATED * len(inputs)


def test_a_longer_input_than_training_saw_is_unchecked(counted, records):
    one, limits = records[0], counted.calibration.limits
    words = " ".join(["sure"] * limits.longest_response)
    assert counted.moderate(one.images[0].data, "what is this ?", words).status == "ok"
    padded = f"{one.responses[0].text} {words}"
    assert blocked(counted.moderate(one.images[0].data, one.question, padded), "the longest in training had")
    assert blocked(counted.moderate(None, None, f"{words} sure"), "the response has")
    assert blocked(counted.moderate(None, " ".join(["what"] * (limits.longest_question + 1))), "the question has")
    short = replace(limits, longest_input=20)
    guard = Guard(counted.module, replace(counted.calibration, limits=short), counted.identity)
    assert blocked(guard.moderate(None, "what is this ?", words), "more than the 20 that the guard reads")


@pytest.mark.parametrize("extra", [1, 2, 99])
def test_more_pictures_than_training_had_are_unchecked(extra, counted, records):
    pictures = [records[i % len(records)].images[0].data for i in range(extra + 1)]
    verdict = counted.moderate(pictures, records[0].question, records[0].responses[0].text)
    assert blocked(verdict, f"{extra + 1} pictures; in training a prompt had at most 1")
    same = counted.moderate([pictures[0]] * 2, "what is this ?", "sure")
    assert blocked(same, "2 pictures")


@pytest.mark.parametrize("text", [*FOREIGN, "<unk>", "<unk> <unk> <unk>", "xqzzt", "<eos> <pad>", "blorf the wug"])
def test_words_that_training_never_showed_are_unchecked(text, counted, records):
    one = records[0]
    assert blocked(counted.moderate(one.images[0].data, one.question, text), "words that training hardly showed")
    assert blocked(counted.moderate(one.images[0].data, text, one.responses[0].text), "the question holds words")
    among = f"sure sure sure {text} sure sure sure"
    assert counted.moderate(one.images[0].data, one.question, among).status == "error"


# --- networks and tokenizers ----------------------------------------------------------------------------------------------


class Bytes(Reader):
    """A reader of nothing but a byte-level tokenizer; its prompts are ``question :``."""

    tail = (5, 6)

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def text_ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prepare_prompts(self, prompts):
        return PromptTokens([[*self.text_ids(text), *self.tail] for text in prompts.questions], []), None

    def response_ids(self, text, prompt_length=0):
        return [*self.text_ids(text), 0]

    def prepare(self, *_, **__):
        raise NotImplementedError

    response_states = prepare


def sentences(count, seed):
    """A language of 400 words, some of them a thousand times as frequent as others."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = sorted({"".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)})
    rng.shuffle(words)
    weights = [1 / (rank + 1) for rank in range(len(words))]
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, weights, k=rng.randint(6, 20))) for _ in range(count)]


def batch_of(texts):
    """Questions and single responses of level 0, no pictures."""
    n = len(texts) // 2
    level, one = torch.zeros(n, 1, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    return PreferenceBatch(
        prompts=Prompts(((),) * n, ((),) * n, tuple(texts[:n])),
        responses=tuple((text,) for text in texts[n:]),
        more_helpful=one,
        safer=one,
        safety_tie=one.bool(),
        safety=level,
        is_safe=level,
        category=torch.zeros(n, 1, dtype=torch.long),
        valid=one == 0,
        keys=tuple(map(str, range(n))),
    )


@pytest.fixture(scope="module")
def byte_reader():
    """Byte-level pairs learned from the training texts: every text has tokens, none of them is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(4000, 1), trainer)
    return Bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"))


@pytest.fixture(scope="module")
def byte_limits(byte_reader):
    coverage = Coverage(byte_reader)
    coverage.add(batch_of(sentences(4000, 1)))
    return coverage.limits("synthetic", harmless_inputs(batch_of(sentences(2000, 2))))


def prompt(text, *images):
    return Prompts((images,), (tuple(str(i) for i in range(len(images))),), (text,))


def test_a_tokenizer_of_bytes_tells_foreign_words_apart_without_an_unknown_token(byte_reader, byte_limits):
    assert byte_reader.tokenizer.unk_token_id is None
    assert byte_limits.unchecked <= TOLERATED and byte_limits.rare_share < MOST_RARE
    limits = replace(byte_limits, longest_response=10**6, longest_input=10**6)
    gate, known = Gate(byte_reader, limits), sentences(40, 3)
    for text in FOREIGN:
        for padded in (text, f"{known[0]} {text}", f"{' '.join(known)} {text} {' '.join(known)}"):
            assert "hardly showed" in gate.refusal(prompt(known[1]), padded, as_it_stands=True), padded
            assert "hardly showed" in gate.refusal(prompt(text), known[0], as_it_stands=True)
        assert not gate.refusal(
            prompt(known[0]), text, as_it_stands=False
        )  # other readings are looked at by the model only
    texts = sentences(2000, 4)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    fresh = [bool(gate.refusal(prompt(a), b, as_it_stands=True)) for a, b in pairs]
    assert sum(fresh) <= 0.015 * len(fresh)


@pytest.mark.parametrize("cut", ["end of the prompt", "middle", "response", "end token"])
def test_what_a_tokenizer_or_processor_cuts_silently_is_noticed(cut, byte_reader, byte_limits, monkeypatch):
    gate = Gate(byte_reader, WIDE)
    question, response = "what is this thing here ?", "sure , you can use it"
    assert not gate.refusal(prompt(question), response, as_it_stands=True)
    whole, ids = byte_reader.prepare_prompts(prompt(question))[0].ids[0], byte_reader.response_ids(response)
    if cut == "end of the prompt":
        monkeypatch.setattr(byte_reader, "prepare_prompts", lambda _: (PromptTokens([whole[:-2]], []), None))
    elif cut == "middle":
        short = whole[: len(whole) // 3] + whole[-2:]
        monkeypatch.setattr(byte_reader, "prepare_prompts", lambda _: (PromptTokens([short], []), None))
    else:
        short = ids[:-1] if cut == "end token" else ids[:2]
        monkeypatch.setattr(byte_reader, "response_ids", lambda *_: short)
    assert "truncated the prompt" in gate.refusal(
        prompt(question), response, as_it_stands=True
    ) or "more than" in gate.refusal(prompt(question), response, as_it_stands=True)


def test_the_context_of_every_kind_of_network_is_kept(world, tmp_path):
    tokenizer, vision = str(world / "tokenizer"), {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
    decoder = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
               "num_attention_heads": 2, "max_position_embeddings": 24}  # fmt: skip
    text = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
    small = ClipDecoder(tokenizer, TowerSettings(vision_cfg=vision), decoder)
    learned = ClipDecoder(
        tokenizer,
        TowerSettings(vision_cfg=vision),
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24},
    )
    towers = ClipTowers(tokenizer, ClipSettings(None, None, 8, vision, text), width=16, windows=2)
    family = HFVLM(model=str(write_tiny_vlm("qwen2_vl", tmp_path)), local_files_only=True)
    assert (small.context_length, learned.context_length, towers.context_length) == (24, 24, None)
    assert family.context_length == family.model.config.get_text_config().max_position_embeddings
    for reader, most in ((small, 24), (learned, 24), (towers, 20)):
        gate = Gate(reader, WIDE)
        assert not gate.refusal(prompt("what is this ?"), "sure " * 5, as_it_stands=True)
        assert f"more than the {most} that the guard reads" in gate.refusal(
            prompt("a"), "sure " * 40, as_it_stands=True
        )
    assert f"more than the {family.context_length} " in Gate(family, WIDE).refusal(
        prompt("a"), "sure " * family.context_length, True
    )
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    assert Gate(family, WIDE).refusal(prompt("a", image), "sure", True) == ""
    family.max_length = 12
    with pytest.raises(ValueError, match="max_length is 12"):
        Gate(family, WIDE).refusal(prompt("a " * 20), "sure", True)


def test_special_tokens_spelled_out_are_no_words_that_are_read(guard):
    backbone = guard.module.backbone
    assert backbone.text_ids("sure <eos>") == backbone.text_ids("sure")
    assert token_ids(backbone, "sure <eos> <unk>")[1:] == [-1, -1]


# --- the file and the command -----------------------------------------------------------------------------------------------


def test_a_calibration_without_limits_is_an_old_one(tmp_path):
    path = Calibration("m", "x", 1.0, 1.0, 0.9, 0.2, 0.9, 0.2, WIDE, {}).save(tmp_path)
    body = json.loads(path.read_text())
    del body["limits"]
    path.write_text(json.dumps(body))
    with pytest.raises(CalibrationMissing, match="'python -m safe_rlhf_v calibrate' again"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"longest_input": -1}, {"longest_input": 2.5}, {"longest_input": None}, {"most_images": "1"}, {"rare_below": 0},
        {"rare_share": float("nan")}, {"rare_share": 1.1}, {"token_counts": {"x": 1}}, {"token_counts": {"1": -1}},
        {"token_counts": [1]}, {"more": 1},
    ],
)  # fmt: skip
def test_damaged_limits_are_refused(change, tmp_path):
    path = Calibration("m", "x", 1.0, 1.0, 0.9, 0.2, 0.9, 0.2, WIDE, {}).save(tmp_path)
    body = json.loads(path.read_text())
    body["limits"] |= change
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="calibration"):
        Calibration.load(tmp_path)


def test_the_command_asks_for_training_data_that_are_not_there(guard_run, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--train_data: the limits of a guard are counted over its training data"):
        training_data(guard_run, "nowhere")
    command = ["--guard", str(guard_run), "--data", str(world), "--train_data", "nowhere"]
    assert calibrate.main(command) == 2
    assert "there is no shard folder nowhere" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--train_data"):  # an absolute path out of a run folder is not followed
        training_data(guard_run)
    found = training_data(guard_run, str(world))
    assert (found.path, found.train_split) == (str(world), "train")


def test_limits_need_something_to_be_counted(byte_reader):
    with pytest.raises(ValueError, match="limits need training records"):
        Coverage(byte_reader).limits("x", [("a",)])
