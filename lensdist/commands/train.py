"""`lensdist train`: what it takes (torch-free; the work is in `lensdist.train`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lensdist.config.schema import BaseRun

EXAMPLES = """examples:
  lensdist train --config configs/mae/debug.yaml
  lensdist train --config configs/finetune/best.yaml data.path=packed encoder=runs/mae seed=1
  accelerate launch --config_file accelerate_config.yaml -m lensdist.train --config …
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--config", type=Path, required=True, help="configs/<task>/<preset>.yaml")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto (default): from the newest whole checkpoint, if any; never: refuse if there are "
        "any; PATH: from that checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings")


def run(args: argparse.Namespace) -> int:
    """Train."""
    from lensdist.train import main

    return main([f"--config={args.config}", f"--resume={args.resume}", "--", *args.overrides])


def parse(argv: Sequence[str]) -> tuple[BaseRun, str]:
    """Command line to configuration.

    Raises:
        UserError: the configuration is wrong, all of what is wrong at once.
    """
    from lensdist.config import load
    from lensdist.config.schema import schema_of

    parser = argparse.ArgumentParser(
        prog="lensdist train",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    return load(args.config, args.overrides, schema=schema_of), args.resume
