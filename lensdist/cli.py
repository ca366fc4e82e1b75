"""The command `lensdist`, with one sub-command per file of `lensdist/commands/` (torch-free)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from lensdist import __version__
from lensdist.utils import signals
from lensdist.utils.arguments import Parser, parse
from lensdist.utils.plugins import trust

COMMANDS = {
    "simulate": "simulate images of strong lenses",
    "pack": "convert a folder of files to a packed set",
    "presets": "list the configurations that come with lensdist",
    "settings": "print every key of a configuration, with its meaning",
    "train": "run one training phase",
    "evaluate": "score a trained model on a split",
    "predict": "apply a trained model to image files",
    "import": "convert published weights to an export",
    "export": "write a trained model in another format",
    "check": "verify sets, runs, checkpoints and exports",
    "report": "collect finished runs in one table",
    "slurm": "run a chain of phases on SLURM, or on this machine",
    "estimate": "estimate memory, time and scaling of a run on a cluster",
    "bench": "run a benchmark",
    "doctor": "check the installation and the machine",
    "profile": "measure the time that each part of a step takes",
}
_TRUSTING = ("train", "evaluate", "predict", "export", "check", "report")
"""The commands that open models or runs, whose task may be the user's own class."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    if argv is None:
        signals.begin(trains=sys.argv[1:2] == ["train"])  # before the imports, which take a second
    from lensdist.utils.outcome import conclude

    return conclude(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="lensdist",
        description="Train models on strong-gravitational-lensing images.",
        epilog="`lensdist COMMAND --help` prints the options of a command, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"lensdist {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    words = sys.argv[1:] if argv is None else argv
    asked = next((word for word in words if not word.startswith("-")), "")
    if asked and asked not in COMMANDS:
        near = get_close_matches(asked, COMMANDS, 1)
        also = f"did you mean {near[0]}? If not, " if near else ""
        parser.error(f"unknown command {asked!r}; {also}it is one of {', '.join(COMMANDS)}")
    for name, summary in COMMANDS.items():
        about = summary.capitalize() + "."
        if name != asked:  # its module is not imported, which takes a second for all of them
            commands.add_parser(name, help=summary, description=about)
            continue
        module = import_module(f"lensdist.commands.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=about,
            epilog=getattr(module, "EXAMPLES", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        if name in _TRUSTING:
            command.add_argument(
                "--trust",
                metavar="MODULE",
                action="append",
                default=[],
                help="allow the import of this Python module, such as mylab.masses, if the model's "
                "task or network comes from it (default: only lensdist's own)",
            )
    args = parse(parser, argv)
    trust(*getattr(args, "trust", ()))
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
