"""One file per command."""

STOPPED = 3
"""Exit status of a training that StopOnViolation or NaN ended."""
CRASHED = 70
"""Exit status of a program that broke, in place of Python's 1, which is a verdict of some commands."""
