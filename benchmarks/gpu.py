"""Time and memory of a constrained policy iteration of 7B models on one GPU, by phase, beside what it needs at least.

    python benchmarks/gpu.py --out docs/evidence/gpu.json        # under eight minutes on an H100, no download
    python benchmarks/gpu.py --size tiny --device cpu            # the same path on any machine, seconds

Networks of the published sizes with random weights (bfloat16; adapters float32), ``SharedRoles`` on one base. K = 4 is
constrained GRPO (8 prompts, 4 responses each), K = 1 is PPO-Lagrangian with two critics (32 prompts). Every response has all its
512 tokens: the end token is never drawn. No PTX. A prompt has 272 tokens with Qwen2.5-VL (196 of them the picture's) and
650 with LLaVA-1.5 (576). Each case runs in a process of its own: one short iteration first, then the measured ones.

Necessary work, from which MFU and the floor follow: forward passes 2 operations per weight and token, backward passes 2 (the
gradient of the input; the base is frozen), 4 per weight of an adapter; attention over half of the square, backward counted like
forward (it needs twice as much: 1.5 to 2.5 % of a pass are left out, so MFU is understated); the LM head only where
log-probabilities are needed. Recomputation in the backward pass, padding and masked attention are not necessary work. While
sampling, every token reads the weights and the key-value cache once: the floor is the larger of both times, with the copy and
the matrix product measured on the same card before the first case.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from policy_case import adapters_in_memory
from torch import Tensor

from safe_rlhf_v.dual import FixedDual
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.sampling import SamplingOptions
from safe_rlhf_v.models.tiny import FAMILIES
from safe_rlhf_v.planning.sizes import KNOWN
from safe_rlhf_v.policy import ConstrainedPolicyModule
from safe_rlhf_v.policy.advantages import GAE, GroupRelative
from safe_rlhf_v.policy.roles import Roles
from safe_rlhf_v.policy.settings import KLPenalty, StartSettings, UpdateSettings
from safe_rlhf_v.policy.update import PolicyUpdate
from safe_rlhf_v.records.batches import PolicyBatch, Prompts

NAMES = {"qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct", "llava": "llava-hf/llava-1.5-7b-hf"}
QUESTION = "What does this picture show, is it safe to touch, and who could get hurt?"
GOALS = {1: 0.75, 4: 0.5}
"""GPU-seconds per response, by K."""
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations per second by the makers' data sheets, which MFU refers to; of other cards what was measured."""
LIBRARIES = {"nf4": "bitsandbytes", "torchao_int8": "torchao"}
PATCH = 14
FIRST_TOKENS = 8
"""Of the responses of the first iteration, which is not measured."""


class Case(NamedTuple):
    """One measurement.

    Attributes:
        family: Key of :data:`NAMES`.
        samples: K; 1 is PPO with critics, more is GRPO.
        quantization: Of the base; ``none`` or a value of ``HFVLM(quantization=...)``.
    """

    family: str
    samples: int
    quantization: str = "none"

    @property
    def name(self) -> str:
        stored = "" if self.quantization == "none" else f"_{self.quantization}"
        return f"{self.family}_k{self.samples}{stored}"


CASES = (
    Case("qwen2_5_vl", 4),
    Case("qwen2_5_vl", 1),
    Case("llava", 4),
    Case("llava", 1),
    Case("qwen2_5_vl", 4, "torchao_int8"),
    Case("qwen2_5_vl", 4, "nf4"),
)


class Size(NamedTuple):
    """How large a measurement is.

    Attributes:
        responses: N of an iteration.
        tokens: R of every response.
        micro: Responses per forward and backward pass, by K.
        pixels: Side of the pictures.
        rank: Of the adapters.
        steps: Measured iterations.
    """

    responses: int
    tokens: int
    micro: dict[int, int]
    pixels: int
    rank: int
    steps: int


SIZES = {"full": Size(32, 512, {1: 4, 4: 8}, 392, 64, 1), "tiny": Size(4, 8, {1: 2, 4: 4}, 28, 4, 1)}


