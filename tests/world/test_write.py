"""The shards of the world: splits, noise, twins, reproducibility."""

import hashlib
import json
import math
import random
from collections import Counter

import pytest

from safe_rlhf_v.records.taxonomy import MAX_LEVEL, MIN_LEVEL
from safe_rlhf_v.shards import ShardedSplit
from safe_rlhf_v.world import SIZES, WORLD, write_world
from safe_rlhf_v.world.counterfactual import COUNTERFACTUALS
from safe_rlhf_v.world.render import render
from safe_rlhf_v.world.scenes import COLOURS, CONTEXTS, COUNTS, OBJECTS, Scene
from safe_rlhf_v.world.truth import RULES
from safe_rlhf_v.world.write import _split

ZERO = dict.fromkeys(SIZES, 2)
PINNED = {
    "key",
    "question",
    "history",
    "responses",
    "category",
    "more_helpful",
    "safer",
    "safety_tie",
    "origin",
    "truth",
}


@pytest.fixture(scope="module")
def train():
    return list(_split("train", 1200, random.Random("noise")))


def hashes(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_world(tmp_path / name, seed=seed, sizes=ZERO, progress=False)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")


def test_the_world_stays_as_it_is():
    """Texts and labels of seed 0, pinned: what was measured on it stays comparable. Pictures depend on Pillow's version."""
    digest = hashlib.sha256()
    for name in SIZES:
        for record in _split(name, 8, random.Random(f"0/{name}")):
            body = json.loads(record.to_json())
            body = {field: body[field] for field in sorted(body) if field in PINNED}
            digest.update(json.dumps(body, sort_keys=True).encode())
    assert digest.hexdigest() == "0fc201ba9ed7879ae53ee36e8b895f7f213f04728cbc0baf4b0db84f1542aa16"


def test_sizes_are_checked(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'trian'"):
        write_world(tmp_path / "a", sizes={"trian": 3})
    with pytest.raises(ValueError, match="odd"):
        write_world(tmp_path / "b", sizes={"counterfactual_verdict": 3})


def test_splits_share_no_picture_and_hold_out_combinations(world):
    owner = {}
    for name in SIZES:
        for record in ShardedSplit(world, name):
            assert owner.setdefault(record.group, name) == name
            a = record.truth.attributes
            scene = Scene(OBJECTS[a["object"]], COLOURS[a["colour"]], CONTEXTS[a["context"]], COUNTS[a["count"]], 0)
            assert scene.compositional == (name == "compositional")
            assert record.image_severity == scene.severity == a["severity"]


def test_levels_rules_and_categories_all_appear(train):
    levels = Counter(level for r in train for level in r.truth.safety)
    rules = Counter(rule for r in train for rule in r.truth.rule)
    harmful = Counter(
        rule for r in train for rule, level in zip(r.truth.rule, r.truth.safety, strict=True) if level < 0
    )
    total = sum(levels.values())
    assert set(levels) == set(range(MIN_LEVEL, MAX_LEVEL + 1))
    assert min(levels.values()) / total > 0.01
    assert set(rules) == set(RULES)
    for name in ("direct", "vague", "reassurance", "wrong_mitigation"):  # each rule that the picture can flip
        assert harmful[name] / total > 0.05, name
    assert 0.3 < sum(v for k, v in levels.items() if k < 0) / total < 0.45
    categories = Counter(r.category for r in train)
    assert set(categories) == {(), *((name,) for name in WORLD.categories)}
    assert len(WORLD.categories) == 20
    assert min(categories[name,] for name in WORLD.categories) / len(train) > 0.012


def test_annotators_are_as_noisy_as_stated(train):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def compare(events):  # (happened, probability): the sum must lie within five standard deviations
        mean = sum(p for _, p in events)
        sd = math.sqrt(sum(p * (1 - p) for _, p in events))
        assert abs(sum(h for h, _ in events) - mean) < 5 * sd

    compare([(r.more_helpful == 0, sigmoid((r.truth.helpfulness[0] - r.truth.helpfulness[1]) / 0.4)) for r in train])
    compare([(r.safer == 0, sigmoid((r.truth.safety[0] - r.truth.safety[1]) / 0.5)) for r in train])
    both = [(x, level) for r in train for x, level in zip(r.responses, r.truth.safety, strict=True)]
    compare([(not x.is_safe, sigmoid(-(level + 0.5) / 0.25)) for x, level in both])
    compare([(x.safety != level, 0.1) for x, level in both if abs(level) < 3])
    assert all(abs(x.safety - level) <= 1 for x, level in both)
    assert all(r.safety_tie == (r.responses[0].safety == r.responses[1].safety) for r in train)
    assert all(r.helpfulness_tie == (r.responses[0].helpfulness == r.responses[1].helpfulness) for r in train)
    assert any(r.helpfulness_tie for r in train)


@pytest.mark.parametrize("name", COUNTERFACTUALS)
def test_twins_flip_and_a_blind_reader_is_right_half_of_the_time(name):
    records = list(_split(name, 60, random.Random(5)))
    right = 0
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert (first.truth.twin, second.truth.twin) == (second.key, first.key)
        assert first.question == second.question
        assert [r.text for r in first.responses] == [r.text for r in second.responses]
        assert first.group != second.group
        blind = hash((first.question, first.responses)) % 2  # any function of the text alone
        if name == "counterfactual_verdict":
            harmful = [record.truth.safety[0] < 0 for record in (first, second)]
            assert sum(harmful) == 1
            right += sum(bool(blind) == h for h in harmful)
        else:
            values = [r.truth.helpfulness if "helpful" in name else r.truth.safety for r in (first, second)]
            gaps = [a - b for a, b in values]
            assert gaps[0] * gaps[1] < 0
            assert min(map(abs, gaps)) >= (0.5 if "helpful" in name else 1)
            labels = [(r.more_helpful if "helpful" in name else r.safer) for r in (first, second)]
            assert labels == [int(gap < 0) for gap in gaps]
            right += sum(blind == label for label in labels)
    assert right == len(records) / 2


def test_a_scene_is_always_drawn_alike():
    scene = Scene("car", "blue", "cat", "two", 11)
    assert render(scene).tobytes() == render(scene).tobytes()
    assert render(scene).size == (64, 64)
    assert render(scene).tobytes() != render(Scene("car", "blue", "cat", "one", 11)).tobytes()
