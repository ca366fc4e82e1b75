"""The command line: a configuration and its settings, in any order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_configuration(parser: argparse.ArgumentParser, also: str = "") -> None:
    """Declare `--config`, and a preset and settings as `words`; `also` ends the help of these."""
    parser.add_argument("--config", type=Path, help="a configuration file, in place of a preset")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="PRESET key=value",
        help="a preset, such as mae/best (`lensdist presets`), and settings (`lensdist settings`)"
        + also,
    )


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
