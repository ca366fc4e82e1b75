"""What to do about a phase, and what to type next."""

from __future__ import annotations

import shlex
import time

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.errors import UserError
from slurm.job_side.requeue_policy import CANCELLED
from slurm.monitor.evidence import Case, meaningful
from slurm.monitor.known_errors import KINDS, LOST, RESUME, WATCH, Cause, known, why_waiting
from slurm.monitor.status import duration

_LAUNCHER = "python slurm/submit.py"
_QUIET = 1800  # s without a row of metrics after which a run may hang
_LOOKED_AT = 60  # lines of a log that say something, searched for causes
_TOLD = 3  # nodes left out whose reason is told


def advise(case: Case) -> Cause:
    """What a phase's state means, and what is to be done; its `pattern` says nothing."""
    seen, before, goal = case.seen, case.before, case.seen.goal
    if seen.damage:
        means = "Put its files back; or move them away, and submit it again."
        return Cause("", means, shlex.join(["mv", str(goal.run), f"{goal.run}.damaged"]))
    if seen.complete:
        return Cause("", "There is nothing to do for it.", "status")
    if seen.unreadable:
        means = f"Its file cannot be read: {seen.unreadable.rstrip('.')}. Mend that, then ask again"
        return Cause("", f"{means}; what another version sent, `submit` sends anew.", "why {phase}")
    if before is not None and (before.failed or before.sent is None):
        how = "submit" if before.sent is None else f"why {before.goal.phase}"
        return Cause("", f"It cannot go on before {before.goal.phase} is complete.", how)
    if before is not None and _needs_sending(case):
        means = (
            f"It does not start by itself any more. Sent again, it waits for {before.goal.phase}."
        )
        return Cause("", means, RESUME)
    if before is not None:
        return Cause("", "It starts by itself after that.", f"logs -f {before.goal.phase}")
    if seen.sent is None:
        return Cause("", "Nothing is wrong: send it.", "submit")
    if seen.live is None:
        return Cause("", "Ask on a login node of the cluster:", "why {phase}")
    if seen.runs:
        return Cause("", _pace(case), WATCH)
    return _waiting(case) if seen.live else _end(case)


def next_lines(case: Case, cause: Cause, options: str) -> list[str]:
    """The commands to type.

    Args:
        case: the phase.
        cause: what to do.
        options: what the user's commands have to say again.
    """
    settings, seen = _settings(case, cause.settings), case.seen
    job = seen.sent.job if seen.sent else ""
    if not settings:
        command = cause.command.replace("{phase}", case.phase).replace("{job}", job)
        if command.startswith(("scontrol ", "mv ")):
            return [f"Next: {command}"]
        return [f"Next: {_LAUNCHER} {command} {options}".rstrip()]
    lines = []
    if seen.live:  # what waits with the old settings would be in the way
        lines.append(f"Next: {_LAUNCHER} cancel {case.phase} {options}".rstrip())
    first = "Then" if lines else "Next"
    line = (seen.job.submitted if seen.job else "") or f"{_LAUNCHER} submit …"
    lines.append(f"{first}, as it was submitted and with one setting more:")
    return [*lines, f"  {line} {settings}"]


def _needs_sending(case: Case) -> bool:
    """Whether a phase that waits for another will not start after it."""
    seen = case.seen
    cancelled = seen.last is not None and seen.last.what == "cancelled"
    # What SLURM still has in the queue, `cancel` has not reached; a launcher here reads the word.
    return seen.failed or (cancelled and not (seen.live and seen.by_slurm))


def _pace(case: Case) -> str:
    try:
        quiet = time.time() - (case.seen.goal.run / "metrics.jsonl").stat().st_mtime
    except OSError:
        return "Nothing seems wrong; it has not written any numbers yet."
    if quiet > _QUIET:
        return f"It has written no numbers for {duration(quiet)}: look whether its log goes on."
    return f"Nothing is wrong; its last numbers are {duration(quiet)} old."


def _waiting(case: Case) -> Cause:
    if case.seen.slurm is None:  # here, between two attempts
        return Cause("", "It starts again by itself, later after each crash in a row.", WATCH)
    found = why_waiting(case.seen.slurm.reason)
    left_out = {node: e.reason for e in case.seen.mine for node in e.excluded}
    if left_out and case.seen.slurm.reason == "BadConstraints":
        return Cause("", _too_few(left_out), RESUME)
    if case.evidence.words or case.evidence.nodes:  # it waits after a crash
        return found._replace(means=f"{found.means} {_end(case).means}")
    return found


def _too_few(left_out: dict[str, str]) -> str:
    """Of a job that SLURM finds no nodes for: those left out by the launcher, the newest first."""
    newest = [*left_out.items()][::-1]
    told = "; ".join(f"{node} ({reason.rstrip('.')})" for node, reason in newest[:_TOLD])
    rest = [node for node, _ in newest[_TOLD:]]
    more = f"; {', '.join(rest)}" if rest else ""
    return (
        f"The launcher itself has left out {told}{more}, and SLURM has not enough other nodes. "
        "Once they are mended, send it again: it then tries all nodes."
    )


def _end(case: Case) -> Cause:
    """Of an attempt's end: the best that any of the witnesses knows."""
    words, last = case.evidence.words, case.seen.last
    told = known(f"{words[0].error}\n{words[0].traceback[-2000:]}") if words else None
    if told is None or told.weak or words[0].echo:
        lines = meaningful(case.log, _LOOKED_AT) if case.log and case.open else []
        reason = last.reason if last is not None else ""
        # A log is of all attempts: what it said last counts.
        said = [known(text) for text in (case.seen.state[0], reason, *reversed(lines))]
        found = [cause for cause in (*said, told) if cause is not None]
        told = next((c for c in found if not c.weak), told or next(iter(found), None))
    if told is None:
        told = Cause("", _unknown(case))
    if told.anew:
        if case.seen.goal.kind != "run":  # it has no such settings
            first = told.means.partition(". ")[0].rstrip(".")
            return told._replace(means=f"{first}.", settings="", anew=False)
        if case.step:
            kept = "That begins the run anew, with the old one kept aside."
            return told._replace(means=f"{told.means} {kept}")
    return told


def _unknown(case: Case) -> str:
    """What can be said of an end of no known cause."""
    words, last = case.evidence.words, case.seen.last
    if case.evidence.nodes:
        shared = all(report.shared for report in case.evidence.nodes)
        return KINDS["shared" if shared else "device"]
    if words:
        return KINDS[words[0].kind]
    if last is None or last.what != "ended":
        return LOST.get(last.what if last is not None else "", "")
    wanted = last.verdict == "leave" and last.reason.startswith(CANCELLED)
    return KINDS.get("cancelled" if wanted else last.kind, KINDS["silent"])


def _settings(case: Case, settings: str) -> str:
    """With the numbers of this run; `N` where they are not known."""
    smaller = lower = more = "N"
    processes, job = 1, case.seen.job
    if job is not None:
        processes = job.counts[0] * job.cluster.per_node
    if job is not None and job.cluster.mem_gb is not None:
        more = f"{2 * job.cluster.mem_gb:g}"
    try:
        config = load(case.seen.goal.run / "config.yaml", schema=schema_of)
        micro = config.train.micro(processes)
        factor = next((n for n in range(2, micro + 1) if micro % n == 0), 1)
        smaller, lower = str(micro // factor), f"{config.optim.lr / 3:.2g}"
    except UserError:
        pass
    return settings.format(phase=case.phase, smaller=smaller, lower=lower, more=more)
