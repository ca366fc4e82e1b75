"""The page of `why`: why a phase failed or does not run, and what to type next."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

from lensdist.utils.text import duration, some, table
from slurm import scheduler
from slurm.attempts import Attempt
from slurm.job import Target
from slurm.monitor.advice import advise, next_lines
from slurm.monitor.evidence import Case, error_lines, killed_process, short_traceback
from slurm.monitor.known_errors import STATES, explain_exit
from slurm.monitor.progress import progress
from slurm.monitor.status import PhaseStatus, query

_WIDTH = 100
_TRACE = 12  # lines of a traceback
_LOG = 10  # lines of a log
_ATTEMPTS = 5  # lines of the table
_NAMED = 2  # nodes of an attempt that are named


def why(target: Target, state: Path, targets: Sequence[Target], *, options: str = "") -> str:
    """Return the page about one phase; only paths and commands are longer than 100 characters.

    Args:
        options: what commands about the chain must repeat, such as `--chain FILE`.
    """
    every = [*targets] if target in targets else [*targets, target]
    chain = {one.target.phase: one for one in query(every, state)}
    case = Case(chain[target.phase], chain, state)
    cause = advise(case)
    parts = [
        _head(case),
        _first_failure(case),
        _log_and_slurm(case),
        _unfit_nodes(case),
        _attempts(case),
        _where(case, anew=cause.anew),
        [*_wrapped(cause.means), *next_lines(case, cause, options)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def headline(one: PhaseStatus) -> str:
    """Return a phase's state in one sentence."""
    phase, last = one.target.phase, one.last
    if one.damage:
        return f"{phase} is marked complete, but is damaged or is another run: {one.damage}."
    if one.complete:
        return f"{phase} is complete."
    if last is None or one.sent is None:
        return f"{phase} was never sent."
    word, reason = one.state
    who = f"{phase} (job {one.sent.job}, {word}{f': {reason}' if reason and one.live else ''})"
    if one.running:
        return f"{who} runs{_progress(one)}."
    if one.live:
        return f"{who} cannot start." if one.failed else f"{who} waits."
    if one.live is None:
        return f"{who}: only SLURM knows more, and its commands are not on this machine."
    if last.what == "ended":
        said = {
            "done": f"ended as complete, but {one.target.marker()} does not exist",
            "stop": f"was stopped: {last.reason}",
            "leave": f"ended: {last.reason}",
            "requeue": f"was requeued, but its job is gone; it had ended: {last.reason}",
        }[last.verdict or "leave"]
    else:
        said = {
            "sent": "ended before its first attempt started",
            "cancelled": "was cancelled",
            "started": f"was lost in attempt {last.attempt}; its end was not logged",
        }[last.what]
    return f"{who} {said.rstrip('.')}."


def _progress(one: PhaseStatus) -> str:
    start = one.started
    if start is None:
        return ", and is about to start its first attempt"
    where = f" on {some(start.nodes, _NAMED)}" if start.nodes else ""
    now = progress(one.target.run) if one.target.kind == "run" else None
    step = f", step {now.step}/{now.total}" if now else ""
    left = f", about {duration(now.seconds)} left" if now and now.seconds is not None else ""
    return f"{where}, attempt {start.attempt}{step}{left}"


def _head(case: Case) -> list[str]:
    lines = _wrapped(headline(case.status))
    if case.before is not None:
        return lines + _wrapped(f"It needs this: {headline(case.before)}")
    slurm = case.status.slurm
    if slurm is not None and slurm.state in scheduler.WAITING:
        start = scheduler.details(slurm.job).get("StartTime", "Unknown")
        if start[:1].isdigit():
            lines.append(f"SLURM expects to start it at {start.replace('T', ' ')}.")
    last = case.status.last
    waits = case.status.live and not case.status.running
    if waits and last is not None and last.what == "ended" and not case.outcomes:
        lines += _wrapped(f"Its last attempt ended: {last.reason.rstrip('.')}.")
    return lines


