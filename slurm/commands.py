"""The commands of `submit.py`."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Callable

from lensdist.utils.errors import RunError, UserError
from lensdist.utils.text import table
from slurm import scheduler
from slurm.config.request import phase_names
from slurm.config.source import CHAIN, Source, chain_source, cluster_file, there
from slurm.config.sweep import without_limit
from slurm.monitor.find import Found, SeveralSentError, find_sent
from slurm.plan.outdated import TRIGGERS
from slurm.plan.plan import Plan, missing_inputs

SUMMARIES = {
    "plan": "show what would run where, and for how long; sends nothing",
    "submit": "send the chain, or run it on this machine (executor local, debug)",
    "status": "show the state of each phase",
    "logs": "show the end of the phases' logs",
    "cancel": "cancel jobs; runs save, and are not requeued",
    "resume": "send again what has stopped, and what waits for it",
    "why": "explain on one page why a phase failed or does not run",
    "chains": "list the chains that were sent from this machine, and where they stand",
}


def _say(line: str) -> None:
    print(line, flush=True)


def _warn(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_while_read(line: str) -> None:
    _say(line)
    if getattr(sys.stdout, "lost", None) is not None:  # the reader of `logs -f | head` has ended
        raise BrokenPipeError


def _planned(args: argparse.Namespace) -> Plan:
    from slurm.plan.builder import make_plan

    given = [] if args.rerun_on == "none" else args.rerun_on.split(",")
    for one in {*given} - {*TRIGGERS}:
        choices = ", ".join((*TRIGGERS, "none"))
        raise UserError(f"--rerun-on {args.rerun_on}: {one!r} is not one of {choices}")
    triggers = tuple(trigger for trigger in TRIGGERS if trigger in given)
    source, words = chain_source(args.chain, args.config, args.arguments)
    if args.chain is not None and source is not None and source.file is not None:
        there(source.file, "chains")
    sweeps, limit = without_limit(args.sweep)
    at_once = args.at_once if args.at_once is not None else limit
    words += [] if at_once is None else [f"cluster.at_once={at_once}"]
    cluster = cluster_file(args.cluster, submits=args.command == "submit")
    return make_plan(source or Source(CHAIN), cluster, words, sweeps, triggers)


def _plan(args: argparse.Namespace) -> None:
    from slurm.plan.render import batch_scripts, render_plan

    plan = _planned(args)
    for lost in missing_inputs(plan):
        _warn(f"warning: {lost}")
    if not args.test_only:
        print(render_plan(plan))
        return
    if plan.cluster.executor != "slurm":
        raise UserError("--test-only asks SLURM, and the cluster's executor is not slurm")
    if not scheduler.available():
        raise UserError("no sbatch here: ask on a login node of the cluster when jobs could start")
    refused: dict[str, list[str]] = {}  # most often all phases, for the same reason
    for phase, script in batch_scripts(plan).items():
        answer = scheduler.expected_start(script)
        if answer.startswith("refused: "):
            refused.setdefault(answer, []).append(phase)
        else:
            _say(f"{phase}: {answer}")
    for answer, phases in refused.items():
        if "invalid partition" in answer.lower():
            file = args.cluster or "the cluster's file"
            answer += f"; set partition in {file} (`sinfo` lists them)"
        _say(f"{', '.join(phases)}: {answer}")
    if refused:
        raise RunError(f"SLURM would refuse {', '.join(itertools.chain(*refused.values()))}")


def _submit(args: argparse.Namespace) -> None:
    from slurm.submission.send import send

    plan = _planned(args)
    lost = missing_inputs(plan)
    own_files = plan.cluster.container or any("container" in flag for flag in plan.cluster.srun)
    if lost and not args.data_on_nodes and not own_files:
        remedy = "correct it, or add --data-on-nodes if only the nodes see it"
        raise UserError("\n".join(f"{one}; {remedy}" for one in lost))
    for one in lost:
        _warn(f"warning: {one}")
    send(plan, _say, args.line)


def _status(args: argparse.Namespace) -> None:
    from slurm.monitor.status import as_json, table_rows, total_used

    found = _found(args)
    entries = as_json(found.targets, found.state)
    if args.json:
        print(json.dumps(entries, indent=2))
        return
    print(table(table_rows(entries)))
    if used := total_used(entries):
        print(used)


def _logs(args: argparse.Namespace) -> None:
    from slurm.monitor.logs import print_logs

    found = _found(args)
    phases = [target.phase for target in found.targets] if _named(args) else []
    more = {"all_nodes": args.all_nodes, "options": shlex.join(found.options)}
    print_logs(found.targets, found.state, phases, args.follow, args.lines, _say_while_read, **more)


def _cancel(args: argparse.Namespace) -> None:
    from slurm.submission.resume import cancel

    found = _found(args)
    cancel(found.targets, found.state, _say)


def _resume(args: argparse.Namespace) -> None:
    from slurm.submission.resume import resume

    found = _found(args)
    resume(found.everything, found.state, _named(args), args.nodes, _say)


def _why(args: argparse.Namespace) -> None:
    from slurm.monitor.diagnose import why
    from slurm.monitor.urgency import neediest

    found = _found(args)
    first = neediest(found.targets, found.state)
    asked = found.targets if _named(args) else [*filter(None, [first])]
    if not asked:
        print("no phase that was sent needs anything; `status` shows the state of each")
    for target in asked:
        print(why(target, found.state, found.everything, options=shlex.join(found.options)))


def _chains(args: argparse.Namespace) -> None:
    from slurm.monitor.chains import as_json, table_rows

    if args.json:
        print(json.dumps(as_json(_warn), indent=2))
    else:
        print(table(table_rows(_warn)))


def _named(args: argparse.Namespace) -> list[str]:
    """Return the names of phases on the command line."""
    return phase_names(chain_source(args.chain, args.config, args.arguments)[1])


def _found(args: argparse.Namespace) -> Found:
    source, words = chain_source(args.chain, args.config, args.arguments)
    try:
        return find_sent(source, words, _warn, changes=args.command in ("cancel", "resume"))
    except SeveralSentError as e:
        raise UserError(f"{e}, as in `{args.line} {e.first}`") from e


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "plan": _plan,
    "submit": _submit,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "why": _why,
    "chains": _chains,
}
