"""Coverage of a guard's training: inputs beyond it are unchecked, because verdicts on them would not be calibrated.

Covered are lengths in tokens, pictures per prompt, and words. A byte-level tokenizer splits every word into pieces and has no
unknown token, so unfamiliar words are recognised by tokens that are rare in the training data: their share is measured in the
window of :data:`WINDOW` tokens that holds most of them, so that surrounding text does not dilute them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rlhf_v.data_modules.base import ShardDataModule
from safe_rlhf_v.data_modules.preference import PreferenceDataModule
from safe_rlhf_v.data_modules.source import ImageOptions
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.reader import Reader
from safe_rlhf_v.records.batches import UNKNOWN_LEVEL, PreferenceBatch, Prompts, hazard
from safe_rlhf_v.training.checkpoints import read_stage
from safe_rlhf_v.training.stored_config import leads_out, stored_options

if TYPE_CHECKING:
    from safe_rlhf_v.modules.guard import GuardModule

WINDOW = 16
TOLERATED = 0.005
"""Share of harmless held-out inputs that may exceed the limit on rare tokens."""
MOST_RARE = 0.5
"""Upper bound of that limit: in a text in a foreign language at least every second token is rare."""
_FEW = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Limits:
    """What a guard can be asked about.

    Attributes:
        data: Where it was counted: the guard's own training split.
        longest_input: Tokens of prompt (its pictures included), response and end token.
        longest_question: Tokens of a question, with the texts before it.
        longest_response: Tokens of a response.
        most_images: Pictures of a prompt.
        token_counts: How often training showed each token of prompts and responses.
        rare_below: Tokens seen less often are rare.
        rare_share: Most rare tokens in a window, as a share of it.
        unchecked: Share of harmless held-out inputs with more of them.
        most_texts: Texts of a prompt: its turns, and a system text.
    """

    data: str
    longest_input: int
    longest_question: int
    longest_response: int
    most_images: int
    token_counts: dict[int, int]
    rare_below: int
    rare_share: float
    unchecked: float
    most_texts: int = 1

    def __post_init__(self) -> None:
        """Check the numbers, so that a damaged file cannot disable the guard.

        Raises:
            ValueError: If a number is outside its range.
        """
        lengths = (self.longest_input, self.longest_question, self.longest_response)
        counts = (*lengths, self.most_images, self.rare_below, self.most_texts)
        if (
            not all(isinstance(n, int) and n >= 0 for n in (*counts, *self.token_counts.values()))
            or not self.rare_below
        ):
            raise ValueError("calibration: limits must be whole numbers of tokens and pictures")
        if not 0 <= self.rare_share <= 1:
            raise ValueError(f"calibration: limits.rare_share is {self.rare_share!r}, it must lie in 0..1")

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Limits":
        """Limits from their JSON, in which keys are texts."""
        return cls(**{**body, "token_counts": {int(k): v for k, v in body["token_counts"].items()}})


UNCOUNTED = Limits("", 0, 0, 0, 0, {}, 1, 0.0, 0.0)
"""Limits of a guard that is only measured: every input is unchecked."""


class Gate:
    """Finds inputs that a guard cannot read, or cannot read completely."""

    def __init__(self, reader: Reader | Backbone, limits: Limits) -> None:
        """Find the tokens that end every prompt.

        Args:
            reader: The guard's reader.
            limits: The guard's limits.
        """
        self.reader = reader
        self.limits = limits
        short, long = (self._prompt(Prompts(((),), ((),), (text,))) for text in ("a", "b b"))
        same = [x == y for x, y in zip(reversed(short), reversed(long), strict=False)]
        tail = same.index(False) if False in same else len(same)
        # The text before the end may merge into one token with the end of a question; the last tokens do not.
        self._end = short[len(short) - tail // 2 :]

    def refusal(self, prompt: Prompts, response: str, as_it_stands: bool) -> str:
        """Why an input is unchecked, or "".

        Args:
            prompt: One prompt.
            response: Its response, "" without one.
            as_it_stands: Whether the texts are unaltered; only then rare words are refused.

        Raises:
            ValueError: If the prompt alone is longer than the reader reads.
        """
        limits = self.limits
        if (images := len(prompt.images[0])) > limits.most_images:
            return f"{images} pictures; in training a prompt had at most {limits.most_images}"
        texts = prompt.texts(0)
        if len(texts) > limits.most_texts:
            return f"{len(texts)} turns (system text included); in training a prompt had at most {limits.most_texts}"
        *earlier, question, answer = (token_ids(self.reader, text) for text in (*texts, response))
        if as_it_stands:
            parts = [
                *(("text before the question", ids) for ids in earlier),
                ("question", question),
                ("response", answer),
            ]
            for name, ids in parts:
                share = rare_share(ids, limits.token_counts, limits.rare_below)
                if share > limits.rare_share:
                    return (
                        f"the {name} holds words that training hardly showed: {share:.0%} of {min(len(ids), WINDOW)} tokens "
                        f"in a row are rare, the limit is {limits.rare_share:.0%}"
                    )
        asked = len(question) + sum(map(len, earlier))
        lengths = (
            ("conversation" if earlier else "question", asked, limits.longest_question),
            ("response", len(answer), limits.longest_response),
        )
        for name, length, longest in lengths:
            if length > longest:
                return f"the {name} has {length} tokens; the longest in training had {longest}"
        return self._truncation(prompt, response)

    def _truncation(self, prompt: Prompts, response: str) -> str:
        """Why an input would reach the network truncated, or "": some tokenizers and processors truncate silently."""
        reader = self.reader
        tokens = self._prompt(prompt)
        length = len(reader.text_ids(response)) + 1
        longest = min(n for n in (self.limits.longest_input, reader.context_length) if n is not None)
        if len(tokens) + length > longest:
            return f"{len(tokens)} + {length} tokens are more than the {longest} that the guard reads"
        if len(reader.response_ids(response, len(tokens))) != length:
            return f"{len(tokens)} + {length} tokens are more than the {reader.max_length} that the guard reads"
        ends = tokens[len(tokens) - len(self._end) :] == self._end
        if not ends or len(tokens) < sum(len(reader.text_ids(text)) for text in prompt.texts(0)):
            return "the tokenizer or processor truncated the prompt"
        return ""

    def _prompt(self, prompt: Prompts) -> list[int]:
        return list(self.reader.prepare_prompts(prompt)[0].ids[0])


def token_ids(reader: Reader | Backbone, text: str) -> list[int]:
    """Token ids of a text; -1 for unknown words and for special tokens that are written out.

    Args:
        reader: A reader with its tokenizer.
        text: The text.
    """
    ids = reader.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    special = {*reader.tokenizer.all_special_ids, *getattr(reader, "banned_ids", ())}
    return [-1 if i in special else int(i) for i in ids]


def rare_share(ids: Sequence[int], counts: Mapping[int, int], below: int) -> float:
    """The largest share of rare tokens in any :data:`WINDOW` tokens in a row, or in all of them if there are fewer.

    Args:
        ids: Tokens of a text; -1 is always rare.
        counts: Frequency of each token in training.
        below: Tokens with a lower frequency are rare.
    """
    rare = [i < 0 or counts.get(i, 0) < below for i in ids]
    size = min(WINDOW, len(rare))
    return max((sum(rare[k : k + size]) / size for k in range(len(rare) - size + 1)), default=0.0) if size else 0.0


# --- counting ---------------------------------------------------------------------------------------------------------


class Coverage:
    """Counts lengths, pictures and tokens of training data; only the tokenizer runs."""

    def __init__(self, reader: Reader | Backbone) -> None:
        """Start with empty counts.

        Args:
            reader: The guard's reader.
        """
        self.reader = reader
        self.longest_input = self.longest_question = self.longest_response = self.most_images = 0
        self.most_texts = 1
        self._counts: Counter[int] = Counter()

    def add(self, batch: PreferenceBatch) -> None:
        """Count one batch, without its padding rows."""
        tokens = self.reader.prepare_prompts(batch.prompts)[0].ids
        for row in batch.valid.nonzero().flatten().tolist():
            responses = batch.responses[row]
            prompt = len(tokens[row])
            texts = batch.prompts.texts(row)
            prompt_ids = [token_ids(self.reader, text) for text in texts]
            response_ids = [token_ids(self.reader, text) for text in responses]
            for ids in (*prompt_ids, *response_ids):
                self._counts.update(i for i in ids if i >= 0)
            longest = max((len(self.reader.response_ids(text, prompt)) for text in responses), default=1)
            self.longest_input = max(self.longest_input, prompt + longest)
            self.longest_question = max(self.longest_question, sum(map(len, prompt_ids)))
            self.most_texts = max(self.most_texts, len(texts))
            self.longest_response = max([self.longest_response, *map(len, response_ids)])
            self.most_images = max(self.most_images, len(batch.prompts.images[row]))

    def limits(self, data: str, harmless: Iterable[tuple[str, ...]]) -> Limits:
        """The limits, with the strictest bound on rare tokens that harmless held-out inputs allow.

        The share is the smallest that all but :data:`TOLERATED` of them keep if only tokens that never occurred in training are
        rare; ``rare_below`` is then the largest frequency that does not need a larger share.

        Args:
            data: Name of the training data.
            harmless: Texts of each held-out input.

        Raises:
            ValueError: If there is no training record or no harmless input.
        """
        counts = self._counts
        inputs = [[token_ids(self.reader, text) for text in texts] for texts in harmless]
        if not inputs or not self.longest_input:
            raise ValueError("limits need training records, and harmless inputs of the split that is calibrated on")

        def shares(below: int) -> list[float]:
            return sorted(max(rare_share(ids, counts, below) for ids in texts) for texts in inputs)

        allowed = len(inputs) - 1 - int(TOLERATED * len(inputs))
        share = min(shares(1)[allowed], MOST_RARE)
        below = max((n for n in _FEW if shares(n)[allowed] <= share), default=1)
        beyond = sum(rare > share for rare in shares(below)) / len(inputs)
        lengths = (self.longest_input, self.longest_question, self.longest_response, self.most_images)
        return Limits(data, *lengths, dict(sorted(counts.items())), below, share, beyond, self.most_texts)


def harmless_inputs(batch: PreferenceBatch) -> list[tuple[str, ...]]:
    """Texts of the harmless inputs of a batch: prompts of no harm category alone, harmless responses with their prompt."""
    inputs: list[tuple[str, ...]] = []
    kind = hazard(batch.category).tolist()
    for row in batch.valid.nonzero().flatten().tolist():
        prompt = batch.prompts.texts(row)
        inputs += [prompt] if kind[row] == 0 else []
        levels = batch.safety[row].tolist()
        inputs += [
            (*prompt, text)
            for text, level in zip(batch.responses[row], levels, strict=True)
            if level != UNKNOWN_LEVEL and level >= 0
        ]
    return inputs


def training_data(run: str | Path, folder: str | Path | None = None) -> PreferenceDataModule:
    """The training data of a guard, as its run's configuration names them.

    Args:
        run: Run folder or checkpoint of the guard.
        folder: Shard folder in place of the one that the run names.

    Raises:
        CheckpointError: If there is no readable checkpoint with a configuration.
        ValueError: If the data do not exist.
    """
    stored = stored_options(read_stage(str(run)), "data")
    path = folder or stored.get("path")
    inside = isinstance(path, str) and (folder is not None or not leads_out(path))
    if not inside or not (Path(str(path)) / "manifest.json").is_file():
        raise ValueError(
            f"--train_data: the limits of a guard are counted over its training data, and there is no shard folder "
            f"{path or 'named in its run'}; name it"
        )
    names = ("train_split", "max_samples", "categories", "seed", "on_bad_sample")
    options = {name: stored[name] for name in names if stored.get(name) is not None}
    return PreferenceDataModule(
        str(path), eval_batch_size=100, images=ImageOptions(**(stored.get("images") or {})), **options
    )


def count_limits(module: "GuardModule", training: ShardDataModule, data: str, split: str) -> Limits:
    """Count the limits of a guard over its training samples; only the tokenizer runs.

    Args:
        module: The guard.
        training: Training data of the guard.
        data: Shard folder of the held-out split.
        split: Held-out split; its harmless inputs set the limit on rare tokens.

    Raises:
        ValueError: If there is no training record or no harmless input.
    """
    from tqdm import tqdm

    coverage = Coverage(module.backbone)
    for batch in tqdm(training.train_samples(), desc="counting limits", unit="batch", disable=None):
        coverage.add(batch)
    held_out = PreferenceDataModule(data, eval_batch_size=100, test_splits=(split,)).test_dataloader()[0]
    harmless = [texts for batch in held_out for texts in harmless_inputs(batch)]
    return coverage.limits(f"{training.path}:{training.train_split}", harmless)
