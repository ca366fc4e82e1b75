"""`lensdist presets`: list the configurations that come with lensdist, with size and time."""

from __future__ import annotations

import argparse

from lensdist.utils.errors import EXIT_DONE

EXAMPLES = """examples:
  lensdist presets              # all
  lensdist presets mae          # those of one task; find: lens finding
  lensdist train mae/small      # train one
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("task", nargs="?", help="the task (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print a line for each preset.

    Raises:
        UserError: there is no such task.
    """
    from lensdist.config.presets import MORE, presets
    from lensdist.estimate.presets import facts
    from lensdist.tasks.registry import built_in
    from lensdist.utils.errors import UserError

    known = (*built_in(), *MORE)
    if args.task is not None and args.task not in known:
        raise UserError(f"{args.task!r} has no presets; use one of {', '.join(known)}")
    names = [name for name in presets() if args.task in (None, name.partition("/")[0])]
    print(
        f"{'preset':30} {'parameters':>10} {'images':>9}  {'device':6} {'expected time':16} about"
    )
    for one in facts(names):
        print(
            f"{one.name:30} {one.parameters:>10} {one.images:>9}  {one.device:6} {one.time:16} "
            f"{one.about}"
        )
    return EXIT_DONE
