"""Short runs of a policy on the tiny world."""

from tests.conftest import stage_command

from safe_rlhf_v.commands.fit import main

TINY = (
    "--model.init_args.start.prompts=8",
    "--model.init_args.start.min_sign_accuracy=0",
    "--model.init_args.sampling.max_new_tokens=8",
    "--data.init_args.demonstration_batch_size=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
)


def fit(stages, world, out, *extra, stage="ppo_lag", steps=2):
    """Train below ``out``, starting from the shared stages."""
    save = f"--trainer.logger.init_args.save_dir={out}"
    return main(stage_command(stage, world, stages, save, *TINY, *extra, steps=steps))
