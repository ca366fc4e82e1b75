"""The command line: arguments in any order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line whose preset and settings may stand before, between and after flags.

    argparse takes the positional arguments of a sub-command from one place only.
    """
    args, more = parser.parse_known_args(argv)
    if more and (not hasattr(args, "words") or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.words = [*args.words, *more]
    return args
