"""Options of every command that reads run folders."""

import argparse

THREATS = """Run folders are read as a stranger's files: only listed classes are imported, nothing is unpickled or
fetched, and their trainer settings are not used; see docs/security.md."""


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust`` and ``--base``, and the line about the threat model.

    Args:
        parser: Of a command.
    """
    group = parser.add_argument_group("reading run folders", THREATS)
    group.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="also import classes of this package of yours"
    )
    group.add_argument(
        "--base", metavar="PATH", help="folder or hub name of the pretrained model, in place of the one a run names"
    )
