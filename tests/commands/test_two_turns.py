"""Two-turn records with a picture in each turn train and score every stage, on a tiny model of every family."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.records import Turn
from safe_rlhf_v.shards import ShardedSplit, ShardWriter
from safe_rlhf_v.world import WORLD

CONFIGS = Path(__file__).parents[2] / "configs"
CHEAPEST = "llava"


@pytest.fixture(scope="module")
def talks(world, tmp_path_factory):
    """The world's records behind an earlier exchange about the picture of another record."""
    root = tmp_path_factory.mktemp("talks") / "shards"
    with ShardWriter(root, name="talks", licence="CC0-1.0", taxonomy=WORLD) as writer:
        for name, count in (("train", 8), ("validation", 4)):
            split = ShardedSplit(world, name)
            for i in range(count):
                record, other = split[i], split[count + i]
                history = (Turn("user", other.question, 1), Turn("assistant", other.responses[0].text))
                pictures = (*other.images, *record.images)
                writer.write(name, replace(record, images=pictures, system="Mind the hazards.", history=history))
    return root


def fit(stage, model, talks, out, *extra):
    options = [
        f"--config={CONFIGS / 'llava_1_5_7b' / f'{stage}.yaml'}",
        f"--config={CONFIGS / 'trainer' / 'cpu.yaml'}",
        f"--data.init_args.path={talks}",
        "--data.init_args.test_splits=[]",
        "--data.init_args.batch_size=2",
        "--data.init_args.eval_batch_size=2",
        "--data.init_args.num_workers=0",
        f"--model.init_args.backbone.init_args.model={model}",
        "--model.init_args.backbone.init_args.revision=null",
        f"--trainer.default_root_dir={out / stage}",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.logger=false",
        "--trainer.callbacks=null",
        f"--trainer.enable_checkpointing={str(stage in ('reward', 'cost')).lower()}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    if stage == "supervised":
        options.append("--data.init_args.demonstrations_from=helpful")
    if stage == "guard":
        options.append(f"--model.init_args.categories=[{','.join(WORLD.categories)}]")
    cli = main(["fit", *options, *extra])
    assert cli.trainer.global_step == 2
    assert all(value.isfinite() for name, value in cli.trainer.callback_metrics.items() if "loss" in name)
    return cli


def reads_earlier_turns(cli, score):
    """Whether the scores of a batch change with its earlier turns."""
    batch = next(iter(cli.trainer.datamodule.val_dataloader()[0]))
    assert all(len(context.history) == 2 for context in batch.prompts.contexts)
    forgetful = tuple(context._replace(history=(), system="") for context in batch.prompts.contexts)
    model = cli.model.eval()
    with torch.no_grad():
        scores = [score(model, p, batch.responses) for p in (batch.prompts, batch.prompts._replace(contexts=forgetful))]
    return not torch.allclose(*scores, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f == CHEAPEST else pytest.mark.slow) for f in FAMILIES])
def test_every_stage_trains_and_scores_conversations(family, talks, tmp_path):
    model = write_tiny_vlm(family, tmp_path / "vlm")
    fit("supervised", model, talks, tmp_path)
    for stage in ("reward", "cost"):
        assert reads_earlier_turns(fit(stage, model, talks, tmp_path), lambda m, p, r: m.score(p, r))
    assert reads_earlier_turns(fit("guard", model, talks, tmp_path), lambda m, p, r: m(p, r).level_log_probs)
    roles = [f"--model.init_args.roles.init_args.{stage}={tmp_path / stage}" for stage in ("reward", "cost")]
    short = ["sampling.max_new_tokens=4", "start.prompts=2", "start.labelled=4", "start.min_sign_accuracy=0.0",
             "scores.clip=1000.0"]  # fmt: skip
    cli = fit("ppo_lag", model, talks, tmp_path, *roles, *(f"--model.init_args.{option}" for option in short))
    assert {"validation/cost", "constraint/cost", "policy/loss"} <= set(cli.trainer.callback_metrics)
