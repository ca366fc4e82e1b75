"""The commands of `submit.py`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from lensdist.config.presets import FOLDER
from lensdist.utils.errors import UserError
from lensdist.utils.text import table
from slurm import scheduler
from slurm.attempts import phases_sent
from slurm.config.request import Request, phase_names, read_request
from slurm.job import Target, sent_job
from slurm.monitor.status import query_log
from slurm.plan.outdated import TRIGGERS
from slurm.plan.plan import Plan

CHAIN = (FOLDER / "chains" / "vi_a.yaml").resolve()
CLUSTER = (FOLDER / "clusters" / "local.yaml").resolve()

SUMMARIES = {
    "plan": "show what would run where, and for how long; sends nothing",
    "submit": "send the chain, or run it on this machine (executor local, debug)",
    "status": "show the state of each phase",
    "logs": "show the end of the phases' logs",
    "cancel": "cancel jobs; runs save, and are not requeued",
    "resume": "send again what has stopped, and what waits for it",
    "why": "explain on one page why a phase failed or does not run",
}


def _say(line: str) -> None:
    print(line, flush=True)


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
    return make_plan(args.chain, args.cluster, args.arguments, args.sweep, triggers)


def _plan(args: argparse.Namespace) -> None:
    from slurm.plan.render import batch_scripts, render_plan

    plan = _planned(args)
    if not args.test_only:
        print(render_plan(plan))
        return
    if plan.cluster.executor != "slurm":
        raise UserError("--test-only asks SLURM, and the cluster's executor is not slurm")
    if not scheduler.available():
        raise UserError("no sbatch here: ask on a login node of the cluster when jobs could start")
    for phase, script in batch_scripts(plan).items():
        print(f"{phase}: {scheduler.expected_start(script)}")


def _submit(args: argparse.Namespace) -> None:
    from slurm.submission.send import send

    send(_planned(args), _say, args.line)


def _status(args: argparse.Namespace) -> None:
    from slurm.monitor.status import as_json, table_rows

    targets, state = _targets(args)
    if args.json:
        print(json.dumps(as_json(targets, state), indent=2))
    else:
        print(table(table_rows(targets, state)))


def _logs(args: argparse.Namespace) -> None:
    from slurm.monitor.logs import print_logs

    targets, state = _targets(args)
    phases = [target.phase for target in targets] if phase_names(args.arguments) else []
    more = {"all_nodes": args.all_nodes, "options": _options(args)}
    print_logs(targets, state, phases, args.follow, args.lines, _say_while_read, **more)


def _cancel(args: argparse.Namespace) -> None:
    from slurm.submission.resume import cancel

    cancel(*_targets(args), _say)


def _resume(args: argparse.Namespace) -> None:
    from slurm.submission.resume import resume

    everything, state = _targets(args, narrow=False)
    resume(everything, state, phase_names(args.arguments), args.nodes, _say)


def _why(args: argparse.Namespace) -> None:
    from slurm.monitor.diagnose import first_failed, why

    targets, state = _targets(args)
    everything, _ = _targets(args, narrow=False)
    named = phase_names(args.arguments)
    asked = targets if named else [*filter(None, [first_failed(targets, state)])]
    if not asked:
        print("no phase has failed; `status` shows the state of each")
    for target in asked:
        print(why(target, state, everything, options=_options(args)))


def _options(args: argparse.Namespace) -> str:
    """Return the options that a further command about the same chain must repeat."""
    chain = [] if args.chain == CHAIN else ["--chain", str(args.chain)]
    return shlex.join([*chain, *(one for one in args.arguments if one.startswith("runs="))])


def _targets(args: argparse.Namespace, *, narrow: bool = True) -> tuple[list[Target], Path]:
    """Return the targets of the named phases (or of all), with points of sweeps; and the state."""
    request = read_request(args.chain, args.arguments)
    names = phase_names(args.arguments) if narrow else []
    sent = phases_sent(request.state)
    found: list[str] = []
    for name in request.chain.phases:
        points = [one for one in sent if one.startswith(f"{name}@")]
        # A phase that was only sent as a sweep is its points.
        found += [*([name] if name in sent or not points else []), *points]
    found += [one for one in sent if one.startswith("sweep-")]
    if names:
        found = [one for one in found if one in names or one.partition("@")[0] in names]
    return [_target(one, request) for one in found], request.state


def _target(name: str, request: Request) -> Target:
    """Return a phase's target as it was sent; if it never was, as the chain has it."""
    target = Target(phase=name, run=request.runs / name, kind="table")
    phase = request.chain.phases.get(name.partition("@")[0])
    if phase is not None and phase.evaluate is not None:
        run = request.runs / phase.evaluate
        target = Target(phase=name, run=run, kind="scores", split=phase.split)
    elif phase is not None and phase.report is None:
        target = target.model_copy(update={"kind": "run" if phase.train else "set"})
    sent = query_log(target, request.state).sent
    if sent is not None:
        with contextlib.suppress(UserError):  # a file of another version: show the rest
            return sent_job(request.state, sent, name).target
    return target


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "plan": _plan,
    "submit": _submit,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "why": _why,
}
