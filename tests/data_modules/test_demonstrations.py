"""Which response is imitated: helpful, safe, or both; a record without one is masked and counted, never guessed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data_modules.conftest import record

from safe_rlhf_v.data_modules import PromptDataModule, PTXPreferenceDataModule, SupervisedDataModule
from safe_rlhf_v.data_modules.collate import demonstration, is_safe
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardWriter

Folder = Callable[..., Path]
RULES = ("helpful", "safe", "helpful_and_safe")


def make(*labels: object, more: int | None = None, safer: int | None = None, ratings: tuple[float, ...] = ()) -> Record:
    """Responses "0", "1", ... with a level, a yes/no label or neither."""
    responses = tuple(
        Response(
            str(i),
            safety=label if type(label) is int else None,
            is_safe=label if isinstance(label, bool) else None,
            helpfulness=ratings[i] if ratings else None,
        )
        for i, label in enumerate(labels)
    )
    return Record("k", "q", responses=responses, more_helpful=more, safer=safer)


@pytest.mark.parametrize(
    ("found", "helpful", "safe", "both"),
    [
        (make(None), "0", None, None),  # not labelled: not known to be safe
        (make(1), "0", "0", "0"),
        (make(-1), "0", None, None),
        (make(False), "0", None, None),
        (make(True, False, more=1, safer=0), "1", "0", "0"),  # the more helpful one is harmful
        (make(True, True, more=1, safer=0), "1", "0", "1"),
        (make(0, 3, more=0, safer=1), "0", "1", "0"),
        (make(False, False, more=0, safer=1), "0", None, None),
        (make(None, True, more=0), "0", "1", "1"),
        (make(True, True), None, None, None),  # which is better is not known
        (make(1, 2), None, "1", None),  # by level
        (make(2, 2), None, None, None),
        (make(True, True, ratings=(0.0, 2.0)), "1", None, "1"),  # by rating
        (make(True, True, ratings=(2.0, 2.0)), None, None, None),
        (make(True, False, True, more=1, ratings=(1.0, 3.0, 2.0)), "1", None, "2"),
        (make(1, -1, 3, more=1), "1", "2", None),
        (make(), None, None, None),
    ],
)  # fmt: skip
def test_by_hand(found: Record, helpful: str | None, safe: str | None, both: str | None) -> None:
    assert [demonstration(found, rule) for rule in RULES] == [helpful, safe, both]  # type: ignore[arg-type]


labels = st.none() | st.booleans() | st.integers(-3, 3)


@given(st.lists(labels, max_size=4), st.data())
@settings(max_examples=200, deadline=None)
def test_no_rule_but_helpful_gives_what_is_not_labelled_safe(levels: list[object], data: st.DataObject) -> None:
    index = st.none() | st.sampled_from(range(len(levels))) if levels else st.none()
    ratings = data.draw(st.just(()) | st.tuples(*[st.floats(0, 3)] * len(levels)))
    found = make(*levels, more=data.draw(index), safer=data.draw(index), ratings=ratings)
    for rule in ("safe", "helpful_and_safe"):
        text = demonstration(found, rule)  # type: ignore[arg-type]
        assert text is None or is_safe(found.responses[int(text)])
    if found.more_helpful is not None:
        assert demonstration(found, "helpful") == str(found.more_helpful)
        if is_safe(found.responses[found.more_helpful]):
            assert demonstration(found, "helpful_and_safe") == str(found.more_helpful)


def mixed(root: Path, size: int = 12) -> Path:
    """Every third record has only harmful responses, every third the more helpful one harmful, every third both safe."""
    with ShardWriter(root, name="mixed", licence="CC0-1.0", taxonomy=Taxonomy("two", ("fire", "fraud"))) as writer:
        for i in range(size):
            base = record("train", i)
            levels = ((-1, -2), (2, -1), (1, 2))[i % 3]
            texts = tuple(replace(r, safety=v, is_safe=v >= 0) for r, v in zip(base.responses, levels, strict=True))
            writer.write("train", replace(base, responses=texts, more_helpful=1))
    return root


@pytest.mark.parametrize("module", [PromptDataModule, PTXPreferenceDataModule])
def test_ptx_takes_the_more_helpful_of_the_safe(module: type[PromptDataModule], tmp_path: Path) -> None:
    root = str(mixed(tmp_path / "mixed"))
    data = module(root, batch_size=6, demonstrations="train", demonstration_batch_size=6)
    said: list[str] = []
    for batch in data.train_dataloader():
        ptx = batch.demonstrations
        assert ptx.without_demonstration == ptx.valid.logical_not().sum() > 0
        assert all(bool(text) == ok for text, ok in zip(ptx.responses, ptx.valid.tolist(), strict=True))
        said += [text for text in ptx.responses if text]
    assert sorted(said) == sorted(f"response {i}.{i % 3 - 1}" for i in range(12) if i % 3)
    assert data._ptx is not None and data._ptx.without_demonstration == 4
    old = module(root, batch_size=6, demonstrations="train", demonstrations_from="helpful")
    first = next(iter(old.train_dataloader())).demonstrations
    assert first.valid.all() and all(text.endswith(".1") for text in first.responses)


def test_supervised_training_imitates_the_more_helpful_one_unless_told_otherwise(tmp_path: Path) -> None:
    root = str(mixed(tmp_path / "mixed"))
    (plain,) = SupervisedDataModule(root, batch_size=12).train_dataloader()
    assert plain.valid.all() and plain.without_demonstration == 0
    (safe,) = SupervisedDataModule(root, batch_size=12, demonstrations_from="safe").train_dataloader()
    assert safe.without_demonstration == 4 and safe.valid.sum() == 8
    assert safe.keys.count("") == 4 and safe.prompts.questions.count("") == 4


def test_data_on_which_the_rule_finds_nothing_are_refused(folder: Folder, tmp_path: Path) -> None:
    root = tmp_path / "plain"
    with ShardWriter(root, name="plain", licence="CC0-1.0", taxonomy=Taxonomy("none", ())) as writer:
        for i in range(120):
            writer.write("train", Record(f"k-{i}", "q", responses=(Response("a"),)))
    data = SupervisedDataModule(str(root), batch_size=4, demonstrations_from="helpful_and_safe")
    with pytest.raises(ValueError, match=r"data\.demonstrations_from: 100 records in a row give no demonstration"):
        list(data.train_dataloader())
    assert len(list(SupervisedDataModule(str(root), batch_size=4).train_dataloader())) == 30


@pytest.mark.parametrize("module", [PromptDataModule, PTXPreferenceDataModule])
@pytest.mark.parametrize(("sizes", "match"), [
    ((4, 13), r"12 training samples of split 'train' .* lower demonstration_batch_size"),
    ((13, 4), r"12 training samples of split 'train' .* lower batch_size"),
])  # fmt: skip
def test_too_few_samples_name_their_split_and_option(
    module: type[PromptDataModule], sizes: tuple[int, int], match: str, tmp_path: Path
) -> None:
    options = {"batch_size": sizes[0], "demonstration_batch_size": sizes[1]}
    with pytest.raises(ValueError, match=match):
        module(str(mixed(tmp_path / "mixed")), demonstrations="train", **options).train_dataloader()


@pytest.mark.parametrize("module", [PromptDataModule, SupervisedDataModule])
def test_another_word_is_refused(module: type[PromptDataModule]) -> None:
    with pytest.raises(ValueError, match="must be one of: helpful, safe, helpful_and_safe"):
        module("nowhere", demonstrations_from="best")


def test_resumed_ptx_keeps_its_rule(tmp_path: Path) -> None:
    root = str(mixed(tmp_path / "mixed"))
    state = PromptDataModule(root, batch_size=4, demonstrations="train").state_dict()
    other = PromptDataModule(root, batch_size=4, demonstrations="train", demonstrations_from="helpful")
    with pytest.raises(ValueError, match="demonstrations_from = 'helpful_and_safe', now it is 'helpful'"):
        other.load_state_dict(state)


@pytest.mark.parametrize("module", [PromptDataModule, PTXPreferenceDataModule])
@pytest.mark.parametrize("seed", [0, 7])
def test_demonstrations_of_the_training_split_have_an_order_of_their_own(
    module: type[PromptDataModule], seed: int, tmp_path: Path
) -> None:
    """Otherwise each step would learn the demonstrations of its own prompts."""
    taxonomy = Taxonomy("t", ("fraud",))
    with ShardWriter(tmp_path, name="t", licence="CC0-1.0", taxonomy=taxonomy) as writer:
        for split in ("train", "other"):
            for i in range(24):
                writer.write(split, replace(make(2, 1, more=0, safer=0), key=f"{split}-{i:02}"))

    def orders(demonstrations: str) -> list[list[str]]:
        data = module(str(tmp_path), demonstrations=demonstrations, batch_size=4, seed=seed)
        batches = list(data.train_dataloader())
        keys = [[key for b in batches for key in b.keys], [k for b in batches for k in b.demonstrations.keys]]
        return [[key.rpartition("-")[2] for key in part] for part in keys]

    prompts, own = orders("train")
    same, other = orders("other")
    assert prompts == same == other, "runs with another split keep their orders"
    assert own != prompts and sorted(own) == sorted(prompts) and orders("train") == [prompts, own]
