"""How much memory a run will need, found out without its weights."""

from safe_rlhf_v.planning.live_bytes import LiveBytes
from safe_rlhf_v.planning.stages import MemoryPlan, make_plan

__all__ = ["LiveBytes", "MemoryPlan", "make_plan"]
