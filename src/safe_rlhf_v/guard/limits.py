"""What a guard's training covered: inputs beyond it are unchecked, since no measurement stands behind
a verdict on them.

Lengths in tokens, pictures per prompt, and the words. A tokenizer of bytes knows every word in pieces and has no unknown token,
so unread words are recognised by tokens that training hardly ever showed: counted there, and measured in the window of
:data:`WINDOW` tokens that holds most of them, so that no padding dilutes them.
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
"""Share of harmless held-out inputs that may hold more rare tokens than the limit."""
MOST_RARE = 0.5
"""No limit lies higher: of a text in a foreign language at least every second token is rare."""
_FEW = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Limits:
    """What a guard can be asked about.

    Attributes:
        data: Where it was counted: the guard's own training split.
        longest_input: Tokens of prompt (its pictures included), response and end token.
        longest_question: Tokens of a question.
        longest_response: Tokens of a response.
        most_images: Pictures of a prompt.
        token_counts: How often training showed each token of questions and responses.
        rare_below: Tokens seen less often are rare.
        rare_share: Most rare tokens in a window, as a share of it.
        unchecked: Share of harmless held-out inputs with more of them.
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

    def __post_init__(self) -> None:
        """Raises: ValueError: If a number makes no sense; a damaged file must not open the guard."""
        counts = (self.longest_input, self.longest_question, self.longest_response, self.most_images, self.rare_below)
        if (
            not all(isinstance(n, int) and n >= 0 for n in (*counts, *self.token_counts.values()))
            or not self.rare_below
        ):
            raise ValueError("calibration: limits must be whole numbers of tokens and pictures")
        if not 0 <= self.rare_share <= 1:
            raise ValueError(f"calibration: limits.rare_share is {self.rare_share!r}, it must lie in 0..1")

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> "Limits":
        """Rebuild what JSON made of one: its keys are text."""
        return cls(**{**body, "token_counts": {int(k): v for k, v in body["token_counts"].items()}})


UNCOUNTED = Limits("", 0, 0, 0, 0, {}, 1, 0.0, 0.0)
"""Limits of a guard that is only measured: every input is unchecked."""


