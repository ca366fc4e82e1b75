"""The state of each phase, from its files, its attempt log and SLURM.

Nothing is written, and SLURM is asked once for all phases.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lensdist.utils.errors import UserError
from lensdist.utils.text import duration
from slurm import scheduler
from slurm.attempts import UNKNOWN, AttemptLog, Event
from slurm.job import Job, Target, sent_job
from slurm.monitor.progress import progress
from slurm.monitor.used import Used, used
from slurm.scheduler import JobState

HEADER = ("phase", "job", "state", "attempts", "progress", "ETA", "last val", "used", "complete")
_REASON = 40  # characters of the reason in the table; `why` shows all of it


@dataclass(frozen=True)
class PhaseStatus:
    """The state of one phase.

    Attributes:
        events: its attempt log, oldest first.
        sent: its newest `sent` event; None: it was never sent.
        job: its job file; None: never sent, or not readable.
        unreadable: why its job file cannot be read.
        slurm: SLURM's state of its job; None: SLURM does not know it.
        complete: whether its target is reached.
        damage: what is wrong with it, if it is marked complete and is not.
    """

    target: Target
    events: list[Event] = field(default_factory=list)
    sent: Event | None = None
    job: Job | None = None
    unreadable: str = ""
    slurm: JobState | None = None
    complete: bool = False
    damage: str = ""

    @property
    def by_slurm(self) -> bool:
        """Whether SLURM can have the job; a local process's id may be another job's there."""
        return self.sent is not None and (self.job is None or self.job.cluster.executor == "slurm")

    @property
    def since_sent(self) -> list[Event]:
        """The events of the newest submission, without `sent`."""
        if self.sent is None:
            return []
        # Neither the order nor the job id tells: a job may start before `sent` is logged, and each
        # attempt on this machine is a process of its own.
        where = self.sent.submission
        return [e for e in self.events if e.submission == where and e.what != "sent"]

    @property
    def last(self) -> Event | None:
        """The last event of the newest submission."""
        return self.since_sent[-1] if self.since_sent else self.sent

    @property
    def started(self) -> Event | None:
        """The newest start of the newest submission."""
        return next((e for e in reversed(self.since_sent) if e.what == "started"), None)

    @property
    def attempts(self) -> int:
        """The number of attempts, in all submissions."""
        return max((e.attempt for e in self.events), default=0)

    @property
    def _over(self) -> bool:
        """Whether it has ended in a job that other phases share."""
        last, shared = self.last, self.job is not None and self.job.together
        return bool(shared) and last is not None and last.verdict in ("done", "stop")

    @property
    def _next(self) -> bool:
        """Whether it waits in a job that runs another phase."""
        last, shared = self.last, self.job is not None and self.job.together
        runs = self.slurm is not None and self.slurm.state in scheduler.RUNNING
        return bool(shared) and runs and last is not None and last.what == "sent"

    @property
    def live(self) -> bool | None:
        """Whether it runs or will start by itself; None if this machine cannot tell."""
        if self.sent is None:
            return False
        if self.slurm is not None:
            return self.slurm.active and not self._over
        last, local = self.last, not self.by_slurm
        # After `leave`, SLURM decides, and only SLURM shows how.
        final = ("done", "stop", "leave") if local else ("done", "stop")
        if last is not None and last.what == "ended" and last.verdict in final:
            return False
        begun = [e.what for e in self.since_sent if e.what in ("started", "ended")]
        cancelled = last is not None and last.what == "cancelled"
        if local and cancelled and begun[-1:] != ["started"]:  # its launcher will not start it
            return False
        if local:  # the process of the attempt, or the launcher, which starts the next attempt
            return any(is_ours(e.job) for e in (self.sent, *self.since_sent))
        return False if scheduler.available() else None

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        if self.slurm is not None:
            return self.slurm.state in scheduler.RUNNING and not self._over and not self._next
        return bool(self.live) and self.last is not None and self.last.what in ("sent", "started")

    @property
    def failed(self) -> bool:
        """Whether it stands still until a user does something."""
        if self.complete or self.sent is None:
            return False
        stuck = self.slurm is not None and self.slurm.stuck
        return bool(self.damage) or stuck or self.live is False

    @property
    def state(self) -> tuple[str, str]:
        """The name of its state, SLURM's if SLURM has the job; and the reason."""
        last = self.last
        if self._next:
            return "PENDING", "another phase runs in its job"
        if self.slurm is not None and not self._over:
            reason = "" if self.slurm.reason == "None" else self.slurm.reason  # sacct writes None
            if last is not None and last.verdict in ("stop", "leave") and not self.slurm.active:
                reason = last.reason
            return self.slurm.state, reason
        if last is None:
            return "-", ""
        if last.what == "ended" and last.verdict in ("done", "stop", "leave"):
            return ("done", "") if last.verdict == "done" else ("stopped", last.reason)
        if self.live:
            return "running", ""
        if last.what == "cancelled":
            return "cancelled", ""
        if self.live is None:
            return ("sent" if last.what == "sent" else "running?"), ""
        return ("gone" if last.what == "sent" else "lost?"), ""


def query(targets: Sequence[Target], state: Path) -> list[PhaseStatus]:
    """Return the status of each phase."""
    return query_all([(targets, state)])[0]


def query_all(chains: Sequence[tuple[Sequence[Target], Path]]) -> list[list[PhaseStatus]]:
    """Return the status of each phase of several chains, which are targets and a state."""
    found = [
        [_with_files(_with_id(query_log(t, state), state), state) for t in targets]
        for targets, state in chains
    ]
    asked = [s.sent.job for group in found for s in group if s.sent and s.by_slurm]
    known = scheduler.states([job for job in asked if job != UNKNOWN])
    return [
        [replace(s, slurm=known.get(s.sent.job)) if s.sent and s.by_slurm else s for s in group]
        for group in found
    ]