def _first_failure(case: Case) -> list[str]:
    if not case.outcomes:
        return []
    first, others = case.outcomes[0], len(case.outcomes) - 1
    when = _when(first.time, "%d %b %H:%M:%S")
    did = "Noticed" if first.echo else "Failed"
    lines = [f"{did} first: process {first.rank} on {first.host}, at {when}"]
    lines += _wrapped(first.error, "  ")
    lines += [_cut(f"    {row}") for row in short_traceback(first.traceback, _TRACE)]
    if others:
        lines.append(f"  {others} more failed, later or because of it.")
    if case.missing and case.unexplained:
        who = some((f"{rank} ({host})" for rank, host in case.missing), 4)
        lines += _wrapped(f"No exit report of process {who}: killed, perhaps first.", "  ")
    return lines


def _log_and_slurm(case: Case) -> list[str]:
    lines = []
    if case.unexplained and case.log is not None:
        rows = error_lines(case.log, _LOG)
        lines = ["The end of the log:"] * bool(rows) + [_cut(f"  | {row}") for row in rows]
        killed = killed_process(case.log)
        if killed is not None:
            lines += _wrapped(f"Process {killed[0]} of that node: {explain_exit(killed[1])}.")
    slurm = case.status.slurm
    if not case.ended or slurm is None or slurm.active:
        return lines
    code = slurm.exit_code or scheduler.details(slurm.job).get("ExitCode", "")
    what = STATES.get(slurm.state) or (explain_exit(code) if case.unexplained else "")
    shown = f"{slurm.state}, exit code {code}" if code else slurm.state
    return lines + (_wrapped(f"SLURM says {shown}: {what}.") if what else [])


def _unfit_nodes(case: Case) -> list[str]:
    problems = [row for one in case.unfit for row in _wrapped(one.problem, "  ")]
    return ["Failed the check before the start:", *problems] if problems else []


def _attempts(case: Case) -> list[str]:
    if not case.past:
        return []
    pairs = [*zip_longest(case.past, case.past[1:])]
    rows = [_attempt(this, after, case) for this, after in pairs[-_ATTEMPTS:]]
    header = ("attempt", "start", "time", "nodes", "steps", "end")
    earlier = len(pairs) - len(rows)
    lines = [_cut(line) for line in table([header, *rows]).splitlines()]
    return lines + [f"({earlier} earlier)"] * (earlier > 0)


def _attempt(this: Attempt | None, after: Attempt | None, case: Case) -> tuple[str, ...]:
    assert this is not None
    start, end = this.started, this.ended
    step = end.step if end else after.started.step if after else case.step
    running = end is None and after is None and case.status.running
    unknown = after is None and case.status.live is None
    how = "runs" if running else "?" if unknown else "lost: its end was not logged"
    until = end.time if end else time.time()
    return (
        str(start.attempt),
        _when(start.time, "%d %b %H:%M"),
        duration(until - start.time) if end or running else "",
        some(start.nodes, _NAMED),
        f"{start.step} -> {step}",
        end.reason if end else how,
    )


def _where(case: Case, *, anew: bool) -> list[str]:
    lines, one = [], case.status
    if one.target.kind == "run" and case.past and one.job and not one.complete:
        goes_on = "" if anew else "; it goes on from there"
        lines = ["There is no checkpoint yet: it starts at step 0."]
        if case.step:
            lines = [f"Newest checkpoint: step {case.step}{goes_on}."]
    if case.log is not None:
        here = os.path.relpath(case.log)
        lines.append(f"Log: {case.log if here.startswith('..') else here}")
    return lines


def _when(seconds: float, form: str) -> str:
    return time.strftime(form, time.localtime(seconds))


def _wrapped(text: str, indent: str = "") -> list[str]:
    return wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cut(line: str) -> str:
    line = line.rstrip()
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
