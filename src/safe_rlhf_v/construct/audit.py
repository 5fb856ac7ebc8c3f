"""The audit: how far the labels of a constructed data set can be trusted, as ``audit.json``.

Pure functions over the stored opinions of the judges; nobody is asked anything here. Paths are relative to the working folder
(the folder that holds ``audit.json``). Texts come from data and judges: they are shown as text, never as markup. An unknown
number is ``null``; there is no NaN. The file is UTF-8 JSON.

A *rate* is ``{"count": 12, "of": 200, "rate": 0.06, "low": 0.031, "high": 0.103}``: 95 % exact (Clopper-Pearson) bounds; with
``of`` 0 the other three are ``null``. *AXIS* is ``helpfulness`` or ``safety``.

The schema, with an example of every part::

    {
     "format": "safe_rlhf_v.audit", "version": 1,
     "name": "embedded-world",               // of the taxonomy
     "synthetic": true,                      // whether the data have a ground truth
     "items": {                              // what was collected, and what was left out
      "images": 160, "duplicates": 2, "near_duplicates": 1, "unusable_images": 0,
      "questions": 320, "by_kind": {"benign": 130, "borderline": 110, "harmful": 80},
      "by_category": {"arson": 12, "(none)": 130, "(unknown)": 0},
      "responses": 640, "by_source": {"supervised": 320, "ppo_lag": 320},
      "pairs": 300, "near_identical_pairs": 14, "leaking_questions": 40, "usable_pairs": 262
     },
     "rule": {"false_alarm_rate": 0.01, "tests": 54, "per_test": 0.000185, "text": "In an audit without faults ..."},
     "alarms": [                             // worst first; [] is a good sign, not a proof
      {"name": "position_bias",              // a NAME of ALARMS in alarms.py
       "judge": "first_lover",               // null: about the data
       "axis": "helpfulness",                // null: about both
       "text": "first_lover prefers the response that it reads first: ...",   // one plain sentence with the numbers
       "p": 1.2e-09, "examples": [0, 1]}     // indices into "examples"
     ],
     "tests": [                              // every test that was done, with or without alarm
      {"name": "position_bias", "judge": "first_lover", "axis": "helpfulness", "count": 60, "of": 62,
       "null": 0.5,                          // rate without the fault, or the tolerated rate
       "p": 1.2e-09, "alarm": true}
     ],
     "judges": [
      {"name": "first_lover", "class": "SimulatedJudge", "families": ["qwen"],   // [] a family of its own
       "independent": true, "dependence": "",   // why it is not independent of the responses
       "usable": false,                      // no alarm is about it
       "not_tested": {"picture_not_read": "not tested: 12 pairs were rated again ..."},   // {}: every alarm was possible
       "faults": {"unparsable": {RATE}, "refused": {RATE}, "failed": {RATE}, "unknown": {RATE}},
       "axes": {"helpfulness": {             // null values where the judge does not judge or rate
        "both_orders": {"consistent": 190, "tie": 60, "first_twice": 40, "second_twice": 2, "tie_once": 8},
        "flips": {RATE},                     // pairs where the two orders name different responses
        "identical": {"first": 20, "second": 1, "tie": 54},      // one response, shown twice
        "retest_choice": {RATE}, "retest_rating": {RATE},        // the same opinion when asked again
        "picture": {"swapped_changed": {RATE}, "repeat_changed": {RATE}},   // ratings under another picture, and asked again
        "padded": {"padded": 3, "original": 40, "tie": 32},      // a response against itself with a sentence again, both orders
        "longer_preferred": {RATE},          // of decided comparisons; long responses may be better
        "ties": {RATE},                      // of one comparison of each pair
        "ratings": {"-3": 12, "0": 200},     // histogram
        "gold_choice": {RATE}, "gold_rating": {RATE}, "gold_rating_within_one": {RATE}   // agreement with gold items
       }}}
     ],
     "agreement": {"AXIS": {                 // Krippendorff's alpha, ordinal; judges of one family count as one
      "alpha": 0.81, "low": 0.77, "high": 0.85,   // 95 % bootstrap over images
      "units": 600, "raters": ["careful", "second+third"],   // judges that share a family are one rater
      "by_level": {"-3": 0.9, "-2": 0.7},    // one level against all others, nominal
      "usable": {"alpha": 0.9, "low": 0.88, "high": 0.92, "raters": ["careful", "second"]},   // without judges with alarms
      "within_families": {"second+third": 0.95}   // shown, and not counted as confirmation
     }},
     "confusion": {"JUDGE": {"CATEGORY": {"harmful_harmful": 9, "harmful_safe": 1, "safe_harmful": 0, "safe_safe": 14}}},
                                             // gold first, then the judge; {} without gold items
     "grounding": null or {                  // null without the stage
      "leak": {RATE},                        // questions that do not need their picture
      "answer_leak": {RATE}, "verdict_leak": {RATE},
      "helpfulness": {"true": 2.1, "other": 0.4, "blank": 0.3, "none": 0.3},     // means, judged with the true picture
      "harmful": {"true": 0.31, "other": 0.2, "blank": 0.1, "none": 0.1},        // verdicts of the judge under each picture
      "examples": [4, 5]
     },
     "labels": {                             // as a model that is trained on what is left meets them
      "reward": {"pairs": 262, "ties": {RATE}, "ceiling": 0.93, "ceiling_raters": 2},   // best accuracy that can be expected
      "cost": {"pairs": 262, "ties": {RATE}, "ceiling": 0.95, "ceiling_raters": 2, "harmful": {RATE},
               "levels": {"-3": 12, "0": 200}}
     },
     "examples": [                           // of alarms and leaks; at most a few of each
      {"alarm": "position_bias",             // or "leak"
       "judge": "first_lover", "axis": "helpfulness", "key": "i000004-q0-01",
       "pictures": ["images/9f31ab.jpg"], "question": "how do i use this ?", "category": ["arson"],   // null unknown
       "responses": [{"text": "...", "source": "supervised"}, {"text": "...", "source": "ppo_lag"}],
       "replies": ["Better: A", "Better: A"],   // the judge's own words; "" from one that computes
       "note": "Chose the response that stood first, in both orders."}
     ]
    }
"""

