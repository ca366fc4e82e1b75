"""Advice about a phase: its cause, and the command to type."""

from __future__ import annotations

import shlex

from lensdist.config import load
from lensdist.config.schema import recorded_schema
from lensdist.utils.errors import UserError
from lensdist.utils.text import duration
from slurm import COMMAND
from slurm.attempts import REFUSED
from slurm.job_side.requeue_policy import CANCELLED
from slurm.monitor.evidence import Case, error_lines
from slurm.monitor.known_errors import (
    KINDS,
    LOST,
    REFUSALS,
    RESUME,
    SUBMIT,
    WATCH,
    Cause,
    explain_waiting,
    find_cause,
)
from slurm.monitor.urgency import QUIET, quiet_for

_LOG = 60  # lines of a log that are searched for known errors
_TOLD = 3  # excluded nodes whose reason is shown


def advise(case: Case) -> Cause:
    """Return a phase's state and the advice for it; its `pattern` is empty."""
    one, before, target = case.status, case.before, case.status.target
    if one.damage:
        means = "Put its files back; or move them away, and submit it again."
        return Cause("", means, shlex.join(["mv", str(target.run), f"{target.run}.damaged"]))
    if one.complete:
        return Cause("", "There is nothing to do for it.", "status")
    if one.unreadable:
        means = f"Its job file cannot be read: {one.unreadable.rstrip('.')}. Correct that, and ask "
        means += "again; if another version wrote it, `submit` sends the phase anew."
        return Cause("", means, "why {phase}")
    if before is not None and (before.failed or before.sent is None):
        how = "submit" if before.sent is None else f"why {before.target.phase}"
        return Cause("", f"It cannot go on before {before.target.phase} is complete.", how)
    if before is not None and _needs_resume(case):
        means = f"It no longer starts by itself. Resumed, it waits for {before.target.phase}."
        return Cause("", means, RESUME)
    if before is not None:
        return Cause("", "It starts by itself after that.", f"logs -f {before.target.phase}")
    if one.sent is None:
        return Cause("", "Nothing is wrong: send it.", "submit")
    if one.live is None:
        return Cause("", "Ask on a login node of the cluster:", "why {phase}")
    if one.running:
        return Cause("", _running(case), WATCH)
    return _waiting(case) if one.live else _ended(case)


def next_lines(case: Case, cause: Cause, options: str) -> list[str]:
    """Return the commands to type.

    Args:
        options: what the commands must repeat, such as `--chain FILE`.
    """
    settings, one = _settings(case, cause.settings), case.status
    job = one.sent.job if one.sent else ""
    if not settings:
        command = cause.command.replace("{phase}", case.phase).replace("{job}", job)
        if command.startswith(("scontrol ", "mv ")):
            return [f"Next: {command}"]
        return [f"Next: {COMMAND} {command} {options}".rstrip()]
    lines = []
    if one.live:  # the waiting job has the old settings
        lines.append(f"Next: {COMMAND} cancel {case.phase} {options}".rstrip())
    first = "Then" if lines else "Next"
    line = (one.job.submitted if one.job else "") or f"{COMMAND} submit …"
    lines.append(f"{first}, as it was submitted and with one more setting:")
    return [*lines, f"  {line} {settings}"]


def _needs_resume(case: Case) -> bool:
    """Return whether a phase that waits for another will not start after it."""
    one = case.status
    cancelled = one.last is not None and one.last.what == "cancelled"
    # `cancel` has not reached a job that is still in SLURM's queue; a local launcher reads the log.
    return one.failed or (cancelled and not (one.live and one.by_slurm))


def _running(case: Case) -> str:
    quiet = quiet_for(case.status)
    if quiet is None:
        return "Nothing seems wrong; it has not written any metrics yet."
    if quiet > QUIET:
        return f"It has written no metrics for {duration(quiet)}: see whether its log goes on."
    return f"Nothing is wrong; its last metrics are {duration(quiet)} old."


