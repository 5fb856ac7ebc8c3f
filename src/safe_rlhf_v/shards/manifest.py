"""The manifest: what a shard folder holds, written last, so that its presence means the folder is complete."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safe_rlhf_v.taxonomy import LEVEL_NAMES, Taxonomy

FORMAT = "safe_rlhf_v.shards"
VERSION = 1
FILE_NAME = "manifest.json"


class ShardError(ValueError):
    """A shard folder, shard or sample is damaged or missing; the message names it."""


@dataclass(frozen=True)
class ShardInfo:
    """One tar file: its name, samples, bytes and SHA-256 (hex)."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """One split: its shards, its index file with SHA-256, and what its records hold.

    Attributes:
        samples: Records.
        groups: Distinct image groups.
        shards: Tar files in order.
        index: ``{"file": ..., "sha256": ...}``.
        histograms: Counts per category, source, safety level, ...: ``{"category": {"none": 12, ...}, ...}``.
    """

    samples: int
    groups: int
    shards: tuple[ShardInfo, ...]
    index: dict[str, str]
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A data set of shards.

    Attributes:
        name: Data set name.
        licence: SPDX identifier or text.
        taxonomy: Harm categories of the records.
        level_names: Words of the safety scale, by level.
        harm_boundary: Levels below it are harmful.
        origin: Where the data came from, free form.
        splits: By name.
        digest: SHA-256 (hex) of the manifest file.
    """

    name: str
    licence: str
    taxonomy: Taxonomy
    level_names: dict[int, str]
    origin: dict[str, str]
    splits: dict[str, SplitInfo]
    harm_boundary: int = 0
    digest: str = ""

    @classmethod
    def load(cls, root: str | Path) -> "Manifest":
        """Read ``root/manifest.json``.

        Raises:
            ShardError: If it is missing, of another version, or names a file outside the folder.
        """
        path = Path(root) / FILE_NAME
        if not path.is_file():
            raise ShardError(f"{path}: no manifest (is this a shard folder, and was it written to the end?)")
        raw = path.read_bytes()
        try:
            body = json.loads(raw)
            if body["format"] != FORMAT or body["version"] != VERSION:
                raise ShardError(
                    f"{path}: format {body['format']!r} version {body['version']}; this reads {FORMAT!r} {VERSION}"
                )
            splits = {name: _split(value) for name, value in body["splits"].items()}
            taxonomy = Taxonomy(body["taxonomy"]["name"], tuple(body["taxonomy"]["categories"]))
            manifest = cls(
                name=body["name"],
                licence=body["licence"],
                taxonomy=taxonomy,
                level_names={int(level): name for level, name in body["level_names"].items()},
                origin=body["origin"],
                splits=splits,
                harm_boundary=body["harm_boundary"],
                digest=hashlib.sha256(raw).hexdigest(),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ShardError(f"{path}: not a valid manifest ({type(error).__name__}: {error})") from None
        for split in splits.values():
            for name in [*(shard.file for shard in split.shards), split.index["file"]]:
                if Path(name).name != name:
                    raise ShardError(f"{path}: {name!r} lies outside the shard folder")
        return manifest

    def to_json(self) -> bytes:
        """Canonical JSON, byte-reproducible."""
        body: dict[str, Any] = asdict(self)
        del body["digest"]
        head = {"format": FORMAT, "version": VERSION, **body}
        return (json.dumps(head, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _split(body: dict[str, Any]) -> SplitInfo:
    shards = tuple(ShardInfo(**shard) for shard in body["shards"])
    return SplitInfo(body["samples"], body["groups"], shards, dict(body["index"]), body["histograms"])


def new_manifest(
    name: str, licence: str, taxonomy: Taxonomy, origin: dict[str, str], splits: dict[str, SplitInfo]
) -> Manifest:
    """A manifest with the seven-level scale."""
    return Manifest(name, licence, taxonomy, dict(LEVEL_NAMES), dict(origin), splits)
