"""Plain WebDataset shards: written once, verified by hash, read by random access."""

from safe_rlhf_v.shards.images import ImageError, decode, probe
from safe_rlhf_v.shards.manifest import Manifest, ShardError
from safe_rlhf_v.shards.split import ShardedSplit, split_of
from safe_rlhf_v.shards.writer import ShardWriter

__all__ = ["ImageError", "Manifest", "ShardError", "ShardWriter", "ShardedSplit", "decode", "probe", "split_of"]
