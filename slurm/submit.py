#!/usr/bin/env python3
"""Send a chain of phases to SLURM, or run it here, and look after it.

    python slurm/submit.py plan
    python slurm/submit.py submit --cluster configs/clusters/slurm-gpu.yaml data.path=packed seed=1
    python slurm/submit.py status
    python slurm/submit.py logs -f pretrain
    python slurm/submit.py why
    python slurm/submit.py resume finetune

Exit codes: 0 done; 1 failure; 2 bad configuration or input, nothing was sent.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `slurm` is not installed: it is used from a clone, from anywhere

from lensdist import signals  # noqa: E402

if __name__ == "__main__":
    signals.begin(trains=False)  # before the imports, which take a second

from lensdist.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, RunError, UserError  # noqa: E402
from lensdist.streams import output_lost, tolerant  # noqa: E402
from slurm import commands  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    with tolerant():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    # Options may stand between the words, which argparse cannot do with sub-commands.
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.words += rest
    words = sys.argv[1:] if argv is None else argv
    args.line = shlex.join(["python", "slurm/submit.py", *words])
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        commands.ACTIONS[args.command](args)
        lost = output_lost()
        if lost is not None:
            raise RunError(f"standard output: {lost}; not all of it was written")
    except UserError as e:
        for line in str(e).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # `logs -f | head`
        return EXIT_DONE
    except (RunError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        if args.command == "logs":  # the end of `logs -f`
            return EXIT_DONE
        goes_on = args.command in ("submit", "resume")
        more = "; the same command goes on where it was" if goes_on else ""
        print(f"interrupted{more}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python slurm/submit.py", description=__doc__, formatter_class=raw
    )
    found = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in commands.SUMMARIES.items():
        one = found.add_parser(name, help=summary, description=summary.capitalize() + ".")
        one.add_argument("words", nargs="*", metavar="phase|key=value", help=_words(name))
        _add_file(one, "chain", commands.CHAIN)
        _add_file(one, "cluster", commands.CLUSTER)
        if name in ("plan", "submit"):
            _add_plan(one)
        if name == "plan":
            one.add_argument(
                "--test-only", action="store_true", help="ask SLURM when each job would start"
            )
        elif name == "status":
            one.add_argument("--json", action="store_true", help="for programs")
        elif name == "logs":
            one.add_argument("-f", "--follow", action="store_true", help="until the phases end")
            one.add_argument("-n", "--lines", type=int, default=50, help="of each (default: 50)")
            one.add_argument("--all-nodes", action="store_true", help="not only the first node")
        elif name == "resume":
            one.add_argument(
                "--nodes", metavar="N|MIN-MAX", help="on so many nodes; the same samples in order"
            )
    return parser


def _words(command: str) -> str:
    phases = "phases (default: all)"
    if command in ("plan", "submit"):
        return (
            f"{phases}; settings: key=value for every training phase, PHASE.key=value for one, "
            "cluster.key=value, runs=FOLDER"
        )
    return f"{phases}; runs=FOLDER; other settings, and --cluster, need not be said again"


def _add_file(parser: argparse.ArgumentParser, what: str, default: Path) -> None:
    parser.add_argument(
        f"--{what}",
        type=Path,
        metavar="FILE",
        default=default,
        help=f"default: configs/{what}s/{default.name}",
    )


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="key=v1,v2",
        help="a job array over these values, and a table; may be repeated, for all combinations",
    )
    parser.add_argument(
        "--rerun-on",
        default="config,data,code",
        metavar="WHAT",
        help="what makes a finished phase run again when it has changed: any of config, data and "
        "code, or none (default: %(default)s)",
    )


if __name__ == "__main__":
    sys.exit(main())
