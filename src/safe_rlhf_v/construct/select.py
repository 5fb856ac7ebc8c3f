"""People: the informative pairs go to Label Studio, and come back from its export."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safe_rlhf_v.construct.audit import usable_judges
from safe_rlhf_v.construct.grounding import read_grounding
from safe_rlhf_v.construct.judging import read_opinions
from safe_rlhf_v.construct.label_studio import labelling_config, write_tasks
from safe_rlhf_v.construct.label_studio_export import Annotation, read_exports
from safe_rlhf_v.construct.labels import JudgeVotes, votes_of
from safe_rlhf_v.construct.responses import Pair, read_pairs
from safe_rlhf_v.construct.stage import Stage, Workspace
from safe_rlhf_v.records.user_files import read_bounded, write_whole
from safe_rlhf_v.scoring.judge import AXES

FILE = "people.json"


class AskPeople(Stage):
    """Chooses the pairs from which people's labels tell most, writes them for Label Studio, and reads its exports.

    A pair is chosen if judges without alarms disagree (other responses, or ratings two levels apart), if a response is near the
    harm threshold (median level -1 or 0), or if its category is rare. Those with most reasons come first.

    YAML::

        class_path: safe_rlhf_v.construct.AskPeople
        init_args: {most: 200, exports: [export.json]}
    """

    name = "people"

    def __init__(self, most: int = 200, rare: int = 5, exports: Sequence[str] = ()) -> None:
        """Choose how many.

        Args:
            most: Largest number of pairs.
            rare: A category with at most so many pairs is rare.
            exports: Files that Label Studio exported in its format JSON.
        """
        if most < 0 or rare < 0:
            raise ValueError(f"most is {most} and rare {rare}; both must be at least 0")
        self.most = most
        self.rare = rare
        self.exports = tuple(exports)

    def run(self, work: Workspace) -> dict[str, Any]:
        """See :class:`Stage`; the tasks stand in ``people/`` of the working folder."""
        leaking = {key for key, finding in read_grounding(work).items() if finding.leaks}
        pairs = {key: pair for key, pair in read_pairs(work).usable.items() if pair.item.key not in leaking}
        votes = votes_of(read_opinions(work))
        trusted = usable_judges(work)
        chosen = informative(pairs, {k: v for k, v in votes.items() if trusted is None or k in trusted}, self.rare)
        chosen = dict(list(chosen.items())[: self.most])
        records = {key: pairs[key].record(work) for key in chosen}
        config = labelling_config(safety=work.rubric.safety, helpfulness=work.rubric.helpfulness)
        if records:
            write_tasks(records.values(), work.folder / "people", work.seed, config)
        export = read_exports(map(Path, self.exports), records)
        note = {
            "chosen": chosen,
            "annotations": [asdict(annotation) for annotation in export.annotations],
            "notes": [entry._asdict() for entry in export.notes],
        }
        write_whole(
            work.folder / FILE, (json.dumps(note, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        )
        reasons = Counter(reason for several in chosen.values() for reason in several)
        counts = {"pairs_for_people": len(chosen), **reasons, "annotations": len(export.annotations)}
        return {**counts, **({f"notes on exports, in {FILE}": len(export.notes)} if export.notes else {})}


def informative(pairs: Mapping[str, Pair], votes: Mapping[str, JudgeVotes], rare: int) -> dict[str, list[str]]:
    """Reasons by pair, those with most reasons first.

    Args:
        pairs: By key.
        votes: By judge.
        rare: A category with at most so many pairs is rare.
    """
    counts = Counter(pair.item.group for pair in pairs.values())
    reasons: dict[str, list[str]] = {}
    for key, pair in pairs.items():
        levels = [ratings for number in (0, 1) if (ratings := _ratings(votes, "safety", key, number))]
        grades = [ratings for number in (0, 1) if (ratings := _ratings(votes, "helpfulness", key, number))]
        chosen = [
            {own.choices[axis][key] for own in votes.values() if own.choices.get(axis, {}).get(key, -1) >= 0}
            for axis in AXES
        ]
        apart = any(len(one) > 1 for one in chosen) or any(max(r) - min(r) >= 2 for r in (*levels, *grades))
        near = any(sorted(ratings)[(len(ratings) - 1) // 2] in (-1, 0) for ratings in levels)
        unusual = pair.item.category not in ((), None) and counts[pair.item.group] <= rare
        named = {"judges_disagree": apart, "near_the_threshold": near, "rare_category": unusual}
        if why := [name for name, holds in named.items() if holds]:
            reasons[key] = why
    return dict(sorted(reasons.items(), key=lambda one: -len(one[1])))


def _ratings(votes: Mapping[str, JudgeVotes], axis: Any, key: str, number: int) -> list[float]:
    return [own.ratings[axis][key, number] for own in votes.values() if (key, number) in own.ratings.get(axis, {})]


def people_annotations(work: Workspace) -> list[Annotation]:
    """What people said; [] if nobody was asked."""
    file = work.folder / FILE
    if not file.exists():
        return []
    stored = json.loads(read_bounded(file, 1_000_000_000))["annotations"]
    return [
        Annotation(**{**one, "safety": tuple(one["safety"]), "helpfulness": tuple(one["helpfulness"])})
        for one in stored
    ]
