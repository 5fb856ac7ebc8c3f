"""2,000 inputs, the process killed half-way, the same command again: the bytes of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from safe_rlhf_v.commands import moderate
from safe_rlhf_v.shards import ShardedSplit

COUNT = 2000


def table(world, folder):
    """Inputs with and without picture, question and response, every 97th of them broken."""
    records = [ShardedSplit(world, "test")[i] for i in range(12)]
    lines = []
    for i in range(COUNT):
        one = records[i % 12]
        row = {"key": f"k{i}", "question": f"{one.question} {i % 7}", "response": one.responses[i % 2].text}
        if i % 5 == 0:
            row["image"] = f"{one.key}.jpg"
            (folder / row["image"]).write_bytes(one.images[0].data)
        if i % 11 == 0:
            del row["response"]
        lines.append(json.dumps(row) if i % 97 else "{broken")
    path = folder / "inputs.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(calibrated_run, world, tmp_path):
    command = ["--guard", str(calibrated_run), "--input", str(table(world, tmp_path)), "--batch_size", "50"]
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert moderate.main([*command, "--output", str(whole)]) == 0
    assert len(whole.read_bytes().splitlines()) == COUNT
    line = [sys.executable, "-m", "safe_rlhf_v", "moderate", *command, "--output", str(cut)]
    half, part = whole.stat().st_size // 2, tmp_path / "cut.jsonl.part"
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)) as process:
        while not part.exists() or part.stat().st_size < half:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not cut.exists() and half <= part.stat().st_size < whole.stat().st_size
    written = part.read_bytes()
    part.write_bytes(written[:-17])  # a power cut may also lose the end of the last line
    assert moderate.main([*command, "--output", str(cut)]) == 0
    assert cut.read_bytes() == whole.read_bytes()
    assert not part.exists()
