"""Models, judges and prompts of ours within inspect_ai (extra ``inspect``), which finds ``plugin`` by its entry point."""
