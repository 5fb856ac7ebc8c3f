"""CPU time and memory of one policy iteration, against the released sequence of passes in the same run.

    python benchmarks/policy_step.py --out docs/evidence/policy_step.json

The network is in ``policy_case.py``: a LLaVA of 10.85 M parameters. Eight responses per step, questions of 16-40 words, 64
sampled tokens each (the end token is never drawn), one update per rollout, Adam (fused), no PTX. The released sequence
is that of ``released_sequence.py``; ``separate`` has the same six networks and the same mathematics, which ``agreement`` checks
on gradients; ``shared`` is one frozen network with adapters. K = 4 means 2 prompts with 4 responses each; ``parts`` learns from
one prompt after the other (``update.micro_batch_size: 1``).

One thread. Every variant runs in fresh processes, variants in turn; a step's time is the median of all steps but the first of
each process. Memory is the peak of a process less that of one that only imports the same modules; "in use" is the same with an
allocator that gives freed blocks back at once. The released sequence gets tensors that are ready; ours also prepares texts and
pictures within the measured time. ``share_of_products`` is the share of a step's time that its matrix products and its attention
take, by torch's profiler: a step of nothing else would be so much shorter, and no way of calling them makes it shorter still.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import lightning.pytorch as pl
import torch
from policy_case import (
    RESPONSES,
    TOKENS,
    Batches,
    InMemoryRoles,
    adapters_in_memory,
    policy_batch,
    policy_module,
    ready,
    released,
    write_model,
)
from released_sequence import with_sequence
from transformers import LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.llama.modeling_llama import LlamaModel

from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.policy import ConstrainedPolicyModule
from safe_rlhf_v.policy.roles import SCORERS

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::mkldnn")
"""Beginnings of the names of matrix products and attention."""
VARIANTS = ("released", "separate_k1", "separate_k4", "shared_k1", "shared_k4", "shared_k4_parts")


class Passes:
    """Counts what runs: pictures encoded, calls of trunks, positions that meet an LM head."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        self.seen: Counter[str] = Counter()
        self.hooks = []
        modules = {id(m): m for network in networks for m in network.modules()}.values()
        for module in modules:
            if isinstance(module, CLIPVisionModel):
                self.watch(module, self.tower)
            if isinstance(module, LlamaModel):
                self.watch(module, self.trunk)
            if isinstance(module, LlavaForConditionalGeneration):
                self.watch(module.lm_head, self.head)

    def watch(self, module: torch.nn.Module, count: Any) -> None:
        self.hooks.append(module.register_forward_hook(count))

    def tower(self, module: Any, args: Any, out: Any) -> None:
        self.seen["tower_calls"] += 1
        self.seen["pictures_encoded"] += len(out.last_hidden_state)

    def trunk(self, module: Any, args: Any, out: Any) -> None:
        step = out.last_hidden_state.shape[1] == 1
        self.seen["decoding_steps" if step else "full_forwards"] += 1

    def head(self, module: Any, args: Any, out: torch.Tensor) -> None:
        self.seen["lm_head_positions"] += out[..., 0].numel()

    def stop(self) -> dict[str, int]:
        for hook in self.hooks:
            hook.remove()
        return dict(self.seen)


class Clock(pl.Callback):
    """CPU seconds of every step; passes of the first; if asked, what the last one's time went into."""

    def __init__(self, profiled: int | None = None) -> None:
        self.seconds: list[float] = []
        self.passes: dict[str, int] = {}
        self.loaded = 0.0
        self.profiled = profiled
        self.share_of_products: float | None = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.loaded, self.counter = resident(), Passes(module)
        if batch_idx == self.profiled:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profiler.start()
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds.append(time.process_time() - self.start)
        if batch_idx == 0:
            self.passes = self.counter.stop()
        if batch_idx == self.profiled:
            self.profiler.stop()
            events = self.profiler.key_averages()
            products = sum(event.self_cpu_time_total for event in events if event.key.startswith(PRODUCTS))
            self.share_of_products = round(products / sum(event.self_cpu_time_total for event in events), 3)


def resident() -> float:
    """MB this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def train(module: ConstrainedPolicyModule, data: Batches, steps: int, *callbacks: pl.Callback) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **quiet)
    trainer.fit(module, data)


def run(variant: str, folder: Path, steps: int, profiled: int | None = None) -> dict[str, Any]:
    """One variant in this process; ``profiled`` is the number of a step whose time is looked into."""
    kind, _, rest = variant.partition("_k")
    samples, _, parts = rest.partition("_")
    clock = Clock(profiled)
    if kind == "released":
        step, owner = released(folder)
        networks = torch.nn.ModuleList([step.actor, step.reference, *step.scorers, *step.critics])
        for i, batch in enumerate([ready(owner, policy_batch(i, RESPONSES)) for i in range(steps)]):
            clock.on_train_batch_start(None, networks, batch, i)
            step.step(batch)
            clock.on_train_batch_end(None, None, None, batch, i)
    else:
        shared = {"roles": adapters_in_memory(), "lora": LoraSettings()} if kind == "shared" else {}
        micro = 1 if parts else None
        module = policy_module(folder, samples=int(samples), micro=micro, **{"roles": InMemoryRoles, **shared})
        train(module, Batches(steps, RESPONSES // int(samples)), steps, clock)
    found = {"seconds": clock.seconds, "peak_mb": peak(), "loaded_mb": clock.loaded, "passes": clock.passes}
    found["share_of_products"] = clock.share_of_products
    return found | {"modules": sorted(sys.modules)}


def peak() -> float:
    """MB this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def only_import(names: Path) -> dict[str, float]:
    """What a process needs that does nothing but import what another one had imported in the end."""
    for name in json.loads(names.read_text()):
        with suppress(Exception):  # some are no modules of their own
            import_module(name)
    return {"peak_mb": peak()}


