"""One file per command."""

STOPPED = 3
"""Exit status of a training that StopOnViolation or NaN ended."""
