"""What each command of `submit.py` does."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from lensdist.errors import UserError
from slurm.config.request import Request, phase_names, read_request
from slurm.job import Goal, load_job
from slurm.monitor.status import glance
from slurm.plan.outdated import TRIGGERS, Trigger
from slurm.plan.plan import ROOT, STATE, Plan, make_plan

CHAIN = ROOT / "configs" / "chains" / "vi_a.yaml"
CLUSTER = ROOT / "configs" / "clusters" / "local.yaml"

SUMMARIES = {
    "plan": "show what would run where, and for how long; sends nothing",
    "submit": "send the chain, or run it here (executor local, debug)",
    "status": "show how far each phase is",
    "logs": "show the end of the phases' logs",
    "cancel": "cancel jobs; runs save, and are not queued again",
    "resume": "send again what stopped, and heal what waits for it",
    "why": "say on one page why a phase failed, or does not run",
}


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _show(sentence: str) -> None:
    """Say it to somebody who reads on; without a reader there is nothing to follow for.

    Raises:
        BrokenPipeError: the reader has left.
    """
    _say(sentence)
    if getattr(sys.stdout, "lost", None) is not None:
        raise BrokenPipeError


def _planned(args: argparse.Namespace) -> Plan:
    return make_plan(args.chain, args.cluster, args.words, args.sweep, _triggers(args.rerun_on))


def _triggers(text: str) -> tuple[Trigger, ...]:
    asked = [] if text == "none" else text.split(",")
    for one in asked:
        if one not in TRIGGERS:
            raise UserError(f"--rerun-on {text}: {one!r} is none of {', '.join(TRIGGERS)}, none")
    return tuple(trigger for trigger in TRIGGERS if trigger in asked)


def _plan(args: argparse.Namespace) -> None:
    from slurm.plan.render import scripts, shown
    from slurm.plan.starts import starts

    plan = _planned(args)
    if args.test_only:
        if plan.cluster.executor != "slurm":
            raise UserError("--test-only asks SLURM, and the cluster's executor is none")
        for phase, answer in starts(scripts(plan)):
            print(f"{phase}: {answer}")
        return
    print(shown(plan))


def _submit(args: argparse.Namespace) -> None:
    from slurm.submission.send import send

    send(_planned(args), _say, args.line)


def _status(args: argparse.Namespace) -> None:
    from slurm.monitor.status import facts, status
    from slurm.plan.render import table

    _, goals, state = _known(args)
    if args.json:
        print(json.dumps(facts(goals, state), indent=2))
    else:
        print(table(status(goals, state)))


def _logs(args: argparse.Namespace) -> None:
    from slurm.monitor.logs import logs

    _, goals, state = _known(args)
    named = bool(phase_names(args.words))
    phases = [goal.phase for goal in goals] if named else []
    more = {"all_nodes": args.all_nodes, "options": _options(args)}
    logs(goals, state, phases, args.follow, args.lines, _show, **more)


def _cancel(args: argparse.Namespace) -> None:
    from slurm.submission.resume import cancel

    _, goals, state = _known(args)
    cancel(goals, state, _say)


def _resume(args: argparse.Namespace) -> None:
    from slurm.submission.resume import resume

    everything = _known(args, narrow=False)
    names = phase_names(args.words)
    resume(everything[1], everything[2], names, args.nodes, _say)


def _why(args: argparse.Namespace) -> None:
    from slurm.monitor.diagnose import first_failed, why

    _, goals, state = _known(args)
    _, everything, _ = _known(args, narrow=False)
    named = phase_names(args.words)
    asked = goals if named else list(filter(None, [first_failed(goals, state)]))
    if not asked:
        print("no phase has failed; `status` shows how far each is")
    for goal in asked:
        print(why(goal, state, everything, options=_options(args)))


def _options(args: argparse.Namespace) -> str:
    """What must be said again in a command about the same chain."""
    chain = [] if args.chain == CHAIN else ["--chain", str(args.chain)]
    return shlex.join([*chain, *(word for word in args.words if word.startswith("runs="))])


def _known(args: argparse.Namespace, *, narrow: bool = True) -> tuple[Request, list[Goal], Path]:
    """The phases that are asked about (all of the chain, unless narrowed), points included."""
    request = read_request(args.chain, args.words)
    state = request.runs / STATE
    names = phase_names(args.words) if narrow else []
    sent = sorted(file.stem for file in (state / "ledger").glob("*.jsonl"))
    goals = []
    for name in request.chain.phases:
        points = [one for one in sent if one.startswith(f"{name}@")]
        # A phase that was swept, and never sent alone, is its points.
        own = [name] if name in sent or not points else []
        goals += [_goal(one, request, state) for one in [*own, *points]]
    goals += [_goal(one, request, state) for one in sent if one.startswith("sweep-")]
    if names:
        goals = [g for g in goals if g.phase in names or g.phase.partition("@")[0] in names]
    return request, goals, state


def _goal(name: str, request: Request, state: Path) -> Goal:
    """As it was sent; of a phase that never was, as the chain has it."""
    planned = _planned_goal(name, request)
    sent = glance(planned, state).sent
    if sent is not None:
        with contextlib.suppress(UserError):  # of another version: what it shows is not lost
            return load_job(state / sent.submission / f"{name}.json").goal
    return planned


def _planned_goal(name: str, request: Request) -> Goal:
    phase = request.chain.phases.get(name.partition("@")[0])
    if phase is None:
        return Goal(phase=name, run=request.runs / name, kind="table")
    if phase.evaluate is not None:
        run = request.runs / phase.evaluate
        return Goal(phase=name, run=run, kind="scores", split=phase.split)
    kinds = {"train": "run", "report": "table", "simulate": "set", "pack": "set"}
    return Goal.model_validate(
        {"phase": name, "run": request.runs / name, "kind": kinds[phase.kind]}
    )


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "plan": _plan,
    "submit": _submit,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "why": _why,
}