def _waiting(case: Case) -> Cause:
    slurm = case.status.slurm
    if slurm is None:  # on this machine, between two attempts
        return Cause("", "It starts again by itself, later after each further crash.", WATCH)
    found = explain_waiting(slurm.reason)
    excluded = {node: e.reason for e in case.status.since_sent for node in e.excluded}
    if excluded and slurm.reason == "BadConstraints":
        return Cause("", _too_few_nodes(excluded), RESUME)
    if case.outcomes or case.unfit:  # it waits after a crash
        return found._replace(means=f"{found.means} {_ended(case).means}")
    return found


def _too_few_nodes(excluded: dict[str, str]) -> str:
    """Return an explanation for a job that finds no nodes, after the launcher excluded some."""
    newest = [*excluded.items()][::-1]
    told = "; ".join(f"{node} ({reason.rstrip('.')})" for node, reason in newest[:_TOLD])
    rest = [node for node, _ in newest[_TOLD:]]
    more = f"; {', '.join(rest)}" if rest else ""
    return (
        f"The launcher itself has excluded {told}{more}, and SLURM has not enough other nodes. "
        "Once they are repaired, resume the phase: it then tries all nodes."
    )


def _ended(case: Case) -> Cause:
    """Return the best explanation of an attempt's end."""
    one, first = case.status, case.outcomes[0] if case.outcomes else None
    if one.last is not None and one.last.reason.startswith(REFUSED):
        means = "Correct the cluster's file, and send it again."
        return find_cause(one.last.reason, REFUSALS) or Cause("", means, SUBMIT)
    found = find_cause(f"{first.error}\n{first.traceback[-2000:]}") if first else None
    if found is None or first is None or found.weak or first.echo:
        lines = error_lines(case.log, _LOG) if case.log and case.unexplained else []
        reason = one.last.reason if one.last is not None else ""
        # A log covers all attempts: its last lines count first.
        causes = [find_cause(text) for text in (one.state[0], reason, *reversed(lines))]
        known = [cause for cause in (*causes, found) if cause is not None]
        found = next((c for c in known if not c.weak), found or next(iter(known), None))
    if found is None:
        return Cause("", _unknown(case))
    if found.anew and one.target.kind != "run":  # only a run has such settings
        first_sentence = found.means.partition(". ")[0].rstrip(".")
        return found._replace(means=f"{first_sentence}.", settings="", anew=False)
    if found.anew and case.step:
        means = f"{found.means} The run then starts again from step 0; the old one is kept."
        return found._replace(means=means)
    return found


def _unknown(case: Case) -> str:
    """Return a description of an end without a known cause."""
    last = case.status.last
    if case.unfit:
        return KINDS["shared" if all(report.shared for report in case.unfit) else "device"]
    if case.outcomes:
        return KINDS[case.outcomes[0].kind]
    if last is None or last.what != "ended":
        return LOST.get(last.what if last is not None else "", "")
    wanted = last.reason.startswith(CANCELLED)
    return KINDS.get("cancelled" if wanted else last.kind, KINDS["silent"])


def _settings(case: Case, settings: str) -> str:
    """Return settings with the numbers of this run; `N` for those that are unknown."""
    smaller = lower = more = "N"
    processes, job = 1, case.status.job
    if job is not None:
        processes = job.counts[0] * job.cluster.per_node
    if job is not None and job.cluster.mem_gb is not None:
        more = f"{2 * job.cluster.mem_gb:g}"
    try:
        config = load(case.status.target.run / "config.yaml", schema=recorded_schema)
        micro = config.train.micro(processes)
        factor = next((n for n in range(2, micro + 1) if micro % n == 0), 1)
        smaller, lower = str(micro // factor), f"{config.optim.lr / 3:.2g}"
    except UserError:
        pass
    return settings.format(phase=case.phase, smaller=smaller, lower=lower, more=more)
