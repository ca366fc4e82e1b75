#!/usr/bin/env python3
"""Plan a chain of phases, send it to SLURM or run it here, and see how it stands.

    python slurm/submit.py plan
    python slurm/submit.py submit --cluster configs/clusters/slurm-gpu.yaml data.path=packed seed=1
    python slurm/submit.py status

Exit codes: 0 done; 1 failure; 2 bad configuration or input, nothing was sent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `slurm` is not installed: it is used from a clone, from anywhere

from lensdist.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, RunError, UserError  # noqa: E402
from slurm.plan import make_plan  # noqa: E402

COMMANDS = {
    "plan": "show what would run where; sends nothing",
    "submit": "send the chain, or run it here (executor local, debug)",
    "status": "show how far each phase is",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        _ACTIONS[args.command](args)
    except UserError as e:
        for line in str(e).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunError as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python slurm/submit.py", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        one = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        one.add_argument(
            "words",
            nargs="*",
            metavar="phase|key=value",
            help="phases (default: all); settings: key=value for every training phase, "
            "PHASE.key=value for one, cluster.key=value, runs=FOLDER",
        )
        configs = ROOT / "configs"
        for what, default in (("chain", "vi_a"), ("cluster", "local")):
            one.add_argument(
                f"--{what}",
                type=Path,
                metavar="FILE",
                default=configs / f"{what}s" / f"{default}.yaml",
                help=f"default: configs/{what}s/{default}.yaml",
            )
    return parser


def _plan(args: argparse.Namespace) -> None:
    from slurm.showing import shown

    print(shown(make_plan(args.chain, args.cluster, args.words)))


def _submit(args: argparse.Namespace) -> None:
    from slurm.sending import send

    plan = make_plan(args.chain, args.cluster, args.words)
    send(plan, lambda sentence: print(sentence, flush=True))


def _status(args: argparse.Namespace) -> None:
    from slurm.showing import table
    from slurm.watching import status

    print(table(status(args.chain, args.words)))


_ACTIONS = {"plan": _plan, "submit": _submit, "status": _status}


if __name__ == "__main__":
    sys.exit(main())
