"""Records, their labels, and batches of them."""

from safe_rlhf_v.records.conversation import Context, Turn
from safe_rlhf_v.records.parsing import RecordError
from safe_rlhf_v.records.parts import Image, Response, Truth
from safe_rlhf_v.records.record import Record
from safe_rlhf_v.records.votes import PairVotes, Votes

__all__ = ["Context", "Image", "PairVotes", "Record", "RecordError", "Response", "Truth", "Turn", "Votes"]
