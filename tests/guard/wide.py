"""Limits by hand that leave a guard in training of two steps something to judge."""

from safe_rlhf_v.guard.limits import Limits

WIDE = Limits("by hand", 10**6, 10**6, 10**6, 64, {}, 1, 1.0, 0.0)
