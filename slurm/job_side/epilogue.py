"""End an attempt, on the job's head node: decide what follows, log it, and requeue.

The batch script runs this after srun, in one process, so a job is requeued exactly once. All tasks
have ended by then, unless srun itself was killed. Such tasks may still save; an attempt that starts
in the meantime finds the run's folder locked and waits.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from lensdist.utils import outcome
from lensdist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, RunError, UserError, refusal
from lensdist.utils.outcome import Outcome
from slurm import scheduler
from slurm.attempts import Event, attempts
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT
from slurm.job_side.node_health import bad_nodes, silent_nodes
from slurm.job_side.requeue_policy import Decision, End, decide
from slurm.monitor.logs import last_lines
from slurm.submission import snapshot
from slurm.submission.takeover import take_over

_LOG_END = 400  # lines of a log
# slurmstepd's line about a job; that about a step is not certain to come.
_ENDED = re.compile(r"error: \*\*\* JOB .+ CANCELLED AT ")


def end_attempt(
    job: Job,
    job_id: str,
    attempt: int,
    code: int,
    state: str,
    *,
    requeued: bool,
    preempted: bool = False,
) -> Decision:
    """Decide what follows, and log it. The caller requeues the job.

    Args:
        job_id: SLURM's job id, or the local process's id.
        code: exit code of the job's steps.
        state: SLURM's state of the job; RUNNING without SLURM.
        requeued: whether SLURM has requeued the job already.
        preempted: whether SLURM gives its nodes to others.
    """
    events, folder = job.attempt_log.events(), job.outcome_folder(attempt)
    past = [
        a
        for a in attempts(events)
        if a.started.attempt < attempt and a.started.submission == job.folder.name
    ]
    start = next(e for e in events if e.what == "started" and e.attempt == attempt)
    try:
        reached, damage = job.target.reached(), None
    except UserError as e:
        reached, damage = False, e
    outcomes, bad = outcome.read(folder), bad_nodes(folder)
    # A problem that other nodes of the attempt do not have is the node's own, whatever it is.
    alone = len({report.host for report in bad}) < len(start.nodes)
    unfit = {report.host: report.problem for report in bad if not report.shared or alone}
    if state == "RUNNING" and not preempted and not bad:  # else they may have had no time
        heard = {one.host for one in outcomes}
        for host in silent_nodes(folder, start.nodes):
            if host not in heard:
                unfit.setdefault(host, f"{host} left no report of its check, though others did")
    end = End(
        reached=reached,
        code=code,
        outcomes=outcomes,
        unfit=unfit,
        shared={report.host: report.problem for report in bad if report.shared and not alone},
        before=start.step,
        now=job.step(),
        nodes=len(start.nodes),
        missing=without_outcome(job, start.nodes, outcomes),
        state=state,
        requeued=requeued,
        cancelled=_cancelled(events, attempt),
        preempted=preempted,
    )
    decision = decide(end, past, job.cluster.requeue)
    if decision.verdict == "requeue":
        try:
            snapshot.verify(job.code, job.state)
        except UserError as e:
            damage = damage or e
        if damage is not None:
            decision = Decision("stop", str(damage), "failed")
    job.log(
        "ended",
        job_id,
        attempt=attempt,
        step=end.now,
        verdict=decision.verdict,
        reason=decision.reason,
        excluded=decision.exclude,
        kind=decision.kind,
    )
    return decision


def excluded(job: Job) -> list[str]:
    """Return the nodes that this submission of the phase no longer uses."""
    found = {*job.cluster.exclude}
    for event in job.attempt_log.events():
        if event.submission == job.folder.name:
            found |= {*event.excluded}
    return sorted(found)


def without_outcome(
    job: Job, nodes: Sequence[str], outcomes: Sequence[Outcome]
) -> list[tuple[int, str]]:
    """Return rank and host of the training processes that left no exit report, though others did.

    `nodes` are the attempt's, in the order of their numbers.
    """
    if not outcomes or job.target.kind != "run":
        return []
    each, there = job.cluster.per_node, {one.rank for one in outcomes}
    ranks = [(n * each + i, host) for n, host in enumerate(nodes) for i in range(each)]
    return [(rank, host) for rank, host in ranks if rank not in there]


def describe(phase: str, decision: Decision) -> str:
    """Return a line for the log: the event, and the decision."""
    follows = ""
    if decision.verdict == "requeue":
        follows = f"; requeued{f' in {decision.delay:.0f} s' if decision.delay else ''}"
        follows += f", without {', '.join(decision.exclude)}" if decision.exclude else ""
    elif decision.verdict == "stop":
        follows = f"; stopped: `why {phase}` says more"
    return f"{phase}: {decision.reason}{follows}"


def _state(details: dict[str, str], *, preempted: bool) -> str:
    """Return the job's state; until this script ends, SLURM itself reports COMPLETING."""
    state = details.get("JobState", "RUNNING")
    if state == "COMPLETING":
        if details.get("Reason") == "TimeLimit":
            return "TIMEOUT"
        return "PREEMPTED" if preempted else "CANCELLED"
    return "RUNNING" if state == "SIGNALING" else state


