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
