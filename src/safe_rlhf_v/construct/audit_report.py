"""From stored opinions to the content of ``audit.json``; its schema stands in :mod:`safe_rlhf_v.construct.audit`."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from safe_rlhf_v.construct.agreement import alpha_by_level, families, ordinal_alpha, pooled
from safe_rlhf_v.construct.alarms import (
    RULE,
    Check,
    Gold,
    Tolerances,
    at_most,
    axes_of,
    checks_of_judge,
    not_tested,
    raised,
    share_of_each,
)
from safe_rlhf_v.construct.examples import examples_of, leak_examples
from safe_rlhf_v.construct.grounding import PICTURES, Finding, read_grounding
from safe_rlhf_v.construct.images import usable_images
from safe_rlhf_v.construct.judging import Judgement
from safe_rlhf_v.construct.labels import JudgeVotes, label_quality, votes_of
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.measures import (
    Rate,
    agreement_with,
    both_orders,
    confusion,
    first_order,
    identical,
    longer_preferred,
    padding,
    picture_reading,
    ratings_near,
    retest_choice,
    retest_rating,
    ties,
)
from safe_rlhf_v.construct.questions import read_items
from safe_rlhf_v.construct.reply_parsing import RANGES
from safe_rlhf_v.construct.responses import Pairs
from safe_rlhf_v.construct.stage import Workspace
from safe_rlhf_v.scoring.judge import AXES, Axis

FAULTS = ("unparsable", "refused", "failed", "unknown")


class Report(NamedTuple):
    """From what the audit is made.

    Attributes:
        work: The working folder.
        pairs: The pairs.
        opinions: Every opinion.
        gold: Gold items, ``None`` without.
        tolerances: What is tolerated.
        most: Largest number of examples of one alarm.
    """

    work: Workspace
    pairs: Pairs
    opinions: Sequence[Judgement]
    gold: Gold | None
    tolerances: Tolerances
    most: int

    def content(self) -> Row:
        """The audit, as the schema says."""
        settings = self.work.settings("judgements")["judges"]
        by_judge = {name: axes_of([one for one in self.opinions if one.judge == name]) for name in settings}
        findings = read_grounding(self.work)
        checks = [c for name, own in by_judge.items() for c in checks_of_judge(name, own, self.gold, self.tolerances)]
        if findings:
            leaks = Rate(sum(finding.leaks for finding in findings.values()), len(findings))
            checks.append(at_most("leaking", None, None, leaks, self.tolerances.leaks))
        alarms = raised(checks, self.tolerances)
        faulty = {check.judge for check, alarm in zip(checks, alarms, strict=True) if alarm}
        usable = [name for name in settings if name not in faulty]
        votes = votes_of(self.opinions)
        examples: list[Row] = []
        return {
            "format": "safe_rlhf_v.audit",
            "version": 1,
            "name": self.work.rubric.name,
            "synthetic": any(pair.item.image.get("attributes") is not None for pair in self.pairs.usable.values()),
            "items": self._items(findings),
            "rule": self._rule(checks),
            "alarms": self._alarms(checks, alarms, by_judge, findings, examples),
            "tests": [check.to_json(alarm) for check, alarm in zip(checks, alarms, strict=True)],
            "judges": [
                self._judge(name, settings[name], by_judge[name], votes.get(name), name in usable) for name in settings
            ],
            "agreement": self._agreement(settings, votes, usable),
            "confusion": self._confusion(votes),
            "grounding": self._grounding(findings, examples),
            "labels": label_quality(votes, usable, self._grounded(findings), _family_names(settings)),
            "examples": examples,
        }

    def _grounded(self, findings: Mapping[str, Finding]) -> list[str]:
        """Pairs whose question needs its picture."""
        leaking = {key for key, finding in findings.items() if finding.leaks}
        return [key for key, pair in self.pairs.usable.items() if pair.item.key not in leaking]

    def _items(self, findings: Mapping[str, Finding]) -> Row:
        images = usable_images(self.work)
        items = read_items(self.work)
        responses = [row for row in self.work.rows("responses") if not row.get("fault")]
        return {
            "images": len(images.rows),
            "duplicates": images.duplicates,
            "near_duplicates": images.near_duplicates,
            "unusable_images": images.unusable,
            "questions": len(items),
            "by_kind": dict(Counter(item.kind or "(unknown)" for item in items.values())),
            "by_category": dict(sorted(Counter(item.group for item in items.values()).items())),
            "responses": len(responses),
            "by_source": dict(Counter(row["source"] for row in responses)),
            "pairs": len(self.pairs.usable),
            "near_identical_pairs": self.pairs.near_identical,
            "leaking_questions": sum(finding.leaks for finding in findings.values()),
            "usable_pairs": len(self._grounded(findings)),
        }

    def _rule(self, checks: Sequence[Check]) -> Row:
        each = share_of_each(checks, self.tolerances)
        rate = self.tolerances.false_alarm_rate
        counted = sum(check.name != "picture_not_read" for check in checks)
        text = RULE.format(rate=rate, tests=counted, each=each)
        return {"false_alarm_rate": rate, "tests": counted, "per_test": float(f"{each:.6g}"), "text": text}

    def _alarms(
        self,
        checks: Sequence[Check],
        alarms: Sequence[bool],
        by_judge: Mapping[str, Mapping[Axis, Sequence[Judgement]]],
        findings: Mapping[str, Finding],
        examples: list[Row],
    ) -> list[Row]:
        """The alarms, worst first; their examples are appended."""
        rows: list[Row] = []
        worst_first = sorted(
            (check for check, alarm in zip(checks, alarms, strict=True) if alarm),
            key=lambda check: (check.name == "picture_not_read", check.p),
        )
        for check in worst_first:
            begin = len(examples)
            if check.judge is None:
                examples += leak_examples(self.pairs.usable, findings, self.most)
            else:
                examples += examples_of(check, by_judge[check.judge], self.pairs.usable, self.gold, self.most)
            about = {"name": check.name, "judge": check.judge, "axis": check.axis, "text": check.sentence()}
            rows.append({**about, "p": float(f"{check.p:.6g}"), "examples": [*range(begin, len(examples))]})
        return rows

    def _judge(
        self,
        name: str,
        settings: Row,
        opinions: Mapping[Axis, Sequence[Judgement]],
        votes: JudgeVotes | None,
        usable: bool,
    ) -> Row:
        every_opinion = [one for several in opinions.values() for one in several]
        faults = Counter(one.fault for one in every_opinion if one.fault)
        shared = sorted(
            {
                f"the responses of {source} come from the family {family}, which it is of, too"
                for source, about in self.work.settings("responses")["responders"].items()
                for family in set(settings.get("families", ())) & set(about.get("families", ()))
            }
        )
        return {
            "name": name,
            "class": settings["class"],
            "families": list(settings.get("families", ())),
            "independent": not shared,
            "dependence": "; ".join(shared),
            "usable": usable,
            "not_tested": not_tested(opinions),
            "faults": {fault: Rate(faults[fault], len(every_opinion)).to_json() for fault in FAULTS},
            "axes": {axis: self._axis(axis, own, votes) for axis, own in opinions.items()},
        }

    def _axis(self, axis: Axis, opinions: Sequence[Judgement], votes: JudgeVotes | None) -> Row:
        """What one judge's opinions on one axis show."""
        orders = both_orders(opinions)
        reading = picture_reading(opinions)
        chosen = votes.choices.get(axis, {}) if votes else {}
        rated = votes.ratings.get(axis, {}) if votes else {}
        texts = {key: pair.texts for key, pair in self.pairs.usable.items()}
        right = self.gold.choices[axis] if self.gold else {}
        levels = self.gold.ratings[axis] if self.gold else {}
        return {
            "both_orders": orders._asdict(),
            "flips": orders.flips.to_json(),
            "identical": identical(opinions),
            "retest_choice": retest_choice(opinions).to_json(),
            "retest_rating": retest_rating(opinions).to_json(),
            "picture": {
                "swapped_changed": reading.swapped.to_json(),
                "repeat_changed": reading.repeated.to_json(),
            },
            "padded": padding(opinions),
            "longer_preferred": longer_preferred(chosen, texts).to_json(),
            "ties": ties(first_order(opinions)).to_json(),
            "ratings": {str(int(value)): count for value, count in sorted(Counter(rated.values()).items())},
            "gold_choice": agreement_with(chosen, right).to_json(),
            "gold_rating": ratings_near(rated, levels, 0).to_json(),
            "gold_rating_within_one": ratings_near(rated, levels, 1).to_json(),
        }

    def _agreement(self, settings: Row, votes: Mapping[str, JudgeVotes], usable: Sequence[str]) -> Row:
        named = _family_names(settings)
        images = {key: pair.item.image["id"] for key, pair in self.pairs.usable.items()}
        return {axis: _axis_agreement(axis, votes, named, usable, self.work.seed, images) for axis in AXES}

    def _confusion(self, votes: Mapping[str, JudgeVotes]) -> Row:
        if self.gold is None:
            return {}
        groups = {key: pair.item.group for key, pair in self.pairs.usable.items()}
        right = self.gold.ratings["safety"]
        return {
            name: confusion(own.ratings["safety"], right, groups)
            for name, own in votes.items()
            if own.ratings.get("safety")
        }

    def _grounding(self, findings: Mapping[str, Finding], examples: list[Row]) -> Row | None:
        if not findings:
            return None
        rows = self.work.rows("grounding")
        begin = len(examples)
        examples += leak_examples(self.pairs.usable, findings, self.most)
        return {
            "leak": Rate(sum(finding.leaks for finding in findings.values()), len(findings)).to_json(),
            "answer_leak": _known(finding.answer_leaks for finding in findings.values()).to_json(),
            "verdict_leak": _known(finding.verdict_leaks for finding in findings.values()).to_json(),
            "helpfulness": {picture: _mean(rows, "helpfulness", picture) for picture in PICTURES},
            "harmful": {picture: _mean(rows, "safety", picture, harmful=True) for picture in PICTURES},
            "examples": [*range(begin, len(examples))],
        }


