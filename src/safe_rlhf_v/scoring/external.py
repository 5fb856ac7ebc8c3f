"""Reward and cost models that are no runs of this library: they read texts and pictures with a tokenizer of their own.

A reward says how helpful a response is, higher is more; a cost how harmful, and above 0 means harmful.
Shapes: B prompts, K responses each, N = B x K responses, prompt by prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safe_rlhf_v.models.plain_inputs import split_control
from safe_rlhf_v.models.prompt_writer import control_pattern, control_tokens
from safe_rlhf_v.models.sources import CHECKPOINT_SUFFIX, CLASSIFIES, load_or_refuse, load_weights
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.training.models import (
    CLIP_FILE,
    CONFIG_FILE,
    EXPORT_FILE,
    is_hub_name,
    load_model,
    read_json,
)


class Conversation(NamedTuple):
    """One response in its place, as an external model reads it.

    Attributes:
        messages: ``{"role": ..., "content": ...}`` of every turn, the response last; contents are plain texts.
        images: Pictures of the conversation (PIL), in order.
        images_of: Number of pictures in each message.
    """

    messages: tuple[dict[str, str], ...]
    images: tuple[Any, ...]
    images_of: tuple[int, ...]


class ExternalScorer(nn.Module, ABC):
    """A reward or cost model that reads texts and pictures. It is built by :meth:`load`, frozen, and moved like any module."""

    name: str
    """How messages name it."""

    def load(self) -> None:
        """Build the network; by default there is none."""

    @abstractmethod
    def raw_scores(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        """(N,) scores.

        Args:
            prompts: B prompts.
            responses: B x K texts.
        """

    @torch.no_grad()
    def score(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        """(N,) float32 scores on the CPU.

        Raises:
            ValueError: If a score is missing, NaN or infinite.
        """
        count = sum(map(len, responses))
        scores = torch.as_tensor(self.raw_scores(prompts, responses)).detach().float().cpu()
        if scores.shape != (count,):
            raise ValueError(f"{self.name}: gave scores of shape {tuple(scores.shape)} for {count} responses")
        if not bool(scores.isfinite().all()):
            raise ValueError(f"{self.name}: gave NaN or infinity for a response; mend it, or leave such prompts out")
        return scores


class Classifier(ExternalScorer):
    """Any ``AutoModelForSequenceClassification``, with its own tokenizer and chat template.

    A model with one output scores by it. One with several is a classifier: ``label`` names the class, and the score is its
    log-odds, above 0 where its probability is above one half: among all classes, or by itself where the config's
    ``problem_type`` is ``multi_label_classification``. A tokenizer without chat template reads the prompt and the
    response as a pair of texts. Control tokens that a text spells out are split by a space. A model with a vision tower sees
    the pictures; others read the texts alone.

    YAML::

        cost: {class_path: safe_rlhf_v.scoring.external.Classifier, init_args: {model: me/toxicity, label: toxic}}
    """

    def __init__(
        self,
        model: str,
        label: str | None = None,
        negate: bool = False,
        threshold: float = 0.0,
        batch_size: int = 16,
        max_length: int | None = None,
    ) -> None:
        """Keep the settings; the network is built later.

        Args:
            model: Folder, or hub name of a model that was downloaded before.
            label: Class that is scored, of a model with several outputs.
            negate: Turn the sign: of a model that is high where it should be low (a safety score as a cost).
            threshold: Is subtracted from the (negated) score, so that a cost above 0 is harmful.
            batch_size: Responses at a time.
            max_length: Most tokens that the model reads; without it what its tokenizer and its positions allow. More are refused.

        Raises:
            ValueError: If ``batch_size`` is not positive.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
        self.name = model
        self.label = label
        self.sign = -1.0 if negate else 1.0
        self.threshold = threshold
        self.batch_size = batch_size
        self.max_length = max_length
        self.fetch = False

    def load(self) -> None:
        """Load network and tokenizer. Raises: ValueError: In one line, if they cannot be used."""
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        hub = {"local_files_only": not self.fetch}
        config = load_or_refuse("scorer", self.name, AutoConfig.from_pretrained, self.name, **hub)
        load = AutoModelForSequenceClassification.from_pretrained
        network = load_weights("scorer", self.name, load, config=config, **hub)
        self.network: Any = network.requires_grad_(False).eval()
        self.tokenizer: Any = load_or_refuse("tokenizer", self.name, AutoTokenizer.from_pretrained, self.name, **hub)
        self.tokenizer.padding_side = "right"  # on the left it would move the positions of a shorter row's tokens
        self.processor: Any = None
        if hasattr(config, "vision_config"):
            from transformers import AutoProcessor

            self.processor = load_or_refuse("processor", self.name, AutoProcessor.from_pretrained, self.name, **hub)
        self.index = self._index(config)
        self.exclusive = config.problem_type != "multi_label_classification"
        self._control = self._control_of()
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        limits = [n for n in (self.max_length, positions, self.tokenizer.model_max_length) if n is not None]
        self.limit = min([int(n) for n in limits if 0 < n < 10**9], default=None)
        pad = config.get_text_config().pad_token_id
        if pad is None or pad != self.tokenizer.pad_token_id:
            self.batch_size = 1  # nothing could fill a shorter row, or the network would take it for its last token

    def _control_of(self) -> str:
        """Regular expression of the tokens that no text may act as."""
        written: list[str] = []
        for roles in (("user",), ("user", "assistant"), ("user", "assistant", "user")) if self._template else ():
            try:
                messages = [{"role": role, "content": "TEXT"} for role in roles]
                written.append(
                    self.tokenizer.apply_chat_template(messages, chat_template=self._template, tokenize=False)
                )
            except Exception:  # a template raises what it likes
                continue
        image = getattr(self.processor, "image_token", None)
        tokens = [*control_tokens(self.tokenizer, written).values(), *([image] if image else [])]
        return control_pattern(tokens)

    @property
    def _template(self) -> str | None:
        """The chat template, if it is a single one."""
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        return template if isinstance(template, str) else None

    def _as_text(self, row: Conversation) -> Conversation:
        """The conversation with control tokens in its texts split, so that a response cannot write turns or ends."""
        return row._replace(
            messages=tuple(
                {**message, "content": split_control(message["content"], self._control)} for message in row.messages
            )
        )

    def _index(self, config: Any) -> int:
        names = {int(i): str(name) for i, name in config.id2label.items()}
        if config.num_labels == 1:
            return 0
        for i, name in names.items():
            if name == self.label:
                return i
        known = ", ".join(list(names.values())[:8])
        raise ValueError(f"{self.name}: has {config.num_labels} outputs; name the one that is scored by label: {known}")

    def raw_scores(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        rows = [self._as_text(row) for row in conversations(prompts, responses)]
        size = (
            1 if self.processor is not None else self.batch_size
        )  # pictures of a batch may differ in number and shape
        logits = [self._logits(rows[i : i + size]) for i in range(0, len(rows), size)]
        values = torch.cat(logits).float() if logits else torch.zeros(0, 1)  # (N, labels)
        scored = values[:, self.index]
        if values.shape[1] > 1 and self.exclusive:
            others = [i for i in range(values.shape[1]) if i != self.index]
            scored = scored - values[:, others].logsumexp(1)
        return self.sign * scored - self.threshold

    def _logits(self, rows: Sequence[Conversation]) -> Tensor:
        if self.processor is not None:
            inputs = self._with_pictures(rows[0])
        elif self.tokenizer.chat_template:
            texts = [self.tokenizer.apply_chat_template([*row.messages], tokenize=False) for row in rows]
            inputs = self.tokenizer(texts, add_special_tokens=False, padding=len(rows) > 1, return_tensors="pt")
        else:
            before = ["\n".join(message["content"] for message in row.messages[:-1]) for row in rows]
            last = [row.messages[-1]["content"] for row in rows]
            inputs = self.tokenizer(before, last, padding=len(rows) > 1, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        if self.limit is not None and length > self.limit:
            raise ValueError(
                f"{self.name}: a prompt with its response has {length} tokens, and the model reads {self.limit}: shorten "
                "max_new_tokens, or leave long prompts out"
            )
        logits: Tensor = self.network(**inputs.to(self.network.device)).logits
        return logits.cpu()

    def _with_pictures(self, row: Conversation) -> Any:
        messages = [
            {
                "role": message["role"],
                "content": [{"type": "image"}] * count + [{"type": "text", "text": message["content"]}],
            }
            for message, count in zip(row.messages, row.images_of, strict=True)
        ]
        text = self.processor.apply_chat_template(messages)
        images = [list(row.images)] if row.images else None
        return self.processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")


class PythonScorer(ExternalScorer):
    """A function of yours: it is given a list of :class:`Conversation` and returns as many numbers. Or a scorer of yours.

    YAML::

        reward: {class_path: safe_rlhf_v.scoring.external.PythonScorer, init_args: {function: my_package.helpfulness}}
    """

    def __init__(self, function: str) -> None:
        """Name the function; it is imported when it is needed.

        Args:
            function: Its import path; what is a class is called without arguments first. It may also be an
                :class:`ExternalScorer`, as a :class:`Classifier` with its options.
        """
        super().__init__()
        self.name = self.function = function

    def load(self) -> None:
        """Import it. Raises: ValueError: If there is no such function."""
        home, _, name = self.function.rpartition(".")
        try:
            value = getattr(import_module(home), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.function}: cannot be imported ({' '.join(str(error).split())[:200]})") from None
        value = value() if isinstance(value, type) else value
        if isinstance(value, ExternalScorer):
            value.load()
            self.scorer = value
        self.call: Callable[..., Any] = value
        if not callable(self.call):
            raise ValueError(f"{self.function}: is a {type(value).__name__}, which cannot be called")

    def raw_scores(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        if isinstance(self.call, ExternalScorer):
            return self.call.raw_scores(prompts, responses)
        try:
            return torch.as_tensor(self.call(conversations(prompts, responses)), dtype=torch.float32)
        except Exception as error:  # a user's function can raise anything
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.function}: failed ({type(error).__name__}: {reason})") from error


class ExportedScorer(ExternalScorer):
    """A reward or cost model that the command ``export`` wrote."""

    def __init__(self, folder: str, kind: str) -> None:
        """Keep the folder; the network is built later.

        Args:
            folder: What was written.
            kind: What it must be: ``reward`` or ``cost``.
        """
        super().__init__()
        self.name = folder
        self.kind = kind

    def load(self) -> None:
        """Build network and head. Raises: ValueError: If the folder is another kind's, or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from safe_rlhf_v.models.heads import EvidenceHead, ScalarHead

        settings = read_json(Path(self.name, EXPORT_FILE))
        if settings.get("kind") != self.kind:
            raise ValueError(f"{self.name}: is a {settings.get('kind')} model, a {self.kind} model is needed")
        self.backbone = load_model(self.name, f"{self.kind} model", kind=self.kind).requires_grad_(False)
        try:
            self.backbone.max_length = settings["prompt"]["max_length"]
            weights = load_file(Path(self.name, "score.safetensors"))
            if Path(self.name, CLIP_FILE).is_file() and settings["head"]["kind"] == "evidence":
                fusion = weights["fusion.0.weight"].shape[0] if "fusion.0.weight" in weights else 0
                channels = weights["channels.weight"].shape[0] if "channels.weight" in weights else 8
                self.head: Any = EvidenceHead(
                    self.backbone, 1, "gate.weight" in weights, fusion, channels, settings["head"]["floor"]
                )
            else:
                weights = {f"linear.{name.removeprefix('linear.')}": value for name, value in weights.items()}
                self.head = ScalarHead(self.backbone, bias="linear.bias" in weights)
            self.head.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{self.name}: no export of this version ({reason})") from None
        self.head.requires_grad_(False).eval()

    def raw_scores(self, prompts: Prompts, responses: Sequence[Sequence[str]]) -> Tensor:
        from safe_rlhf_v.records.batches import to_device

        prepared = self.backbone.prepare(prompts, responses)
        states = self.backbone.response_states(
            to_device(prepared, next(self.backbone.parameters()).device), log_probs=self.head.needs_log_probs
        )
        scores: Tensor = self.head(states)[:, 0]
        return scores


def find_scorer(source: Any, kind: str, fetch: bool = False) -> ExternalScorer | None:
    """The external model that a text names; ``None`` if it can only be a run.

    Args:
        source: A scorer, an exported folder, the folder or hub name of a model, or the import path of a function; or a run.
        kind: What it is for: ``reward`` or ``cost``.
        fetch: Whether it may be downloaded.

    Raises:
        ValueError: If it names a model that gives no scores.
    """
    if isinstance(source, ExternalScorer):
        return source
    if not isinstance(source, (str, Path)):
        return None
    name = str(source)
    path = Path(name)
    if (path / EXPORT_FILE).is_file():
        return ExportedScorer(name, kind)
    if (path / CONFIG_FILE).is_file():
        classes = read_json(path / CONFIG_FILE).get("architectures")
        named = [str(one) for one in classes] if isinstance(classes, list) else []
        if not any(CLASSIFIES in one for one in named):
            raise ValueError(
                f"{kind} {name}: holds {', '.join(named) or 'a model'}, which gives no score; name a run, an exported {kind} "
                f"model, or a model *{CLASSIFIES}"
            )
        return Classifier(name)
    if path.exists() or name.endswith(CHECKPOINT_SUFFIX):
        return None
    if is_hub_name(name):
        classifier = Classifier(name)
        classifier.fetch = fetch
        return classifier
    return PythonScorer(name) if all(map(str.isidentifier, name.split("."))) and "." in name else None


def conversations(prompts: Prompts, responses: Sequence[Sequence[str]]) -> list[Conversation]:
    """N conversations, each with one of the responses."""
    from PIL import Image

    rows: list[Conversation] = []
    for row, texts in enumerate(responses):
        images = tuple(Image.fromarray(image.cpu().numpy()) for image in prompts.images[row])
        turns = prompts.turns(row)
        system = prompts.contexts[row].system
        before = [{"role": "system", "content": system}] if system else []
        before += [{"role": turn.role, "content": turn.text} for turn in turns]
        counts = (*([0] if system else []), *(turn.images for turn in turns), 0)
        for text in texts:
            rows.append(Conversation((*before, {"role": "assistant", "content": text}), images, counts))
    return rows
