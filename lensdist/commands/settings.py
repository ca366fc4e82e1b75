"""`lensdist settings`: print every key of a configuration, with its meaning."""

from __future__ import annotations

import argparse
import shutil
import textwrap

from lensdist.utils.errors import EXIT_DONE

EXAMPLES = """examples:
  lensdist settings mae              # all settings of task mae
  lensdist settings mae/best         # with the values of a preset
  lensdist settings --markdown       # all tasks, as docs/settings.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "name", metavar="TASK[/PRESET]", nargs="?", help="the task or preset (default: all tasks)"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")


def run(args: argparse.Namespace) -> int:
    """Print the settings.

    Raises:
        UserError: there is no such task or preset.
    """
    from lensdist.config.compose import compose
    from lensdist.config.presets import preset_file
    from lensdist.config.settings import markdown, settings
    from lensdist.tasks.registry import built_in
    from lensdist.utils.plugins import trust

    if args.name and ":" in args.name:
        trust(args.name)
    if args.markdown:
        print(markdown([args.name] if args.name else list(built_in())), end="")
        return EXIT_DONE
    for name in [args.name] if args.name else built_in():
        task = name.partition("/")[0] if ":" not in name else name
        values = compose(preset_file(name), (), []).plain() if "/" in name else None
        print(f"task {task}\n")
        wide = shutil.get_terminal_size().columns
        for one in settings(task, values):
            print(f"{one.key} = {one.default}    ({one.type})")
            for line in textwrap.wrap(one.meaning, max(wide - 6, 20)):
                print(f"    {line}")
        print()
    return EXIT_DONE
