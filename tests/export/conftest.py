"""Tiny trained runs, and what their own models say about the prompts of ``fresh.py``."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export import fresh
from tests.shared_runs import train, vlm

from safe_rlhf_v.export.trained import load_trained
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts

MODULES = {"policy": "SupervisedModule", "reward": "RewardModule", "cost": "CostModule", "guard": "GuardModule"}


@pytest.fixture(scope="session")
def family_runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a family, with a base and runs named by what they train; only those that are asked for are trained."""
    homes: dict[str, Path] = {}

    def of(family: str, *kinds: str) -> Path:
        if family not in homes:
            homes[family] = tmp_path_factory.mktemp(family)
            write_tiny_vlm(family, homes[family] / "base")
        for kind in kinds:
            out = homes[family] / kind
            if not out.exists():
                torch.manual_seed(3)
                train(MODULES[kind], world, out, vlm(homes[family] / "base"), **_options(kind, world))
        return homes[family]

    return of


def _options(kind: str, world: Path) -> dict[str, Any]:
    from safe_rlhf_v.shards import Manifest

    return {"categories": list(Manifest.load(world).taxonomy.categories)} if kind == "guard" else {}


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses, among progress bars."""
    from safe_rlhf_v.__main__ import main

    try:
        status: Any = main(args)
    except SystemExit as end:
        status = end.code
    err = capsys.readouterr().err
    assert status == 2, err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert "Traceback" not in err
    return line


def strangers_words(*jobs: dict[str, Any]) -> list[Any]:
    """What a process without this library says of folders."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", str(Path(fresh.__file__)), json.dumps(list(jobs))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class OwnWords:
    """What a run's own model says."""

    def __init__(self, run: Path, base: Path | None = None) -> None:
        self.trained = load_trained(run, base=None if base is None else str(base))
        self.backbone: Any = self.trained.backbone

    @staticmethod
    def prompts(talks: bool = True) -> list[Prompts]:
        """As ``fresh.py`` makes them; without ``talks`` those of one question only."""
        plain = [{"shapes": shapes, "question": fresh.QUESTION} for shapes in fresh.SHAPES]
        prompts = []
        for asked in (*plain, *(fresh.TALKS if talks else ())):
            images = tuple(torch.tensor(fresh.pixels(*shape), dtype=torch.uint8) for shape in asked["shapes"])
            names = tuple(f"{shape}" for shape in asked["shapes"])
            turns = tuple(Turn(**turn) for turn in asked.get("history", ()))
            context = Context(asked.get("system", ""), turns)
            prompts.append(Prompts((images,), (names,), (asked["question"],), (context,)))
        return prompts

    @torch.no_grad()
    def next_tokens(self) -> list[list[float]]:
        """Log-probabilities of a response's first token, per prompt of one question."""
        rows = []
        for prompt in self.prompts(talks=False):
            states = self.backbone.response_states(self.backbone.prepare(prompt, [("x",)]))
            rows.append(self.backbone.lm_head(states.prompt)[0].float().log_softmax(-1).tolist())
        return rows

    @torch.no_grad()
    def outputs(self) -> list[torch.Tensor]:
        """(responses, K) outputs of the head, per prompt; the responses share a padded batch."""
        rows = []
        for prompt in self.prompts():
            prepared = self.backbone.prepare(prompt, [fresh.RESPONSES])
            states = self.backbone.response_states(prepared, log_probs=self.trained.head.needs_log_probs)
            rows.append(self.trained.head(states))
        return rows

    def scores(self) -> list[list[float]]:
        """The first output."""
        return [values[:, 0].tolist() for values in self.outputs()]

    @torch.no_grad()
    def verdicts(self) -> list[list[dict[str, Any]]]:
        """Of a guard: probabilities of the levels, and of a hazardous prompt, without calibration."""
        link = self.trained.link
        rows = []
        for values in self.outputs():
            levels = link.log_probs(values[:, : link.features]).exp()
            risk = torch.sigmoid(values[:, link.features])
            rows.append(
                [
                    {"levels": level.tolist(), "harm": float(level[:3].sum()), "prompt_risk": float(r)}
                    for level, r in zip(levels, risk, strict=True)
                ]
            )
        return rows

    def responses(self) -> list[str]:
        """Greedy responses."""
        from safe_rlhf_v.models.sampling import SamplingOptions, sample

        options = SamplingOptions(8, temperature=0.0)
        return [sample(self.backbone, prompt, options).text[0] for prompt in self.prompts()]
