"""How fast, and in how much memory, a large data set is imported: made-up Parquet files in the form of BeaverTails-V.

Writes the files into a temporary folder and measures in one run, each in a process of its own:

* ``bare``: read the Parquet files with pyarrow, and write the same bytes to tar files;
* ``decode``: read them, decode every picture with Pillow in as many threads as there are cores, and hash its pixels: what any
  import with ids of pixels has to do;
* ``import``: ``shards import``, without interruption;
* ``killed`` and ``resumed``: the same, killed by SIGKILL after half of the time, and run again; all files must be equal.

    python benchmarks/import_speed.py --rows 2000 --repeats 3
    python benchmarks/import_speed.py --rows 30000 --kill_after 120     # 3 GB; memory, and one kill; no comparison

Pictures are smooth noise with grain of 512 x 384 pixels, as JPEG of quality 92: about 94 kB. Memory is the peak of resident pages
(``ru_maxrss``); ``nothing`` only imports the same packages.
"""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (512, 384)
TEXT = " ".join(["word"] * 200)


def write(folder: Path, rows: int) -> int:
    """Parquet files as the Hub lays them out; gives their bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from safe_rlhf_v.records.taxonomy import BEAVERTAILS_V_CATEGORIES

    rng = np.random.default_rng(0)
    bases = [_photo(rng) for _ in range(64)]
    number = 0
    for category in BEAVERTAILS_V_CATEGORIES:
        for split, share in (("train", 0.98), ("evaluation", 0.02)):
            path = folder / "data" / category / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = None
            left = max(1, round(rows / len(BEAVERTAILS_V_CATEGORIES) * share))
            while left:
                batch = []
                for _ in range(min(left, 100)):
                    pixels = np.roll(bases[number % len(bases)], rng.integers(0, SIZE[1], 2), (0, 1))
                    pixels[:8, :8] = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)  # no two are equal
                    buffer = io.BytesIO()
                    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
                    batch.append(_row(number, category, buffer.getvalue()))
                    number += 1
                left -= len(batch)
                table = pa.Table.from_pylist(batch)
                writer = writer or pq.ParquetWriter(path, table.schema)
                writer.write_table(table)
            writer.close()
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def _photo(rng: np.random.Generator) -> Any:
    """Pixels with smooth areas and grain."""
    from PIL import Image

    low = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 14, (*SIZE[::-1], 3))
    return np.clip(np.asarray(low) + grain, 0, 255).astype(np.uint8)


def _row(number: int, category: str, data: bytes) -> dict[str, Any]:
    safer = number % 2
    return {
        "question": f"question {number} ?", "image": {"bytes": data, "path": f"{number}.jpg"}, "category": category,
        "image_severity": number % 4, "response_1": f"{number} {TEXT}", "response_2": f"{TEXT} {number}",
        "response_1_from": "a", "response_2_from": "b", "more_helpful_response_id": str(1 + number % 2),
        "is_response_1_safe": "no" if safer else "yes", "is_response_2_safe": "yes" if safer else "no",
        "safer_response_id": str(1 + safer), "response_1_harmless_rate": -2 if safer else 1,
        "response_2_harmless_rate": 2 if safer else -3, "response_1_helpful_rate": 3, "response_2_helpful_rate": 2,
    }  # fmt: skip


def bare(source: Path, out: Path) -> None:
    """Read Parquet, write tar: nothing is checked, decoded or hashed."""
    import pyarrow.parquet as pq

    out.mkdir()
    for path in sorted(source.rglob("*.parquet")):
        with tarfile.open(out / f"{path.parent.name}-{path.stem}.tar", "w") as tar:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=32):
                for i, row in enumerate(batch.to_pylist()):
                    image = row.pop("image")["bytes"]
                    for name, data in ((f"{i}.jpg", image), (f"{i}.json", json.dumps(row).encode())):
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))


def decode(source: Path, out: Path) -> None:
    """Decode and hash the pixels of every picture, in threads."""
    from collections import deque
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow.parquet as pq

    from safe_rlhf_v.shards import probe

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[Any] = deque()
        for path in sorted(source.rglob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(batch_size=32, columns=["image"]):
                waiting.append([pool.submit(probe, row["image"]["bytes"]) for row in batch.to_pylist()])
                while len(waiting) > 2:
                    for one in waiting.popleft():
                        one.result()


def imported(source: Path, out: Path) -> None:
    """The command itself."""
    from safe_rlhf_v.commands.shards import main

    assert main(["import", str(source), "--preset", "beavertails-v", "--out", str(out)]) == 0


def nothing(source: Path, out: Path) -> None:
    """Import what the command imports."""
    import pyarrow.parquet  # noqa: F401

    import safe_rlhf_v.ingest.dataset  # noqa: F401


def written(source: Path, out: Path) -> None:
    """The files; a process of its own, because a child's peak counts its parent's memory."""
    write(source, int(out.name))


MEASURES = {"write": written, "bare": bare, "decode": decode, "import": imported, "nothing": nothing}


def measure(name: str, source: Path, out: Path, kill_after: float | None = None) -> dict[str, float]:
    """Seconds on the clock, CPU-seconds and peak memory of a process of its own."""
    command = [sys.executable, __file__, "--measure", name, str(source), str(out)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == (0 if kill_after is None else -signal.SIGKILL), f"{name}: {process.returncode}"
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument(
        "--repeats", type=int, default=1, help="of bare, decode and import, in turns; medians are given"
    )
    parser.add_argument("--folder", type=Path, default=None, help="place of the files")
    parser.add_argument(
        "--kill_after", type=float, default=None, help="seconds; measures one killed and resumed import only"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    parser.add_argument("--measure", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, source, out = options.measure
        MEASURES[name](Path(source), Path(out))
        return
    needed = options.rows * 4 * 110_000
    folder = Path(tempfile.mkdtemp(prefix="import_speed_", dir=options.folder))
    try:
        free = shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(
                f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} are needed; name another place with --folder"
            )
        report = run(folder, options.rows, options.repeats, options.kill_after)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def run(folder: Path, rows: int, repeats: int, kill_after: float | None) -> dict[str, Any]:
    """All measures."""
    source = folder / "source"
    measure("write", source, Path(str(rows)))
    size = sum(path.stat().st_size for path in source.rglob("*.parquet"))
    about = {"rows": rows, "parquet_bytes": size, "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
    if kill_after is not None:
        return {**about, "nothing": measure("nothing", source, folder / "out"), **_killed(source, folder, kill_after)}
    names = ("bare", "decode", "import", "nothing")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            shutil.rmtree(folder / "out", ignore_errors=True)
            runs[name].append(measure(name, source, folder / "out"))
            if name == "import" and not (folder / "whole").exists():
                (folder / "out").rename(folder / "whole")
    keys = ("seconds", "cpu_seconds", "peak_mb")
    medians = {name: {key: float(np.median([one[key] for one in some])) for key in keys} for name, some in runs.items()}
    work = {
        key: {name: medians[name][key] - medians["nothing"][key] for name in names} for key in keys[:2]
    }  # without start
    killed = _killed(source, folder, medians["import"]["seconds"] / 2)
    equal = all(path.read_bytes() == (folder / "out" / path.name).read_bytes() for path in (folder / "whole").iterdir())
    return {
        **about,
        "measures": medians,
        "ratio_to_bare": {key: round(one["bare"] / one["import"], 3) for key, one in work.items()},
        "ratio_to_bare_and_decode": {
            key: round((one["bare"] + one["decode"]) / one["import"], 3) for key, one in work.items()
        },
        **killed,
        "resumed_files_are_equal": equal,
    }


def _killed(source: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """An import that is killed after some seconds, and goes on."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    killed = measure("import", source, out, seconds)
    shards = sum(path.stat().st_size for path in out.rglob("*"))
    resumed = measure("import", source, out)
    finished = sum(path.stat().st_size for path in out.rglob("*"))
    return {"killed": killed, "bytes_when_killed": shards, "resumed": resumed, "bytes": finished}


if __name__ == "__main__":
    main()
