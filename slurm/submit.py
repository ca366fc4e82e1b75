#!/usr/bin/env python3
"""Send a chain of phases to SLURM, or run it on this machine, and watch it.

    python slurm/submit.py plan   --cluster mine.yaml data.path=packed
    python slurm/submit.py submit --cluster mine.yaml data.path=packed seed=1
    python slurm/submit.py submit common/best --cluster mine.yaml data.path=packed
    python slurm/submit.py status
    python slurm/submit.py logs -f pretrain
    python slurm/submit.py why
    python slurm/submit.py resume finetune
    python slurm/submit.py chains

With an installed lensdist the same is `lensdist slurm plan`, and so on.

Exit codes: 0 done; 1 failure; 2 bad configuration or input, nothing was sent.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # A clone need not be installed, and works from any folder.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensdist.utils import signals

if __name__ == "__main__":
    signals.begin(trains=False)  # before the imports, which take a second

from lensdist.utils.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, RunError, UserError
from lensdist.utils.streams import output_lost, tolerant
from slurm import commands

PROGRAM = "python slurm/submit.py"


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run a command, and return its exit code."""
    with tolerant():
        return _main(sys.argv[1:] if argv is None else argv, program)


def _main(argv: Sequence[str], program: str) -> int:
    parser = _parser(program)
    # Options may stand between arguments, which argparse does not allow in sub-commands.
    args, rest = parser.parse_known_args(argv)
    unknown = [one for one in rest if one.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.arguments += rest
    args.line = f"{program} {shlex.join(argv)}"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nothing is left half sent
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
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
        if args.command == "logs":  # the usual end of `logs -f`
            return EXIT_DONE
        resumes = args.command in ("submit", "resume")
        more = "; run the same command to go on" if resumes else ""
        print(f"interrupted{more}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _parser(program: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    text = (__doc__ or "").replace(PROGRAM, program)
    parser = argparse.ArgumentParser(prog=program, description=text, formatter_class=raw)
    found = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in commands.SUMMARIES.items():
        one = found.add_parser(name, help=summary, description=summary.capitalize() + ".")
        plans = name in ("plan", "submit")
        words = "preset|phase|key=value"
        one.add_argument("arguments", nargs="*", metavar=words, help=_help(plans))
        text = "the chain: a file, or a name such as debug; default: "
        text += "vi_a" if plans else "the one that was sent last from here"
        one.add_argument("--chain", metavar="FILE", help=text)
        text = "one training configuration, in place of a chain"
        one.add_argument("--config", type=Path, metavar="FILE", help=text)
        text = "the cluster: a file, or a name such as local; default: this machine"
        one.add_argument("--cluster", metavar="FILE", help=text)
        if plans:
            one.add_argument(
                "--sweep",
                action="append",
                default=[],
                metavar="key=v1,v2[%N]",
                help="run once for each value, as a job array (N tasks of it at once), and make a "
                "table; several --sweep: for all combinations",
            )
            text = "points of the sweep that may run at once, as %%N in --sweep (default: all)"
            one.add_argument("--at-once", type=int, metavar="N", help=text)
            one.add_argument(
                "--rerun-on",
                default="config,data,code",
                metavar="WHAT",
                help="changes after which a finished phase runs again: config, data, code, or none "
                "(default: %(default)s)",
            )
        if name == "submit":
            text = "send although data.path does not exist on this machine"
            one.add_argument("--data-on-nodes", action="store_true", help=text)
        elif name == "plan":
            text = "only ask SLURM when each job would start"
            one.add_argument("--test-only", action="store_true", help=text)
        elif name in ("status", "chains"):
            one.add_argument("--json", action="store_true", help="print JSON")
        elif name == "logs":
            one.add_argument("-f", "--follow", action="store_true", help="until the phases end")
            text = "number of lines of each log (default: 50)"
            one.add_argument("-n", "--lines", type=int, default=50, help=text)
            one.add_argument("--all-nodes", action="store_true", help="not only the first node")
        elif name == "resume":
            text = "use another number of nodes; the samples keep their order"
            one.add_argument("--nodes", metavar="N|MIN-MAX", help=text)
    return parser


def _help(plans: bool) -> str:
    if plans:
        return (
            "a preset such as common/best, in place of a chain; phases (default: all); settings: "
            "key=value for every training phase, PHASE.key=value for one, cluster.key=value, "
            "runs=FOLDER"
        )
    return (
        "a preset that was sent; phases (default: all); runs=FOLDER; no other settings and no "
        "--cluster are needed"
    )


if __name__ == "__main__":
    sys.exit(main())