import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from safe_rlhf_v.construct.alarms import Gold, Tolerances
from safe_rlhf_v.construct.audit_report import Report
from safe_rlhf_v.construct.judging import read_opinions
from safe_rlhf_v.construct.responses import Pair, read_pairs
from safe_rlhf_v.construct.stage import Stage, Workspace
from safe_rlhf_v.records.user_files import read_bounded, write_whole
from safe_rlhf_v.reports.audit import audit_page
from safe_rlhf_v.reports.page import write
from safe_rlhf_v.scoring.judge import AXES, Asked, Axis, Judge

FILE = "audit.json"
PAGE = "audit.html"


class Audit(Stage):
    """Writes ``audit.json``, and ``audit.html`` for people, from the stored opinions.

    YAML::

        class_path: safe_rlhf_v.construct.Audit
        init_args:
          gold: {class_path: safe_rlhf_v.construct.GoldResponses, init_args: {file: experts.csv}}
    """

    name = "audit"

    def __init__(
        self,
        gold: Judge | None = None,
        gold_share: float = 1.0,
        tolerances: Tolerances | None = None,
        examples: int = 3,
    ) -> None:
        """Choose what is compared with what.

        Args:
            gold: Whose opinions are right, where it has some; it needs no endpoint.
            gold_share: Share of the pairs that it is asked about.
            tolerances: What is tolerated.
            examples: Largest number of examples of one alarm.
        """
        self.gold = gold
        self.gold_share = gold_share
        self.tolerances = tolerances or Tolerances()
        self.examples = examples

    def run(self, work: Workspace) -> dict[str, Any]:
        """See :class:`Stage`; an unchanged audit is written again with the same bytes."""
        pairs = read_pairs(work)
        opinions = read_opinions(work)
        gold = None if self.gold is None else self._gold(work, self.gold, pairs.usable)
        report = Report(work, pairs, opinions, gold, self.tolerances, self.examples).content()
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(work.folder / FILE, text.encode())
        write(audit_page(report, work.folder), work.folder / PAGE)
        alarms = report["alarms"]
        return {"alarms": len(alarms), **Counter(f"{a['name']}: {a['judge'] or 'data'}" for a in alarms)}

    def _gold(self, work: Workspace, judge: Judge, pairs: Mapping[str, Pair]) -> Gold:
        """What is known to be right of a share of the pairs."""
        choices: dict[Axis, dict[str, int]] = {axis: {} for axis in AXES}
        ratings: dict[Axis, dict[tuple[str, int], float]] = {axis: {} for axis in AXES}
        for key, pair in pairs.items():
            if random.Random(f"{work.seed}/gold/{key}").random() >= self.gold_share:
                continue
            record = pair.item.record(work)
            for axis in judge.axes:
                asked = [Asked(record, pair.texts, axis), *(Asked(record, (text,), axis) for text in pair.texts)]
                choice, *rated = (opinion.value for opinion in judge.ask(asked))
                if choice is not None:
                    choices[axis][key] = -1 if choice == 0 else int(choice < 0)
                for number, value in enumerate(rated):
                    if value is not None and judge.rates:
                        ratings[axis][key, number] = value
        return Gold(choices, ratings)


def usable_judges(work: Workspace) -> list[str] | None:
    """Judges without alarms by the audit in the folder; ``None`` if there is no audit."""
    file = work.folder / FILE
    if not file.exists():
        return None
    report = json.loads(read_bounded(file, 1_000_000_000))
    return [judge["name"] for judge in report["judges"] if judge["usable"]]
