"""`lensdist check`: verify sets, runs, checkpoints and exports (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE, EXIT_FAILED

EXAMPLES = """examples:
  lensdist check packed                                  # every file of a packed set, hashed
  lensdist check runs/mae                                # a run: checkpoints, export, scores, data
  lensdist check runs/mae/checkpoints/step-00000400 runs/mae/export
  lensdist check runs                                    # everything below a folder

Exit codes: 0 nothing is damaged; 1 something is damaged; 2 there is nothing to check.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="a packed set, run, checkpoint or export, or a folder of them",
    )


def run(args: argparse.Namespace) -> int:
    """Read everything, and print a line for each thing; nothing is written."""
    from lensdist.runs.checks import find

    count = damaged = 0
    for check in [check for path in args.paths for check in find(path)]:
        for found in check():
            count, damaged = count + 1, damaged + bool(found.wrong)
            state = f"DAMAGED  {found.wrong}" if found.wrong else f"OK  {found.path}"
            print(f"{found.bytes:>15,} bytes  {state}  ({found.what})", flush=True)
    print(f"{damaged} of {count} damaged" if damaged else f"all {count} whole")
    return EXIT_FAILED if damaged else EXIT_DONE
