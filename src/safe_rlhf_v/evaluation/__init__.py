"""Judging policies: their responses to held-out prompts, scored by models and by a judge."""
