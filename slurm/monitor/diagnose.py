"""Why a phase failed, or does not run, and what to type next: one page."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

from slurm import scheduler
from slurm.attempts import Attempt
from slurm.job import Goal
from slurm.monitor.advice import advise, next_lines
from slurm.monitor.evidence import Case, killed, meaningful, trace
from slurm.monitor.known_errors import STATES, why_exit
from slurm.monitor.status import Seen, duration, look, progress
from slurm.plan.render import table

_WIDTH = 100
_TRACE = 12  # lines of a traceback
_LOG = 10  # lines of a log
_ATTEMPTS = 5  # lines of the table
_NAMED = 2  # nodes of an attempt that are named


def first_failed(goals: Sequence[Goal], state: Path) -> Goal | None:
    """The first phase that stands still until somebody does something; None: there is none."""
    return next((seen.goal for seen in look(goals, state) if seen.failed), None)


def why(goal: Goal, state: Path, goals: Sequence[Goal], *, options: str = "") -> str:
    """The page about one phase; only paths and commands are longer than 100 characters.

    Args:
        goal: the phase.
        state: the launcher's folder.
        goals: all phases of the chain, in order.
        options: what the user's commands have to say again, such as `--chain FILE`.
    """
    every = [*goals] if goal in goals else [*goals, goal]
    chain = {seen.goal.phase: seen for seen in look(every, state)}
    case = Case(chain[goal.phase], chain, state)
    cause = advise(case)
    parts = [
        _head(case),
        _first(case),
        _witnesses(case),
        _nodes(case),
        _attempts(case),
        _place(case, anew=cause.anew),
        [*_wrapped(cause.means), *next_lines(case, cause, options)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def headline(seen: Seen) -> str:
    """What became of a phase, in a sentence."""
    phase, last = seen.goal.phase, seen.last
    if seen.damage:
        return f"{phase} is marked complete, but it is damaged, or is another run: {seen.damage}."
    if seen.complete:
        return f"{phase} is complete."
    if last is None or seen.sent is None:
        return f"{phase} was never sent."
    word, reason = seen.state
    who = f"{phase} (job {seen.sent.job}, {word}{f': {reason}' if reason and seen.live else ''})"
    if seen.runs:
        return f"{who} runs{_doing(seen)}."
    if seen.live:
        return f"{who} cannot start." if seen.failed else f"{who} waits."
    if seen.live is None:
        return f"{who}: only SLURM knows more, and its commands are not on this machine."
    if last.what == "ended":
        said = {
            "done": f"says that it is done, but {seen.goal.marker()} is not there",
            "stop": f"was given up: {last.reason}",
            "leave": f"ended: {last.reason}",
            "requeue": f"was to start again, but its job is gone; it had ended: {last.reason}",
        }[last.verdict or "leave"]
    else:
        said = {
            "sent": "ended before its first attempt began",
            "cancelled": "was cancelled",
            "started": f"was lost in attempt {last.attempt}, whose end nobody could write down",
        }[last.what]
    return f"{who} {said.rstrip('.')}."


def _doing(seen: Seen) -> str:
    start = next((e for e in reversed(seen.mine) if e.what == "started"), None)
    if start is None:
        return ", and is about to begin its first attempt"
    where = f" on {_few(start.nodes)}" if start.nodes else ""
    now = progress(seen.goal.run) if seen.goal.kind == "run" else None
    step = f", step {now.step}/{now.total}" if now else ""
    left = f", about {duration(now.seconds)} left" if now and now.seconds is not None else ""
    return f"{where}, attempt {start.attempt}{step}{left}"


def _head(case: Case) -> list[str]:
    lines = _wrapped(headline(case.seen))
    if case.before is not None:
        return lines + _wrapped(f"It needs this: {headline(case.before)}")
    slurm = case.seen.slurm
    if slurm is not None and slurm.state in scheduler.WAITING:
        start = scheduler.details(slurm.job).get("StartTime", "Unknown")
        if start[:1].isdigit():
            lines.append(f"SLURM expects to start it at {start.replace('T', ' ')}.")
    return lines


def _first(case: Case) -> list[str]:
    words, silent = case.evidence.words, case.evidence.silent
    if not words:
        return []
    first, others = words[0], len(words) - 1
    when = _when(first.time, "%d %b %H:%M:%S")
    did = "Noticed" if first.echo else "Failed"
    lines = [f"{did} first: process {first.rank} on {first.host}, at {when}"]
    lines += _wrapped(first.error, "  ")
    lines += [_cut(f"    {row}") for row in trace(first.traceback, _TRACE)]
    if others:
        lines.append(f"  {others} more ended badly, later or because of it.")
    if silent and case.open:
        who = ", ".join(f"{rank} ({host})" for rank, host in silent[:4])
        more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
        lines += _wrapped(f"No word from process {who}{more}: killed, perhaps first.", "  ")
    return lines


def _witnesses(case: Case) -> list[str]:
    """The log and SLURM, where the processes do not say enough."""
    lines = []
    if case.open and case.log is not None:
        rows = meaningful(case.log, _LOG)
        lines = ["The end of the log:"] * bool(rows) + [_cut(f"  | {row}") for row in rows]
        dead = killed(case.log)
        if dead is not None:
            lines += _wrapped(f"Process {dead[0]} of that node: {why_exit(dead[1])}.")
    slurm = case.seen.slurm
    if not case.ended or slurm is None or slurm.active:
        return lines
    code = slurm.exit_code or scheduler.details(slurm.job).get("ExitCode", "")
    what = STATES.get(slurm.state) or (why_exit(code) if case.open else "")
    shown = f"{slurm.state}, exit code {code}" if code else slurm.state
    return lines + (_wrapped(f"SLURM says {shown}: {what}.") if what else [])


def _nodes(case: Case) -> list[str]:
    problems = [row for one in case.evidence.nodes for row in _wrapped(one.problem, "  ")]
    return ["Not fit, by the check before the start:", *problems] if problems else []


def _attempts(case: Case) -> list[str]:
    if not case.past:
        return []
    pairs = [*zip_longest(case.past, case.past[1:])]
    rows = [_attempt(this, after, case) for this, after in pairs[-_ATTEMPTS:]]
    header = ("attempt", "began", "took", "nodes", "steps", "ended")
    earlier = len(pairs) - len(rows)
    lines = [_cut(line) for line in table([header, *rows]).splitlines()]
    return lines + [f"({earlier} earlier)"] * (earlier > 0)


def _attempt(this: Attempt | None, after: Attempt | None, case: Case) -> tuple[str, ...]:
    assert this is not None
    start, end = this.started, this.ended
    step = end.step if end else after.started.step if after else case.step
    running = end is None and after is None and case.seen.runs
    unknown = after is None and case.seen.live is None
    how = "runs" if running else "?" if unknown else "lost: nobody could write its end down"
    until = end.time if end else time.time()
    return (
        str(start.attempt),
        _when(start.time, "%d %b %H:%M"),
        duration(until - start.time) if end or running else "",
        _few(start.nodes),
        f"{start.step} -> {step}",
        end.reason if end else how,
    )


def _place(case: Case, *, anew: bool) -> list[str]:
    lines = []
    if case.seen.goal.kind == "run" and case.past and case.seen.job and not case.seen.complete:
        goes_on = "" if anew else "; it goes on from there"
        lines = ["There is no checkpoint yet: it begins at step 0."]
        if case.step:
            lines = [f"Newest checkpoint: step {case.step}{goes_on}."]
    return lines + ([f"Log: {_near(case.log)}"] if case.log is not None else [])


def _few(nodes: Sequence[str]) -> str:
    more = len(nodes) - _NAMED
    return ", ".join(nodes[:_NAMED]) + (f" +{more}" if more > 0 else "")


def _near(path: Path) -> str:
    """As one can type it from here."""
    here = os.path.relpath(path)
    return str(path) if here.startswith("..") else here


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
