"""A run of another stage than the one needed is refused before anything is built."""

from pathlib import Path

import pytest
from tests.stored_runs import at, call, copy_run, refused, with_config

from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.runs import load_backbone

EVALUATE = ("evaluate", "--data={world}", "--output=x", "--device=cpu")
START = '--start={{"class_path": "safe_rlhf_v.evaluation.ModelPolicy", "init_args": {{"run": "{root}/cost"}}}}'


def judge(kind: str, run: str) -> str:
    """The option that names one judge, a run of ours."""
    component = f'{{{{"class_path": "safe_rlhf_v.construct.{kind}", "init_args": {{{{"run": "{{root}}/{run}"}}}}}}}}'
    return f'--judges={{{{"one": {component}}}}}'


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            [*EVALUATE, "--policies.mine={root}/reward"],
            ("policies.mine", "is a reward model", "a policy is needed"),
        ),
        ([*EVALUATE, "--policies.mine={root}/vision"], ("policies.mine", "is a vision tower")),
        (
            [*EVALUATE, "--policies.mine={root}/supervised", judge("CostJudge", "reward")],
            ("judges.one", "is a reward model"),
        ),
        (
            [*EVALUATE, "--policies.mine={root}/supervised", judge("RewardJudge", "cost")],
            ("judges.one", "is a cost model"),
        ),
        (
            [*EVALUATE, "--policies.mine={root}/supervised", judge("GuardJudge", "cost")],
            ("judges.one", "is a cost model"),
        ),
        (
            [*EVALUATE, "--policies.mine={root}/supervised", START],
            ("start", "is a cost model"),
        ),
        (
            ["moderate", "--guard={root}/cost", "--input={world}", "--split=train", "--output=x"],
            ("guard", "is a cost model", "a guard is needed"),
        ),
        (["calibrate", "--guard={root}/supervised", "--data={world}"], ("guard", "is a policy", "a guard is needed")),
        (
            [
                "moderate",
                "--guard={lag}",
                "--split=test",
                "--input={world}",
                "--output=x",
            ],  # its roles stand outside, of no interest here
            ("guard", "is a policy (ConstrainedPolicyModule)", "a guard is needed"),
        ),
        (["filter", "--guard={root}/reward", "--input={world}", "--output=x"], ("guard", "a guard is needed")),
        (
            ["generate", "--policy={root}/cost", "--guard={root}/cost", "--data={world}", "--output=x"],
            ("a guard is needed",),
        ),
    ],
)
def test_a_run_of_another_stage_is_refused_before_anything_is_built(
    args: list[str],
    words: tuple[str, ...],
    policy_stages: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("safe_rlhf_v.models.clip_decoder.ClipDecoder.__init__", lambda *a, **k: pytest.fail("too late"))
    roles = call("safe_rlhf_v.policy.SeparateRoles", start="/gone", reward="/gone", cost="/gone")
    model = call("safe_rlhf_v.policy.ConstrainedPolicyModule", roles=roles)
    lag = copy_run(policy_stages / "supervised", tmp_path / "lag", with_config(at("model", model)))
    line = refused([word.format(root=policy_stages, world=world, lag=lag) for word in args], capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("option", "run", "words"),
    [
        ("roles.init_args.cost", "reward", ("cost", "is a reward model (RewardModule)", "a cost model is needed")),
        ("roles.init_args.reward", "supervised", ("reward", "is a policy")),
        ("roles.init_args.start", "cost", ("start", "is a cost model")),
    ],
)
def test_a_role_of_another_stage_is_refused_before_anything_is_built(
    option: str, run: str, words: tuple[str, ...], policy_stages: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import stage_command

    line = refused(
        stage_command("ppo_lag", world, policy_stages, f"--model.init_args.{option}={policy_stages / run}"), capsys
    )
    assert all(word in line for word in words), line


def test_a_reference_and_a_resumed_run_are_what_they_are_named_for(
    policy_stages: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import stage_command

    reference = f"--model.init_args.reference={policy_stages / 'reward'}"
    line = refused(stage_command("safe_dpo", world, policy_stages, reference), capsys)
    assert "reference" in line and "is a reward model" in line
    line = refused(stage_command("cost", world, policy_stages, f"--ckpt_path={policy_stages / 'reward'}"), capsys)
    assert "is a reward model" in line and "CostModule" in line


def test_load_backbone_wants_a_policy(policy_stages: Path) -> None:
    with pytest.raises(CheckpointError, match="a policy is needed"):
        load_backbone(policy_stages / "cost")
