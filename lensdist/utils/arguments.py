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


def add_image_choice(parser: argparse.ArgumentParser) -> None:
    """Declare which image of a file to take, and what NaN means: the fields of `readers.Choice`."""
    parser.add_argument(
        "--hdu",
        metavar="NAME|N",
        help="the image of a FITS file, by name or number, or the array of a .npz, by name "
        "(default: the only one)",
    )
    parser.add_argument(
        "--bands",
        metavar="NAME,...",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="the bands of an image, found in EXTNAME, FILTER or file names (default: the only "
        "image)",
    )
    parser.add_argument(
        "--nan",
        choices=("mask", "refuse"),
        help="what NaN means. mask: the pixel has no data; refuse: the file is damaged (default: "
        "mask in FITS files, refuse in others)",
    )
