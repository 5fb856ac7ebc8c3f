"""Records, their labels, and batches of them."""

from safe_rlhf_v.records.record import Image, Record, RecordError, Response, Truth

__all__ = ["Image", "Record", "RecordError", "Response", "Truth"]
