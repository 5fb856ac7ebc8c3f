"""Models, judges and prompts of ours within inspect_ai (extra ``inspect``), which finds :mod:`~safe_rlhf_v.inspecting.plugin`."""
