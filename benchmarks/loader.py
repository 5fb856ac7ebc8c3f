"""Throughput of the data loader as a ratio to bare Pillow decoding, on synthetic JPEGs, in one run.

    python benchmarks/loader.py [--samples 256] [--side 336] [--batch 32] [--workers 0 1 2]

Bare decoding (``Image.open(...).convert("RGB")`` of bytes in memory) is the floor: everything else a loader does is overhead.
Every figure is the best of several rounds, the rounds interleaved, so that a busy machine disturbs all alike.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from safe_rlhf_v.data_modules.collate import CollatePreference
from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import Plan
from safe_rlhf_v.data_modules.source import Source
from safe_rlhf_v.records import Record, Response
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import ShardedSplit, ShardWriter, decode, probe


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


def best(cases: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of each case: the best of the rounds."""
    seconds = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main(argv: list[str]) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--side", type=int, default=336)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args(argv)
    photos = [photo(number, options.side) for number in range(options.samples)]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "data", photos)
        split = ShardedSplit(Path(folder) / "data", "train")
        source = Source(split, range(len(split)), CollatePreference(split.manifest.taxonomy, 2))

        def bare() -> None:
            for data in photos:
                np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

        def own() -> None:
            for data in photos:
                decode(data, max_pixels=25_000_000)

        def read() -> None:
            for row in range(len(split)):
                split[row]

        def loader(workers: int) -> Callable[[], None]:
            # Persistent workers: a pass is measured, not the start of processes.
            loading = PlannedLoader(
                source, Plan(len(split), options.batch, seed=0), workers=workers, persistent=True, start_method="fork"
            )

            def case() -> None:
                for _ in loading:
                    pass

            case()
            return case

        cases = {"bare Pillow decode": bare, "decode() alone": own, "read and validate, no decode": read}
        cases |= {f"PlannedLoader, {workers} workers": loader(workers) for workers in options.workers}
        seconds = best(cases, options.rounds)
    size = sum(map(len, photos)) / len(photos) / 1000
    print(f"{options.samples} JPEGs of {options.side} x {options.side} px, {size:.0f} kB each, batch {options.batch}")
    print(f"{'':32}{'samples/s':>10}{'ratio to bare decode':>22}")
    for name, value in seconds.items():
        # A loader drops the tail of an epoch.
        count = options.samples if "Loader" not in name else options.samples // options.batch * options.batch
        rate = count / value
        print(f"{name:32}{rate:10.0f}{rate * seconds['bare Pillow decode'] / options.samples:22.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