class Gate:
    """Says what a guard cannot read whole, or cannot read at all."""

    def __init__(self, reader: Reader | Backbone, limits: Limits) -> None:
        """
        Args:
            reader: The guard's.
            limits: Its limits.
        """
        self.reader, self.limits = reader, limits
        short, long = (self._prompt(Prompts(((),), ((),), (text,))) for text in ("a", "b b"))
        same = [x == y for x, y in zip(reversed(short), reversed(long), strict=False)]
        tail = same.index(False) if False in same else len(same)
        # What stands before the end may melt into one token with the end of a question; the very end does not.
        self._end = short[len(short) - tail // 2 :]

    def refusal(self, prompt: Prompts, response: str, as_it_stands: bool) -> str:
        """Why an input is unchecked, or "".

        Args:
            prompt: One prompt.
            response: Its response, "" for none.
            as_it_stands: Whether these are the texts as they were given: only their words are looked at.

        Raises:
            ValueError: If the prompt alone is longer than the reader reads.
        """
        most = self.limits
        if (images := len(prompt.images[0])) > most.most_images:
            return f"{images} pictures; in training a prompt had at most {most.most_images}"
        parts = (
            ("question", prompt.questions[0], most.longest_question),
            ("response", response, most.longest_response),
        )
        for name, text, longest in parts:
            ids = token_ids(self.reader, text)
            share = rare_share(ids, most.token_counts, most.rare_below) if as_it_stands else 0.0
            if share > most.rare_share:
                return (
                    f"the {name} holds words that training hardly showed: {share:.0%} of {min(len(ids), WINDOW)} tokens in a "
                    f"row are rare, the limit is {most.rare_share:.0%}"
                )
            if len(ids) > longest:
                return f"the {name} has {len(ids)} tokens; the longest in training had {longest}"
        return self._cut(prompt, response)

    def _cut(self, prompt: Prompts, response: str) -> str:
        """Why not all of an input would reach the network, or "": some tokenizers and processors cut silently."""
        reader = self.reader
        tokens, wanted = self._prompt(prompt), len(reader.text_ids(response)) + 1
        longest = min(n for n in (self.limits.longest_input, reader.context_length) if n is not None)
        if len(tokens) + wanted > longest:
            return f"{len(tokens)} + {wanted} tokens are more than the {longest} that the guard reads"
        if len(reader.response_ids(response, len(tokens))) != wanted:
            return f"{len(tokens)} + {wanted} tokens are more than the {reader.max_length} that the guard reads"
        ends = tokens[len(tokens) - len(self._end) :] == self._end
        if not ends or len(tokens) < len(reader.text_ids(prompt.questions[0])):
            return "the tokenizer or processor cut the prompt"
        return ""

    def _prompt(self, prompt: Prompts) -> list[int]:
        return list(self.reader.prepare_prompts(prompt)[0].ids[0])


def token_ids(reader: Reader | Backbone, text: str) -> list[int]:
    """Token ids of a text; -1 for what the reader cannot read: unknown words, and special tokens spelled out.

    Args:
        reader: Whose tokenizer.
        text: The text.
    """
    ids = reader.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    special = {*reader.tokenizer.all_special_ids, *getattr(reader, "banned_ids", ())}
    return [-1 if i in special else int(i) for i in ids]


def rare_share(ids: Sequence[int], counts: Mapping[int, int], below: int) -> float:
    """The largest share of rare tokens in :data:`WINDOW` tokens in a row; in all of them, if there are fewer.

    Args:
        ids: Tokens of a text, -1 always rare.
        counts: How often training showed each.
        below: A token seen less often is rare.
    """
    rare = [i < 0 or counts.get(i, 0) < below for i in ids]
    size = min(WINDOW, len(rare))
    return max((sum(rare[k : k + size]) / size for k in range(len(rare) - size + 1)), default=0.0) if size else 0.0


# --- counting ---------------------------------------------------------------------------------------------------------


class Coverage:
    """Counts what batches of training data hold; nothing but the tokenizer runs."""

    def __init__(self, reader: Reader | Backbone) -> None:
        """
        Args:
            reader: The guard's.
        """
        self.reader = reader
        self.longest_input = self.longest_question = self.longest_response = self.most_images = 0
        self._counts: Counter[int] = Counter()

    def add(self, batch: PreferenceBatch) -> None:
        """Count one batch, but for its padding rows."""
        tokens = self.reader.prepare_prompts(batch.prompts)[0].ids
        for row in batch.valid.nonzero().flatten().tolist():
            responses, prompt = batch.responses[row], len(tokens[row])
            question, *response_ids = (
                token_ids(self.reader, text) for text in (batch.prompts.questions[row], *responses)
            )
            for ids in (question, *response_ids):
                self._counts.update(i for i in ids if i >= 0)
            longest = max((len(self.reader.response_ids(text, prompt)) for text in responses), default=1)
            self.longest_input = max(self.longest_input, prompt + longest)
            self.longest_question = max(self.longest_question, len(question))
            self.longest_response = max([self.longest_response, *map(len, response_ids)])
            self.most_images = max(self.most_images, len(batch.prompts.images[row]))

    def limits(self, data: str, harmless: Iterable[tuple[str, ...]]) -> Limits:
        """The limits, with the strictest bound on rare tokens that harmless held-out inputs allow.

        The share is the smallest that all but :data:`TOLERATED` of them keep where a token is rare that training never
        showed; a token is rare below the largest count that needs no larger share.

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
        return Limits(data, *lengths, dict(sorted(counts.items())), below, share, beyond)


def harmless_inputs(batch: PreferenceBatch) -> list[tuple[str, ...]]:
    """Texts of the harmless inputs of a batch: prompts of no harm category alone, harmless responses with their question."""
    inputs: list[tuple[str, ...]] = []
    kind = hazard(batch.category).tolist()
    for row in batch.valid.nonzero().flatten().tolist():
        question = batch.prompts.questions[row]
        inputs += [(question,)] if kind[row] == 0 else []
        levels = batch.safety[row].tolist()
        inputs += [
            (question, text)
            for text, level in zip(batch.responses[row], levels, strict=True)
            if level != UNKNOWN_LEVEL and level >= 0
        ]
    return inputs


def training_data(run: str | Path, folder: str | Path | None = None) -> PreferenceDataModule:
    """The data a guard was trained on, as its run's configuration names them.

    Args:
        run: Its run folder or checkpoint.
        folder: Shard folder instead of the one that the run names, which may have moved.

    Raises:
        CheckpointError: If there is no readable checkpoint with a configuration.
        ValueError: If the data are not there.
    """
    stored = stored_options(read_stage(str(run)), "data")
    path = folder or stored.get("path")
    inside = isinstance(path, str) and (folder is not None or not leads_out(path))
    if not inside or not (Path(str(path)) / "manifest.json").is_file():
        raise ValueError(
            f"--train_data: the limits of a guard are counted over what it was trained on, and there is no shard folder "
            f"{path or 'named in its run'}; name it"
        )
    names = ("train_split", "max_samples", "categories", "seed", "on_bad_sample")
    options = {name: stored[name] for name in names if stored.get(name) is not None}
    return PreferenceDataModule(
        str(path), eval_batch_size=100, images=ImageOptions(**(stored.get("images") or {})), **options
    )


def count_limits(module: "GuardModule", training: ShardDataModule, data: str, split: str) -> Limits:
    """What a guard's training covered, counted over its training samples; only the tokenizer runs.

    Args:
        module: The guard.
        training: Its own training data.
        data: Shard folder of the held-out split.
        split: That split; its harmless inputs bound the rare tokens.

    Raises:
        ValueError: If there is no training record or no harmless input.
    """
    from tqdm import tqdm

    coverage = Coverage(module.backbone)
    for batch in tqdm(training.train_samples(), desc="what training covered", unit="batch", disable=None):
        coverage.add(batch)
    held_out = PreferenceDataModule(data, eval_batch_size=100, test_splits=(split,)).test_dataloader()[0]
    harmless = [texts for batch in held_out for texts in harmless_inputs(batch)]
    return coverage.limits(f"{training.path}:{training.train_split}", harmless)