def query_log(target: Target, state: Path) -> PhaseStatus:
    """Return a phase's status from its attempt log alone, which is quick."""
    events = AttemptLog.of(state, target.phase).events()
    sent = next((e for e in reversed(events) if e.what == "sent"), events[-1] if events else None)
    return PhaseStatus(target, events, sent)


def as_json(targets: Sequence[Target], state: Path) -> list[dict[str, Any]]:
    """Return a dict of JSON values for each phase; times in seconds."""
    return [_as_json(one, state) for one in query(targets, state)]


def table_rows(entries: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return `HEADER`, and a row for each phase of `as_json`."""
    return [HEADER, *(_row(entry) for entry in entries)]


def total_used(entries: Sequence[dict[str, Any]]) -> str:
    """Return a line about what the phases of `as_json` have used; empty if it is nothing."""
    every = [Used(entry["node_hours"], entry["gpu_hours"]) for entry in entries]
    on_cpu = sum((one for one in every if not one.gpus), Used())
    parts = [str(one) for one in (sum(every, Used()), on_cpu) if one.nodes]
    return f"used so far: {' and '.join(dict.fromkeys(parts))}" if parts else ""


def log_file(state: Path, sent: Event, node: int = 0) -> Path:
    """Return the log of a node of a job; the head node is 0."""
    return state / sent.submission / f"{sent.log or sent.job}_{node}_log.out"


def is_ours(job: str) -> bool:
    """Return whether a process with this id is a launcher, or a process that submitit started."""
    try:
        argv = Path(f"/proc/{int(job)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return any(name in argv for name in (b"submit.py", b"submitit.local", b"lensdist\0slurm\0"))


def _with_id(one: PhaseStatus, state: Path) -> PhaseStatus:
    """Return the status with the id of a job that SLURM took without an answer."""
    if one.sent is None or one.sent.job != UNKNOWN:
        return one
    phase = one.target.phase
    try:
        job = sent_job(state, one.sent, phase)
    except UserError:
        return one
    found = scheduler.sent_from(state / one.sent.submission)
    # A point of a sweep is a task of the swept phase's array; a shared job has the first's name.
    scripts = (phase, phase.partition("@")[0], *job.together[:1])
    names = (f"{job.chain}-{name}" for name in scripts)
    known = next((found[name] for name in names if name in found), None)
    return one if known is None else replace(one, sent=one.sent.model_copy(update={"job": known}))


def _with_files(one: PhaseStatus, state: Path) -> PhaseStatus:
    job, unreadable, complete, damage = None, "", False, ""
    if one.sent is not None:
        try:
            job = sent_job(state, one.sent, one.target.phase)
        except UserError as e:
            unreadable = str(e)
    try:
        complete = one.target.reached()
    except UserError as e:
        damage = str(e)
    return replace(one, job=job, unreadable=unreadable, complete=complete, damage=damage)


def used_by(one: PhaseStatus, state: Path) -> Used:
    """Return what all attempts of a phase have used."""
    jobs = {one.sent.submission: one.job} if one.sent is not None else {}

    def gpus(start: Event) -> int:
        if start.submission not in jobs:
            jobs[start.submission] = one.job
            with contextlib.suppress(UserError):  # of another version
                jobs[start.submission] = sent_job(state, start, one.target.phase)
        job = jobs[start.submission]
        return job.cluster.per_node if job is not None and job.cluster.gpus_per_node else 0

    until = time.time()
    if not one.running:  # it was lost: until its run last wrote
        try:
            until = (one.target.run / "metrics.jsonl").stat().st_mtime
        except OSError:
            until = 0.0
    return used(one.events, gpus, until)


def _as_json(one: PhaseStatus, state: Path) -> dict[str, Any]:
    word, reason = one.state
    now = progress(one.target.run) if one.target.kind == "run" else None
    hours = used_by(one, state)
    return {
        "phase": one.target.phase,
        "kind": one.target.kind,
        "run": str(one.target.run),
        "job": one.sent.job if one.sent else None,
        "state": word,
        "reason": reason,
        "nodes": list(one.started.nodes) if one.started else [],
        "attempts": one.attempts,
        "step": now.step if now else None,
        "total": now.total if now else None,
        "seconds_left": now.seconds if now and one.running and not one.complete else None,
        "score": now.score if now and now.value is not None else None,
        "value": now.value if now else None,
        "node_hours": hours.nodes,
        "gpu_hours": hours.gpus,
        "complete": one.complete,
        "damage": one.damage,
        "log": str(log_file(state, one.sent)) if one.sent else None,
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    state, reason = entry["state"], entry["reason"]
    if len(reason) > _REASON:
        reason = reason[: _REASON - 1].rstrip() + "…"
    if reason and state in ("stopped", "FAILED"):
        state = f"{state}: {reason}"
    elif reason and state in scheduler.WAITING:
        state = f"{state} ({reason})"
    left = entry["seconds_left"]
    return (
        entry["phase"],
        entry["job"] or "-",
        state,
        str(entry["attempts"] or "-"),
        "-" if entry["step"] is None else f"{entry['step']}/{entry['total']}",
        "-" if left is None else duration(left),
        f"{entry['score']} {entry['value']:.4g}" if entry["score"] else "-",
        str(Used(entry["node_hours"], entry["gpu_hours"])),
        "damaged" if entry["damage"] else "yes" if entry["complete"] else "no",
    )