def _family_names(settings: Mapping[str, Row]) -> dict[str, Collection[str]]:
    """Families by judge."""
    return {name: tuple(about.get("families", ())) for name, about in settings.items()}


def _axis_agreement(
    axis: Axis,
    votes: Mapping[str, JudgeVotes],
    named: Mapping[str, Collection[str]],
    usable: Sequence[str],
    seed: int,
    images: Mapping[str, str],
) -> Row:
    """Agreement on one axis between raters, judges of one family being one; the bounds count images (by pair)."""
    low, high = RANGES[axis]
    domain = range(low, high + 1)
    ratings = {name: votes[name].ratings[axis] for name in named if name in votes and votes[name].ratings.get(axis)}
    raters = families({name: named[name] for name in ratings})
    everyone = pooled(ratings, raters)
    trusted_raters = families({name: named[name] for name in ratings if name in usable})
    trusted = pooled(ratings, trusted_raters)
    clusters = {unit: images[unit[0]] for rated in everyone.values() for unit in rated}
    alpha = ordinal_alpha(everyone, domain, seed, clusters)
    trusted_alpha = ordinal_alpha(trusted, domain, seed, clusters)
    within = {
        rater: ordinal_alpha({name: ratings[name] for name in judges}, domain, seed).value
        for rater, judges in raters.items()
        if len(judges) > 1
    }
    return {
        "alpha": alpha.value,
        "low": alpha.low,
        "high": alpha.high,
        "units": alpha.units,
        "raters": list(everyone),
        "by_level": alpha_by_level(everyone, domain),
        "usable": {
            "alpha": trusted_alpha.value,
            "low": trusted_alpha.low,
            "high": trusted_alpha.high,
            "raters": list(trusted),
        },
        "within_families": within,
    }


def _known(values: Iterable[bool | None]) -> Rate:
    """The rate among those that are known."""
    known = [value for value in values if value is not None]
    return Rate(sum(known), len(known))


def _mean(rows: Sequence[Row], axis: str, picture: str, *, harmful: bool = False) -> float | None:
    """The mean rating under a picture, or the share of harmful ones."""
    values = [value for row in rows for value in row[axis].get(picture, ()) if value is not None]
    if not values:
        return None
    return round(fmean(float(value < 0) if harmful else value for value in values), 6)
