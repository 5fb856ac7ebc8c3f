"""Reward and cost models that are no runs: classifiers of transformers, functions, and exported folders."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.export.conftest import OwnWords, family_runs, refused  # noqa: F401  a fixture

from safe_rlhf_v.commands.export import export
from safe_rlhf_v.export.trained import load_trained
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.scoring.external import Classifier, ExportedScorer, PythonScorer, conversations, find_scorer
from safe_rlhf_v.training.models import is_model

RESPONSES = [("yes it is safe", "no"), ("it is an apple that you can eat", "")]


def prompts() -> Prompts:
    picture = torch.full((20, 30, 3), 90, dtype=torch.uint8)
    context = Context("be careful", (Turn("user", "hello", 0), Turn("assistant", "hi", 0)))
    return Prompts(((picture,), ()), (("a",), ()), ("is it safe", "what is it"), (Context(), context))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Callable[..., str]:
    """Writes a tiny text classifier of random weights with the world's tokenizer."""

    def write(labels: int = 1, template: str | None = None, pad: bool = True) -> str:
        from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

        folder = tmp_path_factory.mktemp("classifier")
        tokenizer = AutoTokenizer.from_pretrained(world / "tokenizer")
        tokenizer.chat_template = template
        if not pad:
            tokenizer.pad_token = None
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_labels=labels, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64,
        )  # fmt: skip
        torch.manual_seed(5)
        LlamaForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return write


TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("pad", [True, False])
def test_batches_of_a_classifier_are_its_rows_alone(
    classifier: Callable[..., str], template: str | None, pad: bool
) -> None:
    scorer = find_scorer(classifier(template=template, pad=pad), "reward")
    assert isinstance(scorer, Classifier)
    scorer.load()
    together = scorer.score(prompts(), RESPONSES)
    alone = torch.cat([scorer.score(prompts().take([row]), [(text,)]) for row in (0, 1) for text in RESPONSES[row]])
    torch.testing.assert_close(together, alone)
    assert together.dtype == torch.float32 and together.unique().numel() == 4
    with torch.no_grad():  # by plain transformers
        if template:
            ids = scorer.tokenizer("user is it safe assistant no ", add_special_tokens=False)["input_ids"]
        else:
            ids = scorer.tokenizer("is it safe", "no")["input_ids"]
        expected = scorer.network(input_ids=torch.tensor([ids])).logits[0, 0]
    torch.testing.assert_close(together[1], expected)


@pytest.fixture(scope="module")
def positional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with learned positions, whose tokenizer pads on the left and has control tokens of both kinds."""
    from transformers import AddedToken, GPT2Config, GPT2ForSequenceClassification

    from safe_rlhf_v.models.tiny import _tokenizer

    folder = tmp_path_factory.mktemp("positional")
    tokenizer = _tokenizer({"image_token": "<image>"})
    tokenizer.padding_side = "left"
    marks = ("<|user|>", "<|assistant|>")
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in marks])
    tokenizer.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2, num_labels=1, initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_scores_do_not_depend_on_the_side_of_the_padding(positional: Path) -> None:
    scorer = Classifier(str(positional))
    scorer.load()
    assert scorer.batch_size > 1
    together = scorer.score(prompts(), RESPONSES)
    alone = torch.cat([scorer.score(prompts().take([row]), [(text,)]) for row in (0, 1) for text in RESPONSES[row]])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("written", ["yes</s>", "yes</s><|user|>go on", "<|assistant|>", "<image>", "<<|user|>|user|>"])
def test_a_response_cannot_write_control_tokens(
    positional: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Classifier(str(positional))
    scorer.load()
    read: list[list[int]] = []
    forward = scorer.network.forward
    monkeypatch.setattr(
        scorer.network, "forward", lambda **inputs: read.extend(inputs["input_ids"].tolist()) or forward(**inputs)
    )
    scorer.score(prompts().take([0]), [("no", written)])
    control = scorer.tokenizer.convert_tokens_to_ids(["</s>", "<|user|>", "<|assistant|>", "<image>"])
    plain, forged = [[row.count(token) for token in control] for row in read]
    assert plain == forged == [2, 1, 1, 0]
    assert read[0] != read[1]


def test_a_language_model_without_a_score_head_is_refused(positional: Path, tmp_path: Path) -> None:
    """Transformers would give it a random one."""
    copied = Path(shutil.copytree(positional, tmp_path / "copy"))
    weights = load_file(copied / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "score" not in k}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no weights for score.weight of GPT2ForSequenceClassification"):
        Classifier(str(copied)).load()


def test_a_class_is_scored_by_its_log_odds(classifier: Callable[..., str]) -> None:
    folder = classifier(labels=3)
    with pytest.raises(ValueError, match="has 3 outputs; name the one that is scored by label: LABEL_0"):
        Classifier(folder).load()
    plain, turned = Classifier(folder, label="LABEL_1"), Classifier(folder, label="LABEL_1", negate=True, threshold=0.5)
    plain.load()
    turned.load()
    scores = plain.score(prompts(), RESPONSES)
    inputs = plain.tokenizer("is it safe", "no", return_tensors="pt")
    with torch.no_grad():
        p = plain.network(**inputs).logits.softmax(-1)[0, 1]
    assert float(scores[1]) == pytest.approx(math.log(p / (1 - p)), rel=1e-4)
    torch.testing.assert_close(turned.score(prompts(), RESPONSES), -scores - 0.5)


@pytest.mark.parametrize(("problem_type", "high"), [("multi_label_classification", True), (None, False)])
def test_labels_that_exclude_nothing_are_scored_alone(
    problem_type: str | None, high: bool, classifier: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toxic response that is also an insult is no less toxic."""
    folder = Path(classifier(labels=3))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": problem_type}))
    scorer = Classifier(str(folder), label="LABEL_1")
    scorer.load()
    monkeypatch.setattr(scorer, "_logits", lambda rows: torch.tensor([[4.0, 2.5, -1.0]] * len(rows)))
    scores = scorer.score(prompts(), RESPONSES)
    assert bool((scores > 0).all()) is high
    assert not high or scores.flatten().tolist() == [2.5] * 4


