"""The command line: a configuration and its settings, in any order."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, as all errors are, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with 2."""
        self.exit(2, f"error: {message}; `{self.prog} --help` prints what can be given\n")


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

    argparse takes the positional arguments of a sub-command from one place only. An unknown flag,
    such as `--lr 1e-4`, becomes the word `--lr=1e-4`, which the configuration refuses: it knows
    the keys, and so what was meant.
    """
    args, more = parser.parse_known_args(argv)
    if more and not hasattr(args, "words"):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        flags = [f"--{name.replace('_', '-')}" for name in vars(args) if name != "words"]
        for word in more:
            name = word.partition("=")[0]
            if word.startswith("--") and (near := get_close_matches(name, flags, 1, 0.8)):
                parser.error(f"unrecognized argument {name}; did you mean {near[0]}?")
        args.words = [*args.words, *_with_values(more)]
    return args


def _with_values(words: list[str]) -> Iterator[str]:
    """Join each flag of `words` with the value that follows it; one without a value is true."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and "=" not in word:
            alone = not rest or rest[0].startswith("--") or "=" in rest[0]
            word = f"{word}={'true' if alone else rest.pop(0)}"
        yield word


def add_image_choice(parser: argparse.ArgumentParser) -> None:
    """Declare which image of a file to take, and what NaN means: the fields of `readers.Choice`."""
    parser.add_argument(
        "--hdu",
        metavar="NAME|N",
        help="the image of a FITS file, by name or number, or the array of an .npz or HDF5 file, "
        "by name (default: the only one)",
    )
    parser.add_argument(
        "--axes",
        choices=("CHW", "HWC", "NHW", "NCHW", "NHWC"),
        help="what the axes of arrays are: N images, C bands, H rows, W columns (default: found by "
        "their shapes)",
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


def add_sizes(parser: argparse.ArgumentParser, *, catalogue: bool) -> None:
    """Declare how images are resampled, cropped and padded: the fields of `resize.Cut`.

    Args:
        parser: the command's.
        catalogue: whether places on the sky may be given.
    """
    size = parser.add_argument_group("images of other sizes and pixel scales")
    size.add_argument(
        "--resample",
        metavar="SCALE",
        type=positive,
        help="resample images to this pixel scale, arcsec; flux is kept",
    )
    size.add_argument(
        "--crop", metavar="N|HxW", type=_size, help="keep so many pixels around the centre"
    )
    size.add_argument(
        "--pad",
        metavar="N|HxW",
        type=_size,
        help="add bad pixels around smaller images, up to this size",
    )
    place, sky = "the middle of the image or its brightest pixel", ""
    if catalogue:
        place = "the middle of the image, its brightest pixel, a place on the sky in degrees, or "
        place, sky = place + "the place that the table of --labels gives", "|RA,DEC|catalogue"
    size.add_argument(
        "--centre",
        metavar=f"image|brightest{sky}",
        type=_centre if catalogue else str,
        choices=None if catalogue else ("image", "brightest"),
        default="image",
        help=f"what --crop keeps in the middle: {place} (default: image)",
    )


def positive(text: str) -> float:
    """Return a positive number, for an argument's `type`."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.lower().split("x")]
    size = (sides[0], sides[-1])
    if len(sides) > 2 or not 1 <= min(size) <= max(size) <= 16_384:
        raise argparse.ArgumentTypeError("must be from 1 to 16384, as 64 or 64x80")
    return size


def _centre(text: str) -> str | tuple[float, float]:
    if text in ("image", "brightest", "catalogue"):
        return text
    ra, dec = map(float, text.split(","))
    if not (0 <= ra <= 360 and -90 <= dec <= 90):
        raise argparse.ArgumentTypeError("must be RA,Dec in degrees")
    return ra, dec
