"""The audit: a random sample of each policy's own responses, scored by somebody who is trusted more than the judges.

Error rates of a judge do not carry over from other responses: a policy that was optimised against a judge finds its errors.
"""

from dataclasses import dataclass

from safe_rlhf_v.construct.lines import Lines, Row
from safe_rlhf_v.evaluation.people import PeopleRatings, asked_of_people
from safe_rlhf_v.evaluation.scores import score_task, write_tasks
from safe_rlhf_v.evaluation.work import Work, described, named
from safe_rlhf_v.scoring.judge import Judge

NAME = "audit"


@dataclass
class Audit:
    """Who audits, and how much.

    YAML::

        audit: {judge: {class_path: safe_rlhf_v.world.WorldJudge}, samples: 200}

    Attributes:
        judge: Who is trusted: the truth, or people.
        samples: Responses of each policy, mode and split that are audited, chosen at random.
    """

    judge: Judge
    samples: int = 200

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            ValueError: If it is below 1.
        """
        if self.samples < 1:
            raise ValueError(f"audit.samples is {self.samples}; it must be at least 1")


def write_audit(work: Work, audit: Audit) -> str:
    """Score the sample; gives what is left for people to do, or "".

    Where people audit and there is no rating yet, what they fill in is written, and nothing else. Ratings may be added later, so
    theirs are read anew each time.

    Args:
        work: The evaluation.
        audit: Who audits.

    Raises:
        ValueError: If people rated other responses.
    """
    rows = audited_rows(work, audit.samples)
    left = ""
    if isinstance(audit.judge, PeopleRatings):
        asked = asked_of_people(rows, work.prompts)
        Lines(work.folder, NAME).forget()
        what = audit.judge.write(work.folder, asked, work.seed, NAME)
        if nothing := audit.judge.nothing_yet():
            return f"audit: {nothing}: {what}, and run the same command again"
        with named(NAME):
            left = audit.judge.shortfalls(asked)
        left = left and f"audit: {left}"
    tasks = [score_task(NAME, row) for row in rows]
    settings = {"judge": described({NAME: audit.judge}), "samples": audit.samples}
    write_tasks(work, NAME, tasks, {NAME: audit.judge}, settings)
    return left


def audited_rows(work: Work, samples: int) -> list[Row]:
    """Lines of the responses that are audited: of sampled and greedy ones with the real picture, the same prompts for all.

    Args:
        work: The evaluation.
        samples: Prompts of each split.
    """
    chosen = {
        (one.split, one.key)
        for split in dict.fromkeys(one.split for one in work.prompts)
        for one in work.prompts.some(samples, "audit", split)
    }
    return [
        row
        for row in work.rows("responses")
        if row["mode"] in ("sampled", "greedy") and row["picture"] == "real" and (row["split"], row["key"]) in chosen
    ]