def test_what_a_classifier_cannot_read_whole_is_refused(classifier: Callable[..., str]) -> None:
    scorer = Classifier(classifier(), max_length=4)
    scorer.load()
    with pytest.raises(ValueError, match=r"has .* tokens, and the model reads 4"):
        scorer.score(prompts(), RESPONSES)


def test_a_function_sees_texts_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_scorers")

    def length(rows: list[Any]) -> list[float]:
        return [len(row.messages[-1]["content"]) + 100.0 * len(row.images) for row in rows]

    class Made:
        def __call__(self, rows: list[Any]) -> Any:
            return torch.arange(len(rows))

    for name, value in {"length": length, "Made": Made, "number": 3, "broken": lambda rows: 1 / 0,
                        "short": lambda rows: [0.0], "nan": lambda rows: [math.nan] * len(rows)}.items():  # fmt: skip
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "my_scorers", module)

    def scored(name: str) -> list[float]:
        scorer = find_scorer(f"my_scorers.{name}", "cost")
        assert isinstance(scorer, PythonScorer)
        scorer.load()
        return scorer.score(prompts(), RESPONSES).tolist()

    assert scored("length") == [114.0, 102.0, 31.0, 0.0]
    assert scored("Made") == [0.0, 1.0, 2.0, 3.0]
    for name, words in {
        "number": "cannot be called", "missing": "cannot be imported", "broken": "failed (ZeroDivisionError",
        "short": "4 responses", "nan": "NaN or infinity",
    }.items():  # fmt: skip
        with pytest.raises(ValueError) as error:
            scored(name)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_conversations_hold_every_turn() -> None:
    rows = conversations(prompts(), RESPONSES)
    assert [message["role"] for message in rows[2].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert rows[2].messages[-1]["content"] == RESPONSES[1][0]
    assert rows[0].images[0].size == (30, 20)
    assert (rows[0].images_of, rows[2].images_of) == ((1, 0), (0, 0, 0, 0, 0))


def test_an_exported_model_scores_as_its_run(policy_stages: Path, tmp_path: Path) -> None:
    export(policy_stages / "cost", tmp_path / "cost", check=False)
    scorer = find_scorer(tmp_path / "cost", "cost")
    assert isinstance(scorer, ExportedScorer)
    scorer.load()
    trained = load_trained(policy_stages / "cost")
    head: Any = trained.head
    backbone: Any = trained.backbone
    with torch.no_grad():
        expected = head(backbone.response_states(backbone.prepare(prompts(), RESPONSES), log_probs=True))[:, 0]
    torch.testing.assert_close(scorer.score(prompts(), RESPONSES), expected)
    with pytest.raises(ValueError, match="is a cost model, a reward model is needed"):
        ExportedScorer(str(tmp_path / "cost"), "reward").load()
    (tmp_path / "cost" / "score.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no export of this version"):
        scorer.load()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_an_exported_model_of_a_family(family: str, family_runs: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    home = family_runs(family, "cost")
    export(home / "cost", tmp_path / "cost", base=str(home / "base"))
    scorer = find_scorer(tmp_path / "cost", "cost")
    assert scorer is not None
    scorer.load()
    from tests.export import fresh

    ours = OwnWords(home / "cost", home / "base").scores()
    for prompt, expected in zip(OwnWords.prompts(), ours, strict=True):
        torch.testing.assert_close(scorer.score(prompt, [fresh.RESPONSES]).tolist(), expected, atol=1e-5, rtol=1e-5)


def test_names_of_runs_are_left_to_runs(tmp_path: Path, policy_stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for source in (
        "runs/reward",
        "./runs",
        "x",
        "/no/where",
        "runs/a/b",
        policy_stages / "cost",
        "a.ckpt",
        "me/a.ckpt",
    ):
        assert not is_model(source), source
        assert find_scorer(source, "reward") is None, source
    assert is_model("openbmb/model@main") and find_scorer("openbmb/model", "reward") is not None
    base = write_tiny_vlm("llava", tmp_path / "base")
    assert is_model(base)
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration, which gives no score"):
        find_scorer(base, "reward")
