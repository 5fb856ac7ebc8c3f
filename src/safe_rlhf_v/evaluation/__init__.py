"""Judging policies: scorers that know the truth, and evaluations by them."""
