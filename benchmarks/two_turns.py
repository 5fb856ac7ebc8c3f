"""Does it pay to read the history? Cost models on the two-turn world that do, and that see the last turn only; one JSON file.

    python benchmarks/two_turns.py --root runs/two_turns --out docs/evidence/two_turns.json

Both kinds have the same weights at the start, data, order and number of steps: a supervised stage, then the cost model. Seeds
vary world, weights and order. The networks are far smaller than the quickstart's, so that a run takes about a CPU minute: the
vision tower has random weights that are not trained, and what such a model knows of the picture it has from the responses'
texts. Of the twins over histories a model that sees the last turn only ranks exactly half right, without any run. Finished runs
are kept in ``--root`` and not repeated.
"""

import argparse
import json
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from evidence import summary

from safe_rlhf_v.commands.tokenizer import write_tokenizer
from safe_rlhf_v.data_modules import PreferenceDataModule, SupervisedDataModule
from safe_rlhf_v.models import ClipDecoder, EvidenceHead
from safe_rlhf_v.models.tower import SlotSettings, TowerSettings
from safe_rlhf_v.modules import CostModule, SupervisedModule
from safe_rlhf_v.objectives import CostObjective, OrdinalTerm, SignTerm
from safe_rlhf_v.records import Context
from safe_rlhf_v.training import WarmupCosine
from safe_rlhf_v.world import SIZES, write_world

SPLITS = ("test", "counterfactual_history")
MEASURES = ("true_accuracy", "true_sign_accuracy", "balanced_true_sign_accuracy", "true_auroc")
WIDTH = 64


class LastTurn:
    """Of every prompt the last turn and the pictures alone."""

    def admit(self, batch: Any, prepare: Any) -> Any:
        contexts = (Context(),) * len(batch.keys)
        batch = batch._replace(prompts=batch.prompts._replace(contexts=contexts))
        return super().admit(batch, prepare)  # type: ignore[misc]


class LastTurnSupervised(LastTurn, SupervisedModule):
    """Learns to answer the last turn."""


class LastTurnCost(LastTurn, CostModule):
    """Scores responses to the last turn."""


KINDS = {"history": (SupervisedModule, CostModule), "last_turn": (LastTurnSupervised, LastTurnCost)}


def data_of(root: Path, seed: int, pairs: int, heldout: int) -> Path:
    """The two-turn world of a seed, with its tokenizer."""
    folder = root / f"world-{seed}"
    if not (folder / "tokenizer").exists():
        sizes = dict.fromkeys(SIZES, 2) | {"supervised": pairs, "train": pairs} | dict.fromkeys(SPLITS, heldout)
        write_world(folder, seed=seed, sizes=sizes, two_turns=True, progress=False)
        write_tokenizer(str(folder), str(folder / "tokenizer"))
    return folder


def backbone(tokenizer: str, seed: int) -> ClipDecoder:
    torch.manual_seed(seed)
    decoder = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.07,
    }  # fmt: skip
    tower = TowerSettings(vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    return ClipDecoder(tokenizer, tower, decoder, SlotSettings(2, 32), projector_layers=1, feature_cache=50_000)


def run(folder: Path, kind: str, seed: int, steps: tuple[int, int]) -> dict[str, float]:
    """Train both stages of a kind; held-out values of the cost model."""
    make_supervised, make_cost = KINDS[kind]
    network = partial(backbone, str(folder / "tokenizer"), seed)
    learner = {
        "optimizer": partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.98)),
        "scheduler": partial(WarmupCosine, warmup=0.1),
    }
    images = {"batch_size": 32, "eval_batch_size": 100, "seed": seed}
    supervised = make_supervised(network, **learner)
    fit(supervised, SupervisedDataModule(str(folder), train_split="supervised", **images), steps[0])
    cost = make_cost(
        network,
        lambda: CostObjective([SignTerm(), OrdinalTerm()], tie_smoothing=0.5),
        partial(EvidenceHead, fusion=64),
        grounding=False,
        init_from=supervised,
        **learner,
    )
    data = PreferenceDataModule(str(folder), validation_splits=SPLITS[:1], test_splits=SPLITS, **images)
    trainer = fit(cost, data, steps[1])
    tested = {name: value for row in trainer.test(cost, data, verbose=False) for name, value in row.items()}
    return {name: value for name, value in sorted(tested.items()) if name.rpartition("/")[2] in MEASURES}


def fit(module: pl.LightningModule, data: pl.LightningDataModule, steps: int) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, limit_val_batches=0, gradient_clip_val=1.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer


def table(results: dict[str, list[dict[str, float]]]) -> Iterable[str]:
    for name in next(iter(results.values()))[0]:
        rows = {kind: [seed[name] for seed in seeds] for kind, seeds in results.items()}
        yield f"{name:<50}" + "   ".join(f"{kind} {[round(x, 3) for x in values]}" for kind, values in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("runs/two_turns"))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/two_turns.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=2400, help="training pairs, and as many demonstrations")
    parser.add_argument("--heldout", type=int, default=300, help="records of each held-out split")
    parser.add_argument("--steps", type=int, nargs=2, default=[150, 200], help="of both stages, 32 records each")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    for seed in options.seeds:
        folder = data_of(options.root, seed, options.pairs, options.heldout)
        for kind in options.kinds:
            note = (
                options.root
                / f"{kind}-{seed}-{options.pairs}-{options.heldout}-{'-'.join(map(str, options.steps))}.json"
            )
            if not note.exists():
                note.write_text(json.dumps(run(folder, kind, seed, tuple(options.steps)), indent=1) + "\n")
            results[kind].append(json.loads(note.read_text()))
            print(f"seed {seed} {kind}: {results[kind][-1]} ({time.process_time():.0f} CPU seconds so far)", flush=True)
    about = {
        "what": "cost models on held-out records of the two-turn world (synthetic data); seeds vary world, weights and order",
        "seeds": options.seeds,
        "pairs": options.pairs,
        "steps": options.steps,
        "last_turn_on_twins": "0.5 by construction: it gives both records of two twins the same scores",
    }
    runs = {
        kind: {name: summary([seed[name] for seed in seeds]) for name in seeds[0]} for kind, seeds in results.items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
