"""`lensdist profile`: measure the time of each part of a step (torch-free at import)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lensdist.runs.accelerate_launch import agreed, from_environment
from lensdist.runs.fit import load_fitted
from lensdist.utils.arguments import add_configuration
from lensdist.utils.errors import EXIT_DONE, UserError
from lensdist.utils.staging import check_ours

EXAMPLES = """examples:
  lensdist profile --config configs/mae/best.yaml --out profile
  lensdist profile --config configs/mae/best.yaml --out compiled speed.compile=blocks
  accelerate launch --multi_gpu --num_processes 8 -m lensdist.cli profile --config … --out …

OUT/profile.json holds the printed numbers; open OUT/trace.json.gz in ui.perfetto.dev or in
chrome://tracing. The run itself is deleted, unless run.dir=… sets its folder.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_configuration(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the two files")
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="the number of steps to time and to trace (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the configuration's first steps, and print the time of their parts.

    Raises:
        UserError: as for any run; nothing was started.
        RunError: a stop was requested before the end.
    """
    if args.steps < 1:
        raise UserError(f"--steps must be 1 or more, not {args.steps}")
    cfg = agreed(load_fitted(args.config, args.words), from_environment(os.environ))
    check_ours(args.out / "profile.json", "costliest", beside=(args.out / "trace.json.gz",))
    keep = any(word.startswith("run.dir=") for word in args.words)

    from lensdist.profiling.run import profile_run
    from lensdist.runs.phase import context_of

    world = context_of(cfg)
    page = profile_run(cfg, args.out, args.steps, world, keep=keep)
    if world.main:
        print("\n".join(page))
        print(f"\nwrote {args.out / 'profile.json'}\nwrote {args.out / 'trace.json.gz'}")
    if world.size > 1:
        world.close(EXIT_DONE, together=True)
    return EXIT_DONE
