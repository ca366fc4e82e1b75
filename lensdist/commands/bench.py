"""`lensdist bench`: benchmarks, which lie beside the package in the repository (torch-free)."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from lensdist.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = {
    "few-labels": ("experiments.cli", "what pretraining is worth when labels are few"),
    "common": ("experiments.cli", "the common task: `best` beside `reference`"),
    "super-resolution": (
        "experiments.cli",
        "super-resolution: what the MAE adds, beside interpolation, a linear filter and EDSR",
    ),
    "speed": (
        "benchmarks.speed.run",
        "how fast a run trains here, and beside what else one would use",
    ),
}
"""Command -> the repository's module that runs it, and a line about it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the names of the benchmarks; each reads its own arguments."""
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (_, summary) in BENCHMARKS.items():
        # No character begins a flag here, so that the flags of a benchmark reach it.
        one = commands.add_parser(name, help=summary, add_help=False, prefix_chars="\0")
        one.add_argument("words", nargs="*")


def run(args: argparse.Namespace) -> int:
    """Run a benchmark of the repository.

    Raises:
        UserError: the package was installed without the repository.
    """
    module = BENCHMARKS[args.benchmark][0]
    if not (ROOT / module.replace(".", "/")).with_suffix(".py").is_file():
        raise UserError(
            "benchmarks come with the repository, not with the package: clone it, run "
            "`pip install -e '.[bench]'` there, and give the command again"
        )
    # In front: a folder of the user's may have the name of one of the repository's packages.
    sys.path.insert(0, str(ROOT))
    code: int = import_module(module).main([args.benchmark, *args.words])
    return code
