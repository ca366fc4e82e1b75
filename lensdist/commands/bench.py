"""`lensdist bench`: run the benchmarks of the repository (torch-free)."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from lensdist.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = {
    "few-labels": ("experiments.cli", "measure the gain of pretraining with few labels"),
    "common": ("experiments.cli", "compare `best` with `reference` on the common task"),
    "fit-robustness": ("experiments.cli", "try the common task's lens fit outside of its family"),
    "super-resolution": (
        "experiments.cli",
        "compare super-resolution with interpolation, a linear filter and EDSR",
    ),
    "speed": (
        "benchmarks.speed.run",
        "measure the speed of training, and compare it with other tools",
    ),
}
"""The repository's module that runs a command, and the command's summary."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the names of the benchmarks; each reads its own arguments."""
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (_, summary) in BENCHMARKS.items():
        # No character begins a flag here, so that flags are passed to the benchmark.
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
            "benchmarks are in the repository, not in the package: clone it, run "
            "`pip install -e '.[bench]'` there, and repeat the command"
        )
    # First on the path, because a folder of the user's may have the name of one of these packages.
    sys.path.insert(0, str(ROOT))
    code: int = import_module(module).main([args.benchmark, *args.words])
    return code
