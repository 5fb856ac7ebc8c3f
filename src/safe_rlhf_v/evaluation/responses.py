"""Every policy's responses: sampled and greedy, with the real pictures and others; and the start at matched temperatures."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.evaluation.matching import Matching
from safe_rlhf_v.evaluation.policies import Policy
from safe_rlhf_v.evaluation.prompts import PromptForm
from safe_rlhf_v.evaluation.work import Work, described, font_of, named
from safe_rlhf_v.policy.answers import Answer

FILE = "responses"


def write_prompts(work: Work) -> None:
    """Write what is known about each prompt."""
    tasks: list[Row] = [{"split": one.split, "key": one.key, "content": one.content} for one in work.prompts]

    def about(batch: Sequence[Row]) -> list[Row]:
        return [work.prompts.prompts[task["split"], task["key"]].about for task in batch]

    work.write("prompts", tasks, {"prompts": dict(Counter(task["split"] for task in tasks))}, about)


def matched_policies(work: Work) -> list[str]:
    """Policies whose entropy the start is sampled at, too."""
    start = None if work.start is None else work.policies[work.start]
    if start is None or not start.knows_entropy or "matched" not in work.modes or "sampled" not in work.modes:
        return []
    return [name for name, policy in work.policies.items() if name != work.start and policy.knows_entropy]


def response_tasks(work: Work) -> list[Row]:
    """One task for each response, policy by policy; those at matched temperatures come last.

    Other pictures and transformed prompts are shown in the mode ``sampled`` alone. A policy whose texts are fixed has one mode
    and sees nothing; one without a greedy form is only sampled.
    """
    tasks: list[Row] = []
    for name, policy in work.policies.items():
        greedy = policy.samples and policy.greedy and "greedy" in work.modes
        modes = ["sampled", "greedy"] if greedy else ["sampled"]
        for mode in modes:
            tasks += _tasks(work, name, mode)
            if policy.samples and mode == "sampled":
                for picture in work.pictures:
                    if picture != "real":
                        tasks += _tasks(work, name, mode, picture)
    for name in matched_policies(work):
        tasks += _tasks(work, str(work.start), f"matched:{name}")
    return tasks


def _tasks(work: Work, policy: str, mode: str, picture: PromptForm = "real") -> list[Row]:
    return [
        {"policy": policy, "split": p.split, "mode": mode, "picture": picture, "key": p.key, "content": p.content}
        for p in work.prompts.under(picture)
    ]


def write_responses(work: Work) -> None:
    """Let every policy respond."""
    run = _Responses(work)
    tasks = response_tasks(work)
    settings = {
        "policies": described(work.policies),
        "reference": {} if work.reference is None else described({"reference": work.reference}),
        "sampling": {"temperature": work.sampling.temperature, "max_new_tokens": work.sampling.max_new_tokens},
        **font_of(work),
        **{f"{part}s": sorted({task[part] for task in tasks}) for part in ("mode", "picture")},
    }
    try:
        work.write(FILE, tasks, settings, run.respond, run.matching.note)
    finally:
        for policy in (*work.policies.values(), *([work.reference] if work.reference else [])):
            policy.unload()


class _Responses:
    """Responds to tasks; of the policies only the one that responds and the reference hold networks."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.matching = Matching(work)
        self._last: Policy | None = None

    def respond(self, tasks: Sequence[Row]) -> list[Row]:
        rows: list[Row] = []
        for (name, mode, picture), several in itertools.groupby(
            tasks, lambda task: (task["policy"], task["mode"], task["picture"])
        ):
            group = list(several)
            with named(f"policies.{name}"):
                answers = self._answers(name, mode, picture, group)
            new = [_row(task, answer) for task, answer in zip(group, answers, strict=True)]
            self.matching.note(new)
            rows += new
        return rows

    def _answers(self, name: str, mode: str, picture: PromptForm, tasks: Sequence[Row]) -> list[Answer]:
        work = self.work
        policy = work.policies[name]
        if self._last is not None and self._last not in (policy, work.reference):
            self._last.unload()
        self._last = policy
        sampling = work.sampling
        reference = work.reference
        if mode == "greedy":
            sampling = replace(sampling, temperature=0.0)
        elif mode != "sampled":
            temperature = self.matching.temperature(mode.removeprefix("matched:"))
            if temperature is None:
                return [Answer("", "unmatched")] * len(tasks)
            sampling = replace(sampling, temperature=temperature)
            reference = None  # both would be the same network: the divergence by temperature is not measured
        records = [work.prompts.record(task["split"], task["key"], picture) for task in tasks]
        return policy.respond(records, sampling, work.seed, reference)


def _row(task: Row, answer: Answer) -> Row:
    about = {name: task[name] for name in ("policy", "split", "mode", "picture", "key")}
    values = {name: round(value, 6) if math.isfinite(value) else None for name, value in answer.values.items()}
    reply = {"reply": answer.reason} if answer.reason else {}
    return {**about, "response": answer.text, "fault": answer.fault, "values": values, **reply}