def agreement(folder: Path) -> dict[str, float]:
    """Largest difference between the released gradients and ours on the same responses, relative to the largest gradient."""
    module, data = policy_module(folder, InMemoryRoles, 1), Batches(1, RESPONSES)
    kept, gradients = [], {}

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            rollout = module.rollout
            module.rollout = lambda batch: kept.append(rollout(batch)) or kept[0]

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            gradients.update({p: p.grad.clone() for p in module.parameters() if p.grad is not None})

    train(module, data, 1, Keep())
    step, owner = released(folder)
    batch = ready(owner, data.batches[0])
    sequence = torch.cat([batch["input_ids"], kept[0].generation.tokens], 1)
    step.update(step.score(with_sequence(batch, sequence, batch["attention_mask"])))
    roles = module.roles
    pairs = {"actor": (step.actor, module.backbone.model)}
    for name, critic in zip(SCORERS, step.critics, strict=True):
        pairs[f"{name}_critic"] = (critic.network, roles.get_submodule(f"{name}_critic").model)
    found = {}
    for name, (theirs, ours) in pairs.items():
        ours = dict(ours.named_parameters())
        grads = [(p.grad, gradients[ours[n]]) for n, p in theirs.named_parameters() if p.grad is not None]
        found[name] = max(float((a - b).abs().max()) for a, b in grads) / max(float(a.abs().max()) for a, _ in grads)
    return found


def in_a_process(*arguments: object, **environment: str) -> Any:
    """What a fresh interpreter finds; ``None`` if it cannot."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def measure(folder: Path, variants: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Every variant in turn, several times; then its memory."""
    runs: dict[str, list[Any]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in variants:
            found = in_a_process("--one", name, "--folder", folder, "--steps", steps)
            if found is not None:
                runs[name].append(found)
                print(f"round {number}  {name:14}" + "  ".join(f"{s:.2f}" for s in found["seconds"]), flush=True)
    report: dict[str, Any] = {}
    for name, found in runs.items():
        if not found:
            print(f"{name}: could not run, left out")
            continue
        names = folder.with_name("modules.json")
        names.write_text(json.dumps(found[0]["modules"]))
        base = in_a_process("--one", "import", "--folder", names)["peak_mb"]
        # From this size on, glibc gives freed blocks back at once: what is left is what was really in use.
        live = in_a_process("--one", name, "--folder", folder, "--steps", 2, MALLOC_MMAP_THRESHOLD_="262144")
        looked_into = in_a_process("--one", name, "--folder", folder, "--steps", 3, "--profiled", 2)
        seconds = [value for one in found for value in one["seconds"][1:]]
        report[name] = {
            "cpu_seconds": round(statistics.median(seconds), 3),
            "cpu_seconds_range": [round(min(seconds), 3), round(max(seconds), 3)],
            "import_mb": round(base),
            "loaded_mb": round(statistics.median(one["loaded_mb"] for one in found) - base),
            "peak_mb": round(statistics.median(one["peak_mb"] for one in found) - base),
            "live_mb": round(live["peak_mb"] - base),
            "share_of_products": looked_into["share_of_products"],
            "passes": found[0]["passes"],
        }
    for mine in report.values():
        theirs = report["released"]
        mine["times_faster"] = round(theirs["cpu_seconds"] / mine["cpu_seconds"], 2)
        mine["share_of_peak"] = round(mine["peak_mb"] / theirs["peak_mb"], 2)
        mine["share_of_live"] = round(mine["live_mb"] / theirs["live_mb"], 2)
    return report


def show(report: dict[str, Any]) -> None:
    print(f"\n{RESPONSES} responses of {TOKENS} tokens; memory in MB above a process that only imports")
    titles = ("CPU s", "(range)", "faster", "peak", "share", "in use", "share", "products")
    print(
        f"{'':14}" + "".join(f"{title:>{12 if title == '(range)' else 8}}" for title in titles) + "  passes of a step"
    )
    for name, r in report.items():
        spread = f"{r['cpu_seconds_range'][0]:.2f}-{r['cpu_seconds_range'][1]:.2f}"
        print(
            f"{name:14}{r['cpu_seconds']:8.2f}{spread:>12}{r['times_faster']:8.2f}{r['peak_mb']:8}{r['share_of_peak']:8.2f}"
            f"{r['live_mb']:8}{r['share_of_live']:8.2f}{r['share_of_products']:10.0%}  {r['passes']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="per process, the first one dropped")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="released is always measured")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--profiled", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        warnings.simplefilter("ignore")
        known = {"agreement": agreement, "import": only_import}
        call = known.get(options.one) or partial(run, options.one, steps=options.steps, profiled=options.profiled)
        print(json.dumps(call(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(folder)
        report = measure(folder, list(dict.fromkeys(["released", *options.variants])), options.steps, options.rounds)
        same = in_a_process("--one", "agreement", "--folder", folder)
    show(report)
    print("largest difference of gradients between released and separate_k1, relative:", same)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"about": __doc__, "parameters": 10_854_144, "gradient_difference": same, "variants": report}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
