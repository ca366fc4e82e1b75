"""How a chain stands: from the files of its runs, from its ledger and from SLURM's own word.

Nothing is written here, and SLURM is asked once for all phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from lensdist.config import load
from lensdist.config.schema import BaseRun, ClassifierRun, MaeRun, schema_of
from lensdist.errors import UserError
from lensdist.track.log import read
from slurm import scheduler
from slurm.attempts import Event, Ledger
from slurm.job import Goal, Job, load_job
from slurm.scheduler import JobState

_SKEW = 60  # s that clocks of one cluster may differ
HEADER = ("phase", "job", "state", "attempts", "progress", "ETA", "last val", "complete")
_RECENT = 5  # rows of training that the pace is taken from
_REASON = 40  # characters of the reason in the table; `why` has all of it


@dataclass(frozen=True)
class Seen:
    """One phase, as it stands now.

    Attributes:
        goal: the phase.
        events: its ledger, oldest first.
        sent: the newest sending; None: it was never sent.
        job: its file; None: never sent, or not readable.
        unreadable: why its file cannot be read, and what to do.
        slurm: what SLURM says of it; None: nothing, or it runs without SLURM.
        complete: whether its goal is reached.
        damage: what is wrong with it, where it says that it is finished and is not.
    """

    goal: Goal
    events: list[Event] = field(default_factory=list)
    sent: Event | None = None
    job: Job | None = None
    unreadable: str = ""
    slurm: JobState | None = None
    complete: bool = False
    damage: str = ""

    @property
    def by_slurm(self) -> bool:
        """Whether SLURM can know the job; the number of a local one is another's in SLURM."""
        return self.sent is not None and (self.job is None or self.job.cluster.executor == "slurm")

    @property
    def mine(self) -> list[Event]:
        """What happened since the newest sending."""
        if self.sent is None:
            return []
        # By the submission, not by order or job: a job may have started before its sending was
        # written down, and here every attempt is a process of its own.
        where = self.sent.submission
        return [e for e in self.events if e.submission == where and e.what != "sent"]

    @property
    def last(self) -> Event | None:
        """The last thing that happened to the newest sending."""
        return self.mine[-1] if self.mine else self.sent

    @property
    def attempts(self) -> int:
        """How often it was started, in all sendings."""
        return max((e.attempt for e in self.events), default=0)

    @property
    def live(self) -> bool | None:
        """Whether something may still come of it by itself; None: it cannot be told here."""
        if self.sent is None:
            return False
        if self.slurm is not None:
            return self.slurm.active
        last, here = self.last, not self.by_slurm
        # Where a job is left to SLURM, only SLURM knows.
        final = ("done", "stop", "leave") if here else ("done", "stop")
        if last is not None and last.what == "ended" and last.verdict in final:
            return False
        begun = [e.what for e in self.mine if e.what in ("started", "ended")]
        cancelled = last is not None and last.what == "cancelled"
        if here and cancelled and begun[-1:] != ["started"]:  # its launcher will not start it
            return False
        if here:  # the process of the attempt, or the launcher, which waits for the next
            return any(is_ours(e.job) for e in (self.sent, *self.mine))
        return False if scheduler.available() else None

    @property
    def runs(self) -> bool:
        """Whether it is at work now."""
        if self.slurm is not None:
            return self.slurm.state in scheduler.RUNNING
        return bool(self.live) and self.last is not None and self.last.what in ("sent", "started")

    @property
    def failed(self) -> bool:
        """Whether it stands still until somebody does something."""
        if self.complete or self.sent is None:
            return False
        stuck = self.slurm is not None and self.slurm.stuck
        return bool(self.damage) or stuck or self.live is False

    @property
    def state(self) -> tuple[str, str]:
        """In a word, and why: SLURM's word where it has one; the ledger knows best why it ended."""
        last = self.last
        if self.slurm is not None:
            reason = "" if self.slurm.reason == "None" else self.slurm.reason  # sacct's word
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


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: of the last row of training.
        total: steps of the whole run; fewer if it stops early.
        seconds: that the rest takes at the pace of the last rows, validations included; a stage
            that trains more than this one is slower.
        score: name of what chooses the best checkpoint.
        value: of it, at the last validation.
    """

    step: int
    total: int
    seconds: float | None
    score: str
    value: float | None


def look(goals: Sequence[Goal], state: Path) -> list[Seen]:
    """Each phase as it stands.

    Args:
        goals: the phases, in the chain's order.
        state: the launcher's folder.
    """
    found = [_with_files(glance(goal, state), state) for goal in goals]
    asked = {s.goal.phase: s.sent.job for s in found if s.sent is not None and s.by_slurm}
    known = scheduler.states(list(asked.values()))
    return [replace(s, slurm=known.get(asked.get(s.goal.phase, ""))) for s in found]


def glance(goal: Goal, state: Path) -> Seen:
    """What the ledger alone says: cheap enough to ask again and again."""
    events = Ledger(state / "ledger" / f"{goal.phase}.jsonl").events()
    sent = next((e for e in reversed(events) if e.what == "sent"), events[-1] if events else None)
    return Seen(goal, events, sent)


def facts(goals: Sequence[Goal], state: Path) -> list[dict[str, Any]]:
    """What `status` shows, as numbers: a dict for each phase, of what JSON knows; times in s."""
    return [_facts(seen, state) for seen in look(goals, state)]


def status(goals: Sequence[Goal], state: Path) -> list[tuple[str, ...]]:
    """`HEADER`, and a row for each phase."""
    return [HEADER, *(_row(fact) for fact in facts(goals, state))]


def progress(run: Path) -> Progress | None:
    """How far a run of training is; None before its first row."""
    try:
        config = load(run / "config.yaml", schema=schema_of)
    except UserError:  # not there yet, or of another version
        return None
    rows = read(run / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    if not train:
        return None
    val = next((row for row in reversed(rows) if row["kind"] == "val"), {})
    step = train[-1]["step"]
    # The number of images is the data's; the run's own epoch says what it comes to.
    per_epoch = max(1, round(step / train[-1]["epoch"]))
    total = config.train.max_steps or per_epoch * config.train.epochs
    seconds = None
    rates = [row["images_per_s"] for row in train[-_RECENT:] if row.get("images_per_s")]
    if rates:
        between = max(1, round(config.train.eval_every_epochs * per_epoch))
        pace = config.train.global_batch / median(rates) + (val.get("seconds") or 0) / between
        seconds = max(0, total - step) * pace
    name = _chosen_by(config)
    return Progress(step, total, seconds, name, val.get(name))


def log_file(state: Path, sent: Event, node: int = 0) -> Path:
    """Where a node of a sending writes; the head node is 0."""
    return state / sent.submission / f"{sent.job}_{node}_log.out"


def duration(seconds: float) -> str:
    """As people say it: 40 s, 3 min, 2:10 h, 3 d 4 h; `clock set back` of less than nothing.

    Times of several machines, or from before a clock was set, are no measure of what took how long.
    """
    whole = round(seconds)
    if whole < 0:
        return "0 s" if whole >= -_SKEW else "? (clock set back)"
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if hours < 1:
        return f"{minutes} min"
    return f"{hours}:{minutes % 60:02d} h" if days < 2 else f"{days} d {hours % 24} h"


def _with_files(seen: Seen, state: Path) -> Seen:
    job, unreadable, complete, damage = None, "", False, ""
    if seen.sent is not None:
        try:
            job = load_job(state / seen.sent.submission / f"{seen.goal.phase}.json")
        except UserError as e:
            unreadable = str(e)
    try:
        complete = seen.goal.reached()
    except UserError as e:
        damage = str(e)
    return replace(seen, job=job, unreadable=unreadable, complete=complete, damage=damage)


def is_ours(job: str) -> bool:
    """Whether a process of this number is a launcher, or what submitit started for one."""
    try:
        words = Path(f"/proc/{int(job)}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
    return b"submit.py" in words or b"submitit.local" in words


def _chosen_by(config: BaseRun) -> str:
    """The score of a row of validation that chooses the best checkpoint."""
    if isinstance(config, ClassifierRun):
        return {"auc": "auc_macro"}.get(config.select, config.select)
    if isinstance(config, MaeRun):
        return "mse_masked" if config.loss == "masked" else "mse"
    return "error"


def _facts(seen: Seen, state: Path) -> dict[str, Any]:
    word, reason = seen.state
    now = progress(seen.goal.run) if seen.goal.kind == "run" else None
    last = next((e for e in reversed(seen.mine) if e.what == "started"), None)
    return {
        "phase": seen.goal.phase,
        "kind": seen.goal.kind,
        "run": str(seen.goal.run),
        "job": seen.sent.job if seen.sent else None,
        "state": word,
        "reason": reason,
        "nodes": list(last.nodes) if last else [],
        "attempts": seen.attempts,
        "step": now.step if now else None,
        "total": now.total if now else None,
        "seconds_left": now.seconds if now and seen.runs and not seen.complete else None,
        "score": now.score if now and now.value is not None else None,
        "value": now.value if now else None,
        "complete": seen.complete,
        "damage": seen.damage,
        "log": str(log_file(state, seen.sent)) if seen.sent else None,
    }


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    state, reason = fact["state"], fact["reason"]
    if len(reason) > _REASON:
        reason = reason[: _REASON - 1].rstrip() + "…"
    if reason and state in ("stopped", "FAILED"):
        state = f"{state}: {reason}"
    elif reason and state in scheduler.WAITING:
        state = f"{state} ({reason})"
    left = fact["seconds_left"]
    return (
        fact["phase"],
        fact["job"] or "-",
        state,
        str(fact["attempts"] or "-"),
        "-" if fact["step"] is None else f"{fact['step']}/{fact['total']}",
        "-" if left is None else duration(left),
        f"{fact['score']} {fact['value']:.4g}" if fact["score"] else "-",
        "damaged" if fact["damage"] else "yes" if fact["complete"] else "no",
    )