def write_shell(case: Case, size: str, folder: Path) -> dict[str, Any]:
    """The processor of a family in ``folder``; returns the config of the network of that size."""
    from transformers import AutoConfig

    from safe_rlhf_v.models.hf_families import image_only_processor, save_processor

    parts = FAMILIES[case.family]()
    if size == "full":
        sizes: dict[str, Any] = json.loads(json.dumps(KNOWN[NAMES[case.family]]))
        kept = {name: value for name, value in parts.config.items() if name.endswith("_token_id")}
        settings = sizes | kept
        vocabulary = settings["text_config"]["vocab_size"]
        if case.family == "llava":
            side = sizes["vision_config"]["image_size"]
            parts.image_processor.size = {"shortest_edge": side}
            parts.image_processor.crop_size = {"height": side, "width": side}
        else:
            parts.image_processor.size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 1280}
    else:
        settings = parts.config
        vocabulary = len(parts.tokenizer)
    ids = {f"{name}_token_id": getattr(parts.tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    settings["text_config"] = settings["text_config"] | {"vocab_size": vocabulary} | ids
    model_type = settings.pop("model_type", case.family)
    settings["tie_word_embeddings"] = False
    config = AutoConfig.for_model(model_type, **settings)
    save_processor(image_only_processor(config, parts.image_processor, parts.tokenizer, parts.processor), folder)
    return {"model_type": model_type, **settings}


class Batches(pl.LightningDataModule):
    """Prompts in memory, with random pictures."""

    def __init__(self, prompts: int, pixels: int, steps: int) -> None:
        super().__init__()
        self.batches = [policy_batch(step, prompts, pixels) for step in range(steps)]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def first_prompts(self, count: int) -> list[PolicyBatch]:
        return [policy_batch(-1, 1, self.batches[0].prompts.images[0][0].shape[0])]

    def labelled(self, count: int) -> None:
        return None


def policy_batch(seed: int, count: int, pixels: int) -> PolicyBatch:
    generator = torch.Generator().manual_seed(seed + 1)
    images = [torch.randint(256, (pixels, pixels, 3), generator=generator, dtype=torch.uint8) for _ in range(count)]
    keys = tuple(f"{seed}-{i}" for i in range(count))
    prompts = Prompts(tuple((image,) for image in images), tuple((key,) for key in keys), (QUESTION,) * count)
    return PolicyBatch(prompts, torch.full((count,), -1), (None,) * count, torch.ones(count, dtype=torch.bool), keys)


def build_module(
    case: Case, size: Size, config: dict[str, Any], folder: Path, device: str, checkpointing: bool
) -> ConstrainedPolicyModule:
    """The module of a case; its network is made on the device, where random weights are quick."""

    def backbone() -> HFVLM:
        weights = {"config": config}
        if case.quantization != "none":
            weights = {"model": str(folder / "network"), "quantization": case.quantization}
        with torch.device(device):
            made = HFVLM(
                **weights,
                processor=str(folder),
                dtype="bfloat16",
                lora=LoraSettings(r=size.rank, alpha=2 * size.rank),
                gradient_checkpointing=checkpointing,
                self_test=False,
            )
        made.banned_ids = (*made.banned_ids, made.eos_id)
        return made

    critics = case.samples == 1
    return ConstrainedPolicyModule(
        backbone,
        adapters_in_memory(),
        partial(FixedDual, budget=0.0, weight=1.0),
        advantages=GAE if critics else partial(GroupRelative, divide=False),
        samples=case.samples,
        sampling=SamplingOptions(max_new_tokens=FIRST_TOKENS),
        kl=KLPenalty(0.02, where="split" if critics else "loss", estimator=None if critics else "k2"),
        update=UpdateSettings(ptx_weight=0.0, micro_batch_size=size.micro[case.samples] // case.samples),
        start=StartSettings(prompts=1, labelled=0),
        optimizer=partial(torch.optim.AdamW, lr=1e-5, fused=True),
    )


def write_network(config: dict[str, Any], folder: Path, device: str) -> None:
    """A network with random weights as a folder: quantisation reads weights from files."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.save_pretrained(folder / "network")


class Phases:
    """Seconds by phase; phases may lie in one another, and the outer one then has only what is left.

    Attributes:
        seconds: By name.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.open: list[float] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self.now()
        self.open.append(0.0)
        try:
            yield
        finally:
            duration = self.now() - start
            self.seconds[name] += duration - self.open.pop()
            if self.open:
                self.open[-1] += duration

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, owner: Any, method: str, name: str | Callable[..., str]) -> None:
        """Count the time of a method."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name(*args)):
                return original(*args, **kwargs)

        setattr(owner, method, timed)


class Work(NamedTuple):
    """What the phases of an iteration need at least.

    Attributes:
        operations: Floating-point operations by phase.
        bytes: Bytes read while sampling.
    """

    operations: dict[str, float]
    bytes: float


def necessary_work(network: HFVLM, case: Case, size: Size, prompt: int) -> Work:
    """Count it from the shapes; ``prompt`` is the number of tokens of a prompt.

    The projections of Q, K, V and O and the feed-forward network are the linear layers of the decoder. Attention of one token
    over s keys costs 4 s d per layer (the product with the keys and that with the values, d numbers each).
    """
    text = network.model.config.get_text_config()
    decoder = network.language_model
    adapters = sum(p.numel() for name, p in decoder.named_parameters() if ".default." in name)
    layers = text.num_hidden_layers
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    linear = linear_weights(text, width)
    vocabulary = text.vocab_size * text.hidden_size
    rows = size.responses // case.samples * (1 if network.packs else case.samples)
    prompt_tokens = rows * prompt
    new = size.responses * size.tokens
    attention = 4 * text.num_attention_heads * width * layers
    of_prompts = attention * rows * prompt**2 / 2
    of_responses = attention * new * (prompt + size.tokens / 2)
    forward = 2 * linear * (prompt_tokens + new) + of_prompts + of_responses
    adapted = 2 * adapters * (prompt_tokens + new)
    head = 2 * vocabulary * new
    pictures = tower_operations(network, size.pixels, size.responses // case.samples)
    operations = {
        "prompts": 2 * (linear + adapters) * prompt_tokens + of_prompts + pictures,
        "decoding": 2 * (linear + adapters + vocabulary) * new + of_responses,
        "reward, cost": 2 * (forward + adapted),
        "reference": forward + head,
        "critics": 2 * (2 * forward + 3 * adapted) if case.samples == 1 else 0.0,
        "actor": 2 * forward + 3 * adapted + 2 * head,
    }
    stored = sum(p.numel() * p.element_size() for name, p in network.named_parameters() if counts(name))
    cache = 2 * 2 * layers * text.num_key_value_heads * width  # bytes per token, bfloat16
    read = size.tokens * (stored + size.responses * (prompt + size.tokens / 2) * cache)
    return Work({name: value for name, value in operations.items() if value}, read)


def linear_weights(text: Any, width: int) -> int:
    """Numbers in the linear layers of the decoder's blocks."""
    hidden = text.hidden_size
    attention = 2 * hidden * width * (text.num_attention_heads + text.num_key_value_heads)
    return text.num_hidden_layers * (attention + 3 * hidden * text.intermediate_size)


def counts(name: str) -> bool:
    """Whether decoding reads that tensor: the actor's network, without tower, embeddings and the other roles' adapters."""
    others = any(f".{role}." in name for role in ("reward", "cost", "reward_critic", "cost_critic"))
    return not is_vision(name) and "embed_tokens" not in name and not others


def tower_operations(network: HFVLM, pixels: int, pictures: int) -> float:
    """Two per weight and patch; the tower runs once per picture."""
    prepared = network.prepare(policy_batch(0, 1, pixels).prompts)
    weights = sum(p.numel() for name, p in network.named_parameters() if is_vision(name))
    values = prepared.images.pixels["pixel_values"]
    # Qwen's processor gives one row per patch; the others give (1, 3, height, width).
    patches = values.shape[0] if values.dim() == 2 else values.numel() / 3 / PATCH**2
    return 2.0 * weights * patches * pictures


def is_vision(name: str) -> bool:
    return "visual" in name or "vision" in name


def measure(
    case: Case, size: Size, config: dict[str, Any], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds by phase of the iterations after a first, short one; memory; necessary work."""
    device = options.device
    devices = options.devices
    module = build_module(case, size, config, folder, device, options.checkpointing)
    phases = Phases(torch.device(device))
    watch(module, phases)
    meter = Meter(phases, size)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed",
        max_steps=size.steps + 1,
        max_epochs=-1,
        callbacks=[meter],
        use_distributed_sampler=False,
        **quiet,
    )
    trainer.fit(module, Batches(size.responses // case.samples, size.pixels, size.steps + 1))
    prompt = len(module.backbone.prepare_prompts(policy_batch(0, 1, size.pixels).prompts)[0].ids[0])
    work = necessary_work(module.backbone, case, size, prompt)
    return {
        "prompt_tokens": prompt,
        "responses": size.responses,
        "response_tokens": size.tokens,
        "responses_per_pass": size.micro[case.samples],
        "gradient_checkpointing": options.checkpointing,
        "devices": devices,
        "seconds": {name: round(value / size.steps, 3) for name, value in phases.seconds.items()},
        "peak_gib": meter.peak,
        "after_loading_gib": meter.loaded,
        "milliseconds_per_token": {
            "graphs": round(1000 * phases.seconds["decoding"] / size.steps / size.tokens, 2),
            "no_graphs": meter.without_graphs,
        },
        "operations": work.operations,
        "bytes_while_sampling": work.bytes,
    }


class Meter(pl.Callback):
    """Makes the first iteration short, and looks at time and memory of the others."""

    def __init__(self, phases: Phases, size: Size) -> None:
        self.phases = phases
        self.size = size
        self.loaded: float | None = None
        self.peak: float | None = None
        self.without_graphs = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.loaded = memory("memory_allocated")
        if batch_idx == 1:
            module.sampling = SamplingOptions(max_new_tokens=self.size.tokens)
            self.batch = batch
            self.phases.seconds.clear()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.peak = memory("max_memory_allocated")
        seconds = self.phases.seconds
        self.phases.seconds = defaultdict(float)
        few = min(24, self.size.tokens)
        module.sampling = SamplingOptions(max_new_tokens=few, cuda_graphs=False)
        with trainer.precision_plugin.train_step_context(), torch.no_grad():
            module.sample(
                module.transfer_batch_to_device(self.batch, module.device, 0), torch.Generator(), module.samples
            )
        self.without_graphs = round(1000 * self.phases.seconds["decoding"] / few, 2)
        self.phases.seconds = seconds


def memory(kind: str) -> float | None:
    """GiB of the first card; nothing on a CPU."""
    return round(getattr(torch.cuda, kind)() / 2**30, 2) if torch.cuda.is_available() else None


def watch(module: ConstrainedPolicyModule, phases: Phases) -> None:
    """Name the phases of an iteration."""
    from safe_rlhf_v.models import sampling
    from safe_rlhf_v.policy import samplers
    from safe_rlhf_v.policy.update import OptimizerSteps

    phases.watch(module, "training_step", "other")
    phases.watch(samplers, "generate", "decoding")
    phases.watch(sampling._Running, "__init__", "prompts")
    phases.watch(HFVLM, "encode_images", "prompts")
    phases.watch(PolicyUpdate, "_learn_values", "critics")
    phases.watch(PolicyUpdate, "_learn_policy", "actor")
    phases.watch(OptimizerSteps, "step", "optimizer")
    phases.watch(Roles, "score", "reward, cost")
    phases.watch(Roles, "log_probs", lambda roles, role, _: "actor" if role == "actor" else "reference")


def ceilings(device: str) -> dict[str, float]:
    """What the card does at best: a matrix product in bfloat16 (operations/s) and a copy (bytes read and written/s)."""
    side = 8192 if device == "cuda" else 256
    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    into = torch.empty_like(left)
    block = torch.randn(2**28 if device == "cuda" else 2**16, device=device)
    target = torch.empty_like(block)
    return {
        "operations_per_second": 2 * side**3 / median_seconds(lambda: torch.mm(left, right, out=into), device),
        "bytes_per_second": 2 * block.numel() * 4 / median_seconds(lambda: target.copy_(block), device),
    }


def median_seconds(call: Callable[[], object], device: str, repeats: int = 20) -> float:
    phases = Phases(torch.device(device))
    for _ in range(3):
        call()
    durations = []
    for _ in range(repeats):
        start = phases.now()
        call()
        durations.append(phases.now() - start)
    return statistics.median(durations)


def attention_kinds(size: Size, device: str) -> dict[str, float]:
    """Milliseconds, forward and backward, of one layer's attention at the shapes of Qwen2.5-VL-7B, two prompts with K = 4.

    ``masked`` is what runs: a mask over the packed row. ``rows`` puts every response into a row of its own, with the prompt
    repeated, where no mask is needed. ``blocks`` is FlexAttention, which skips blocks that the mask empties.
    """
    heads, key_heads, width, prompt, samples, prompts = 28, 4, 128, 240, 4, 2
    if device != "cuda":
        heads, key_heads, width, prompt = 4, 2, 8, 16
    length = prompt + samples * size.tokens
    segment = torch.cat([torch.zeros(prompt), torch.arange(1, samples + 1).repeat_interleave(size.tokens)]).to(device)
    make = partial(torch.randn, device=device, dtype=torch.bfloat16, requires_grad=True)
    q, k, v = (make(prompts, h, length, width) for h in (heads, key_heads, key_heads))
    one = [make(prompts * samples, h, prompt + size.tokens, width) for h in (heads, key_heads, key_heads)]
    order = torch.arange(length, device=device)
    same = (segment[:, None] == segment) | (segment == 0)
    mask = (same & (order[:, None] >= order))[None, None]
    groups = heads // key_heads

    def masked() -> Tensor:
        keys, values = (x.repeat_interleave(groups, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    def rows() -> Tensor:
        keys, values = (x.repeat_interleave(groups, 1) for x in one[1:])
        return F.scaled_dot_product_attention(one[0], keys, values, is_causal=True)

    kinds = {"masked": masked, "rows": rows}
    if device == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return ((segment[i] == segment[j]) | (segment[j] == 0)) & (i >= j)

        blocks = create_block_mask(seen, None, None, length, length, device=device)
        compiled: Any = torch.compile(flex_attention)
        kinds["blocks"] = lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=True)
    found = {}
    for name, kind in kinds.items():

        def both(kind: Callable[[], Tensor] = kind) -> None:
            kind().float().sum().backward()

        found[name] = round(1000 * median_seconds(both, device), 3)
    return found


def summary(found: dict[str, Any], limits: dict[str, float], samples: int) -> dict[str, Any]:
    """Rates, floors and shares of one case."""
    seconds = found["seconds"]
    total = sum(seconds.values())
    tokens = found["responses"] * found["response_tokens"]
    floor = {name: value / limits["operations_per_second"] for name, value in found["operations"].items()}
    floor["decoding"] = max(floor["decoding"], found["bytes_while_sampling"] / limits["bytes_per_second"])
    peak = limits["peak_operations_per_second"]
    return {
        "seconds_per_response": round(total * found["devices"] / found["responses"], 3),
        "goal": GOALS[samples],
        "sampled_tokens_per_second": round(tokens / seconds["decoding"]),
        "floor_seconds": {name: round(value, 3) for name, value in floor.items()},
        "floor_seconds_per_response": round(sum(floor.values()) / found["responses"], 3),
        "mfu": {
            name: round(value / peak / seconds[name], 3)
            for name, value in found["operations"].items()
            if seconds.get(name)
        },
    }


def in_a_process(*arguments: object) -> Any:
    """What a fresh interpreter finds; ``None`` if it cannot."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def run_one(name: str, options: argparse.Namespace) -> Any:
    """One measurement in this process."""
    size = SIZES[options.size]
    if name == "ceilings":
        return ceilings(options.device)
    if name == "attention":
        return attention_kinds(size, options.device)
    case = next(case for case in CASES if case.name == name)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_shell(case, options.size, folder)
        if case.quantization != "none":
            write_network(config, folder, options.device)
        return measure(case, size, config, folder, options)


def show(name: str, found: dict[str, Any]) -> None:
    """A few lines for people."""
    print(
        f"{name}: {found['seconds_per_response']} GPU-s per response (goal {found['goal']}, floor "
        f"{found['floor_seconds_per_response']}), {found['sampled_tokens_per_second']} sampled tokens/s, peak "
        f"{found['peak_gib']} GiB"
    )
    for phase, seconds in sorted(found["seconds"].items(), key=lambda item: -item[1]):
        floor = found["floor_seconds"].get(phase)
        share = found["mfu"].get(phase)
        print(f"    {phase:14}{seconds:8.2f} s" + (f"   floor {floor:6.2f} s   MFU {share:.1%}" if share else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="full", help="tiny: small networks of the same families")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--devices", type=int, default=1, help="cards; more than one with DDP")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations: slower, in less memory")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES], help="which of them")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(run_one(options.one, options)))
        return
    where = ("--size", options.size, "--device", options.device)
    limits = in_a_process("--one", "ceilings", *where)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    known = next((value for name, value in PEAKS.items() if name in card), limits["operations_per_second"])
    limits["peak_operations_per_second"] = known
    print(
        f"{card}, torch {torch.__version__}; { ({name: f'{value:.3g}' for name, value in limits.items()}) }", flush=True
    )
    report = {"about": __doc__, "card": card, "torch": torch.__version__, "ceilings": limits, "cases": {}}
    report["attention_ms"] = in_a_process("--one", "attention", *where)
    print("one layer's attention, ms:", report["attention_ms"], flush=True)
    failed = False
    for case in CASES:
        if case.name not in options.cases:
            continue
        if case.quantization != "none" and find_spec(LIBRARIES[case.quantization]) is None:
            print(f"{case.name}: {LIBRARIES[case.quantization]} is not installed, left out")
            continue
        start = time.monotonic()
        recompute = ["--checkpointing"] if options.checkpointing else []
        found = in_a_process("--one", case.name, *where, "--devices", options.devices, *recompute)
        if found is None:
            print(f"{case.name}: could not run")
            failed = True
            continue
        report["cases"][case.name] = found | summary(found, limits, case.samples)
        show(case.name, report["cases"][case.name])
        print(f"    ({time.monotonic() - start:.0f} s with loading)", flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
