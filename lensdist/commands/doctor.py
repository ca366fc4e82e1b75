"""`lensdist doctor`: check the installation and the machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE, EXIT_FAILED

EXAMPLES = """examples:
  lensdist doctor                       # this machine; on a cluster, type it on a node with a GPU
  lensdist doctor --folder /scratch/me  # with the speed of another file system
  lensdist doctor --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(),
        help="where runs and data will lie; its file system is measured (default: here)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print a line for each finding; return 1 if what every run needs is missing."""
    from lensdist.profiling.doctor import Finding, examine

    found: list[Finding] = []
    for one in examine(args.folder):
        found.append(one)
        if not args.json:
            print(f"{one.state:8} {one.name:16} {one.text}", flush=True)
            if one.remedy:
                print(f"{'':25} {one.remedy}")
    if args.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    return EXIT_FAILED if any(one.state == "missing" and one.needed for one in found) else EXIT_DONE
