"""After an attempt, once in a job, on its head node: is the phase complete, and what now.

The batch script runs this once srun has ended, and one process alone decides: a job is queued again
exactly once. All tasks have ended then, unless srun itself was killed: such tasks may still save,
and the next attempt, if it comes before they end, finds the run's folder busy and waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lensdist import outcome
from lensdist.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, RunError, UserError
from lensdist.outcome import Outcome
from slurm import scheduler
from slurm.attempts import Event, Ledger, attempts
from slurm.job import Job, load_job
from slurm.job_side.command import ATTEMPT
from slurm.job_side.node_health import bad_nodes
from slurm.job_side.requeue_policy import Decision, End, judge
from slurm.submission import snapshot


def settle(job: Job, job_id: str, attempt: int, code: int, state: str, *, again: bool) -> Decision:
    """Decide what follows, and write it down. Queueing again is the caller's.

    Args:
        job: the phase.
        job_id: SLURM's, or the local process's.
        attempt: its number.
        code: exit code of its steps.
        state: what SLURM calls the job now; RUNNING where there is no SLURM.
        again: whether SLURM has queued the job again already.
    """
    ledger, folder = Ledger(job.ledger), job.words_of(attempt)
    events = ledger.events()
    past = [
        a
        for a in attempts(events)
        if a.started.attempt < attempt and a.started.submission == job.folder.name
    ]
    start = next(e for e in events if e.what == "started" and e.attempt == attempt)
    try:
        reached, damage = job.goal.reached(), None
    except UserError as e:
        reached, damage = False, e
    words, bad = outcome.read(folder), bad_nodes(folder)
    # What others of the same attempt do not have is a node's own, whatever it is.
    alone = len({report.host for report in bad}) < len(start.nodes)
    end = End(
        reached=reached,
        code=code,
        words=words,
        unfit={report.host: report.problem for report in bad if not report.shared or alone},
        shared={report.host: report.problem for report in bad if report.shared and not alone},
        before=start.step,
        now=job.step(),
        nodes=len(start.nodes),
        missing=silent(job, start.nodes, words),
        state=state,
        restarted=again,
        cancelled=_cancelled(events, attempt),
    )
    decision = judge(end, past, job.cluster.requeue)
    if decision.verdict == "requeue":
        try:
            snapshot.check(job.code, job.state)
        except UserError as e:
            damage = damage or e
        if damage is not None:
            decision = Decision("stop", str(damage), "failed")
    ledger.append(
        "ended",
        job_id,
        job.folder.name,
        attempt=attempt,
        step=end.now,
        verdict=decision.verdict,
        reason=decision.reason,
        excluded=decision.exclude,
        kind=decision.kind,
    )
    return decision


def excluded(job: Job) -> list[str]:
    """All nodes that this submission of the phase is to keep away from; another tries them anew."""
    found = {*job.cluster.exclude}
    for event in Ledger(job.ledger).events():
        if event.submission == job.folder.name:
            found |= {*event.excluded}
    return sorted(found)


def silent(job: Job, nodes: Sequence[str], words: Sequence[Outcome]) -> list[tuple[int, str]]:
    """Rank and host of a training's processes that left no word, though others of it did.

    Args:
        job: the phase.
        nodes: that the attempt ran on, in the order of their numbers.
        words: that were left in it.
    """
    if not words or job.goal.kind != "run":
        return []
    each, there = job.cluster.per_node, {word.rank for word in words}
    places = [(n * each + i, host) for n, host in enumerate(nodes) for i in range(each)]
    return [(rank, host) for rank, host in places if rank not in there]


def sentence(phase: str, decision: Decision) -> str:
    """For the log: what happened, and what will."""
    follows = {
        "done": "",
        "leave": "",
        "requeue": f"; queued again{f' in {decision.delay:.0f} s' if decision.delay else ''}"
        + (f", without {', '.join(decision.exclude)}" if decision.exclude else ""),
        "stop": f"; given up: `python slurm/submit.py why {phase}` says more",
    }
    return f"{phase}: {decision.reason}{follows[decision.verdict]}"


def _state(known: dict[str, str]) -> str:
    """What SLURM calls the job, which is COMPLETING until this script ends, whatever ends it."""
    state = known.get("JobState", "RUNNING")
    if state == "COMPLETING":
        return "TIMEOUT" if known.get("Reason") == "TimeLimit" else "CANCELLED"
    return "RUNNING" if state == "SIGNALING" else state


def _cancelled(events: list[Event], attempt: int) -> bool:
    cancelled = False
    for event in events:
        if event.what == "started" and event.attempt == attempt:
            cancelled = False
        elif event.what == "cancelled":
            cancelled = True
    return cancelled


def main(path: str, code: int) -> int:
    """In a batch script, with the exit code of its steps; returns the job's own."""
    try:
        job, attempt = load_job(Path(path)), int(os.environ[ATTEMPT])
        raw, job_id = os.environ["SLURM_JOB_ID"], scheduler.own_id(os.environ)
        known = scheduler.details(raw)
        before = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        again = int(known.get("Restarts", before)) != before
        decision = settle(job, job_id, attempt, code, _state(known), again=again)
        print(sentence(job.goal.phase, decision), file=sys.stderr, flush=True)
        if decision.verdict == "requeue":
            _requeue(job, raw, job_id, attempt, decision)
    except (UserError, RunError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_FAILED
    if decision.verdict == "done":
        return EXIT_DONE
    return EXIT_FAILED if decision.verdict == "stop" else EXIT_REQUEUE


def _requeue(job: Job, raw: str, job_id: str, attempt: int, decision: Decision) -> None:
    try:
        scheduler.requeue(raw)
    except RunError as e:
        ended = {"verdict": "stop", "reason": f"{decision.reason}; SLURM refused to queue it: {e}"}
        Ledger(job.ledger).append(
            "ended", job_id, job.folder.name, attempt=attempt, step=job.step(), **ended
        )
        raise
    try:
        scheduler.change(raw, excluded(job), decision.delay)
    except RunError as e:  # it is queued: only where and when are left to SLURM
        print(f"warning: {e}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
