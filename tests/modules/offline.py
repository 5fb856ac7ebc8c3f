"""Offline policies on the tiny world, built and trained for tests."""

from functools import partial

import lightning.pytorch as pl
import torch

from safe_rlhf_v.data_modules import PreferenceDataModule
from safe_rlhf_v.modules import PreferenceOptimisationModule, SupervisedModule
from safe_rlhf_v.objectives import DPO

DECODER = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def sgd(groups):
    return torch.optim.Adam(groups, lr=3e-3)


def build(backbone, objective=DPO, **options):
    module = PreferenceOptimisationModule(backbone, objective, optimizer=sgd, **options)
    module.configure_model()
    return module


def disturb(network, scale=0.05):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def train(module, world, file, steps, resume=None, data=None):
    quiet = {k: False for k in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, limit_val_batches=0, **quiet)
    trainer.fit(module, data or PreferenceDataModule(str(world), batch_size=6), ckpt_path=resume)
    trainer.save_checkpoint(file)
    return torch.load(file, weights_only=True)


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(backbone, folder):
    """A module that starts from a supervised run, written once."""
    if not (folder / "supervised").is_dir():
        module = SupervisedModule(partial(backbone, seed=3), optimizer=sgd)
        save(module, folder / "supervised" / "x.ckpt")
    module = PreferenceOptimisationModule(backbone, DPO, optimizer=sgd, init_from=str(folder / "supervised"))
    module.configure_model()
    return module


def save(module, file):
    """A checkpoint of a module that was built but not trained."""
    module.configure_model()
    disturb(module.backbone, 0.01)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    module.trainer = trainer
    file.parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(file)
