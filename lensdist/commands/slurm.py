"""`lensdist slurm`: run the commands of `slurm/submit.py` (torch-free)."""

from __future__ import annotations

import argparse

EXAMPLES = """commands: plan, submit, status, logs, cancel, resume, why, chains

examples:
  lensdist slurm plan   --chain chain.yaml --cluster cluster.yaml data.path=packed
  lensdist slurm submit --chain chain.yaml --cluster cluster.yaml data.path=packed
  lensdist slurm status --chain chain.yaml
  lensdist slurm why    --chain chain.yaml
  lensdist slurm submit --help

In a clone, `python slurm/submit.py` is the same command.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("command_line", metavar="COMMAND …", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace) -> int:
    """Run a command of the launcher."""
    from slurm.submit import main

    return main(args.command_line, "lensdist slurm")