def _is_preempted(details: dict[str, str], log: Path) -> bool:
    """Return whether SLURM gives the job's nodes to others, and nobody has cancelled it since.

    During the grace of a preemption a user may cancel it; then only the log tells who ended it.
    """
    if details.get("PreemptTime", "None") in ("None", "N/A"):
        return details.get("JobState") == "PREEMPTED"
    ends = [line for line in last_lines(log, _LOG_END) if _ENDED.search(line)]
    return not ends or "DUE TO PREEMPTION" in ends[-1]


def _cancelled(events: list[Event], attempt: int) -> bool:
    cancelled = False
    for event in events:
        if event.what == "started" and event.attempt == attempt:
            cancelled = False
        elif event.what == "cancelled":
            cancelled = True
    return cancelled


def main(path: str, code: int) -> int:
    """End an attempt in a batch script, after its steps; return the job's exit code."""
    try:
        job, attempt = load_job(Path(path)), int(os.environ[ATTEMPT])
        raw, job_id = os.environ["SLURM_JOB_ID"], scheduler.own_id(os.environ)
        details = scheduler.details(raw)
        before = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        requeued = int(details.get("Restarts", before)) != before
        preempted = _is_preempted(details, job.folder / f"{job_id}_0_log.out")
        decision = end_attempt(
            job,
            job_id,
            attempt,
            code,
            _state(details, preempted=preempted),
            requeued=requeued,
            preempted=preempted,
        )
        _say(describe(job.target.phase, decision))
        if decision.verdict == "requeue":
            _requeue(job, raw, job_id, attempt, decision)
    except (UserError, RunError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as e:  # a full disk has no room for the attempt log either
        _say(f"error: the end of the attempt cannot be logged: {refusal(e) or e}")
        with contextlib.suppress(RunError):
            scheduler.note(os.environ["SLURM_JOB_ID"], f"lensdist: stopped: {refusal(e) or e}")
        return EXIT_FAILED
    if decision.verdict == "done":
        return EXIT_DONE
    return EXIT_FAILED if decision.verdict == "stop" else EXIT_REQUEUE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _requeue(job: Job, raw: str, job_id: str, attempt: int, decision: Decision) -> None:
    """Have SLURM queue the job again, or send another in its place.

    Raises:
        RunError: SLURM did neither, which is logged.
    """
    try:
        scheduler.requeue(raw)
    except RunError as e:
        try:
            # Without taking a turn: no command sends this phase while its job has not ended.
            take_over(job, excluded(job), decision.delay, _say)
            return
        except RunError as other:
            reason = f"{decision.reason}; SLURM did not requeue it: {e}; nor take another: {other}"
        job.log("ended", job_id, attempt=attempt, step=job.step(), verdict="stop", reason=reason)
        raise
    try:
        scheduler.change(raw, excluded(job), decision.delay)
    except RunError as e:  # the job is in the queue; only its nodes and its start are not as wanted
        _say(f"warning: {e}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
