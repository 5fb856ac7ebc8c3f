"""Find every problem of a shard folder: nothing in the manifest is taken on trust."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from safe_rlhf_v.records import Record, RecordError
from safe_rlhf_v.shards.images import ImageError, probe
from safe_rlhf_v.shards.index import scan_shard
from safe_rlhf_v.shards.manifest import FILE_NAME, Manifest, ShardError, SplitInfo
from safe_rlhf_v.shards.split import ShardedSplit, file_sha256


def check(root: str | Path, *, progress: bool = False) -> list[str]:
    """Every problem found, each naming file, and shard, key and field where they are known; empty if all is well.

    Recomputed are: sizes and SHA-256 of all files, the index from the tar headers, every record against the schema and the
    taxonomy, every image (decoded, both hashes), counts, unique keys, and that no image group stands in two splits.

    Args:
        root: Shard folder.
        progress: Show a bar.
    """
    root = Path(root)
    try:
        manifest = Manifest.load(root)
    except ShardError as error:
        return [str(error)]
    problems = [f"{root / name}: not in the manifest" for name in _strangers(root, manifest)]
    keys: dict[str, str] = {}
    groups: dict[str, str] = {}
    total = sum(split.samples for split in manifest.splits.values())
    with tqdm(total=total, desc="checking", unit="record", disable=not progress) as bar:
        for name, split in manifest.splits.items():
            problems += _files(root, split)
            problems += _index(root, name)
            for shard in split.shards:
                count = 0
                for key, record, found in _records(root / shard.file, manifest):
                    bar.update()
                    count += 1
                    problems += found
                    if key in keys:
                        problems.append(f"{shard.file}: key {key!r} stands in {keys[key]!r} too")
                    keys[key] = name
                    if record and groups.setdefault(record.group, name) != name:
                        problems.append(
                            f"{shard.file}: record {key!r}: its image stands in split {groups[record.group]!r} too"
                        )
                if count != shard.samples:
                    problems.append(f"{shard.file}: {count} whole samples, the manifest states {shard.samples}")
    return problems


def _strangers(root: Path, manifest: Manifest) -> list[str]:
    """Tar and index files that the manifest does not know."""
    known = {shard.file for split in manifest.splits.values() for shard in split.shards}
    known |= {split.index["file"] for split in manifest.splits.values()} | {FILE_NAME, "sizes.json"}
    return sorted(
        path.name for path in root.iterdir() if path.suffix in (".tar", ".npy", ".part") and path.name not in known
    )


def _files(root: Path, split: SplitInfo) -> Iterator[str]:
    """Missing files and wrong hashes."""
    for file, sha256 in [*((s.file, s.sha256) for s in split.shards), (split.index["file"], split.index["sha256"])]:
        if not (root / file).is_file():
            yield f"{file}: missing"
        elif file_sha256(root / file) != sha256:
            yield f"{file}: its SHA-256 is not the one in the manifest: damaged or changed"


def _index(root: Path, name: str) -> Iterator[str]:
    """The index against the tar headers."""
    try:
        split = ShardedSplit(root, name)
        for number, file in enumerate(split.files):
            offsets = [min(member.header for member in sample) for sample in scan_shard(root / file)]
            stated = split.index["offset"][split.index["shard"] == number]
            if not np.array_equal(stated, np.array(offsets, dtype=stated.dtype)):
                yield f"{split.manifest.splits[name].index['file']}: does not match the members of {file}"
    except ShardError as error:
        yield str(error)


def _records(path: Path, manifest: Manifest) -> Iterator[tuple[str, Record | None, list[str]]]:
    """Key, record (``None`` if unreadable) and problems of every sample of a shard."""
    try:
        samples = scan_shard(path)
        data = path.read_bytes()
    except (ShardError, OSError) as error:
        yield "", None, [str(error)]
        return
    for members in samples:
        key = members[0].key
        bodies = [data[member.offset : member.offset + member.size] for member in members]
        try:
            record = Record.from_json(bodies[-1], tuple(bodies[:-1]), key).validate(manifest.taxonomy)
        except RecordError as error:
            yield key, None, [f"{path.name}: {error}"]
            continue
        yield key, record, [f"{path.name}: record {key!r}, {problem}" for problem in _image_problems(record)]


def _image_problems(record: Record) -> Iterator[str]:
    """What is wrong with a record's images."""
    for i, image in enumerate(record.images):
        try:
            found = probe(image.data)
        except ImageError as error:
            yield f"field 'images[{i}]': {error}"
            continue
        if hashlib.sha256(image.data).hexdigest() != image.sha256:
            yield f"field 'images[{i}].sha256': the bytes do not match"
        if (found.id, found.format, found.width, found.height) != (image.id, image.format, image.width, image.height):
            yield f"field 'images[{i}]': id, format or size do not match the picture"
