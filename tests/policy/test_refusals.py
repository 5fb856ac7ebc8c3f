"""What cannot work is refused in one line, before training."""

import pytest
from tests.policy.short_runs import fit

REFUSED = {
    "gate": (("--model.init_args.start.min_sign_accuracy=1.01",), "balanced sign accuracy"),
    "signals": (("--model.init_args.advantages=safe_rlhf_v.policy.GroupRelative",), "set it to 'loss'"),
    "budgets": (("--model.init_args.dual.init_args.budget=[-0.5, 0.0]",), "2 budgets"),
    "run": (("--model.init_args.roles.init_args.cost=nowhere",), "nowhere"),
    "twice": (("--model.init_args.constraints={a: [fraud], b: [fraud]}",), "disjoint"),
    "unknown": (("--model.init_args.constraints={a: [frauds]}",), "frauds"),
    "budget": (("--model.init_args.dual.init_args.budget=-9e3",), "dual.budget -9000.00: with scores.clip 1000 "),
    "shaped k3": (("--model.init_args.kl.estimator=k3",), "kl.estimator k3 in token signals"),
    "no group": (
        ("--model.init_args.advantages=safe_rlhf_v.policy.GroupRelative", "--model.init_args.kl.where=loss"),
        "samples is 1, but GroupRelative",
    ),
    "plateau": (
        (
            "--model.init_args.scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.init_args.scheduler.init_args.monitor=validation/cost",
        ),
        "scheduler: ReduceLROnPlateau waits for a metric",
    ),
    "norm": (("--model.init_args.update.max_grad_norm=-1",), "update.max_grad_norm is -1"),
    "clip": (("--model.init_args.scores.clip=0",), "scores.clip is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case, policy_stages, world, tmp_path, capsys):
    extra, message = REFUSED[case]
    with pytest.raises(SystemExit):
        fit(policy_stages, world, tmp_path, *extra)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
