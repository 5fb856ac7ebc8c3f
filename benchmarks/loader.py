"""Reading speed of the data loader beside bare Pillow decoding, on synthetic JPEGs, in one run.

    python benchmarks/loader.py [--samples 256] [--side 336] [--batch 32] [--workers 0 1 2] [--pillow-only] [--out FILE]

Bare decoding (``np.asarray(Image.open(...).convert("RGB"))`` of bytes in memory, one thread) is 1. In every round each case runs
once after the other, so that a busy machine disturbs all alike; a ratio is the median over the rounds of the ratios within a
round. The ratio of processor time (all processes and threads) is steadier than that of the clock, and says what a sample costs.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from safe_rlhf_v.data_modules.collate import CollatePreference
from safe_rlhf_v.data_modules.loader import THREADS, PlannedLoader
from safe_rlhf_v.data_modules.plan import Plan
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardedSplit, ShardWriter, decode, images, probe


def photo(number: int, side: int) -> bytes:
    """A JPEG with smooth areas and texture, so that it decodes at a photograph's cost."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, dtype=np.int16) + random.integers(-12, 13, (side, side, 3), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(root: Path, photos: list[bytes]) -> None:
    """One preference record a picture."""
    taxonomy = Taxonomy("none", ())
    with ShardWriter(root, name="benchmark", licence="CC0-1.0", taxonomy=taxonomy) as writer:
        for number, data in enumerate(photos):
            responses = tuple(Response(f"response {k} " * 20, k, bool(k)) for k in range(2))
            writer.write("train", Record(f"r{number:06d}", "what is this?", (probe(data),), responses, more_helpful=0))


class Round(NamedTuple):
    """Seconds per sample."""

    clock: float
    processor: float


def processor_seconds() -> float:
    """Of this process and of the workers that are alive."""
    seconds = time.process_time()
    ticks = os.sysconf("SC_CLK_TCK")
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def measure(cases: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[Round]]:
    """The rounds of each case; a case gives the number of its samples."""
    results: dict[str, list[Round]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start, used = time.perf_counter(), processor_seconds()
            samples = case()
            results[name].append(Round((time.perf_counter() - start) / samples, (processor_seconds() - used) / samples))
    return results


def summary(results: list[Round], bare: list[Round]) -> dict[str, float | list[float]]:
    """Median rate and ratios to bare decoding, with the range of the ratios."""
    clock = [one.clock / own.clock for own, one in zip(results, bare, strict=True)]
    processor = [one.processor / own.processor for own, one in zip(results, bare, strict=True)]
    return {
        "samples_per_second": round(1 / statistics.median(own.clock for own in results), 1),
        "ratio": round(statistics.median(clock), 3),
        "ratio_range": [round(min(clock), 3), round(max(clock), 3)],
        "ratio_of_processor_time": round(statistics.median(processor), 3),
    }


def loading(source: Source, batch: int, workers: int, threads: int) -> Callable[[], int]:
    """One pass of a loader; its workers are persistent, so that a pass is measured and not the start of processes."""
    loader = PlannedLoader(
        source,
        Plan(len(source.rows), batch, seed=0),
        workers=workers,
        persistent=True,
        start_method="fork",
        threads=threads,
    )

    def case() -> int:
        return sum(len(loaded.keys) for loaded in loader)

    case()
    return case


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--side", type=int, default=336)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pillow-only", action="store_true", help="as without the package simplejpeg")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.pillow_only:
        images.simplejpeg = None
    photos = [photo(number, options.side) for number in range(options.samples)]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "data", photos)
        split = ShardedSplit(Path(folder) / "data", "train")
        source = Source(split, range(len(split)), CollatePreference(split.manifest.taxonomy, 2))

        def bare() -> int:
            return sum(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).ndim > 0 for data in photos)

        def own() -> int:
            return sum(decode(data).ndim > 0 for data in photos)

        def read() -> int:
            return sum(bool(split[row].key) for row in range(len(split)))

        cases = {"bare Pillow decode": bare, "decode() alone": own, "read and validate, no decode": read}
        for workers in options.workers:
            if workers == 0:
                cases["loader, no worker, one thread"] = loading(source, options.batch, 0, 1)
            else:
                cases[f"loader, {workers} worker(s)"] = loading(source, options.batch, workers, 1)
        if 0 in options.workers and THREADS > 1:
            cases[f"loader, no worker, {THREADS} threads (default)"] = loading(source, options.batch, 0, THREADS)
        load = [os.getloadavg()[0]]
        results = measure(cases, options.rounds)
        load.append(os.getloadavg()[0])
    about = {
        "what": "samples per second of reading, checking, decoding and collating; synthetic JPEGs; 1 is bare Pillow decoding",
        "samples": options.samples,
        "side": options.side,
        "kilobytes_per_picture": round(sum(map(len, photos)) / len(photos) / 1000, 1),
        "batch": options.batch,
        "rounds": options.rounds,
        "processors": os.cpu_count(),
        "simplejpeg": getattr(images.simplejpeg, "__version__", None),
        "load_before_and_after": [round(value, 2) for value in load],
    }
    rows = {name: summary(rounds, results["bare Pillow decode"]) for name, rounds in results.items()}
    print(json.dumps(about))
    print(f"{'':44}{'samples/s':>10}{'ratio':>8}{'range':>16}{'processor':>11}")
    for name, row in rows.items():
        low, high = row["ratio_range"]
        print(
            f"{name:44}{row['samples_per_second']:10.0f}{row['ratio']:8.2f}{f'{low:.2f} to {high:.2f}':>16}"
            f"{row['ratio_of_processor_time']:11.2f}"
        )
    if options.out:
        options.out.write_text(json.dumps({"about": about, "cases": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
