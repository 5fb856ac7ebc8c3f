"""Short runs of a policy on the tiny world."""

import torch
from tests.conftest import stage_command

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.policy.rollout import generator
from safe_rlhf_v.policy.settings import UpdateSettings

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


def prepared(module, batch, samples=1, settings=None):
    """Rollout, scores, signals and multipliers of a batch."""
    rollout = module.sample(batch, generator(1, 2), samples, settings or UpdateSettings())
    scores = module.score(rollout)
    return rollout, scores, module.shape(rollout, scores), torch.full((len(rollout.valid), 1), 0.7)


def gradients(module, rollout, scores, signals, lam, batch, settings):
    """Gradients of every optimizer step, and what was seen."""
    kept, steps = module.update_settings, []
    module.update_settings = settings
    optimizer = module.optimizers()
    module.trainer.strategy._lightning_optimizers[0].step = lambda: steps.append(
        {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}
    )
    try:
        learned = module.update(rollout, scores, signals, lam, batch)
    finally:
        del optimizer.step
        module.update_settings = kept
    return steps, learned
