"""The decision after an attempt: a pure function of how it ended and of the attempts before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lensdist.utils.outcome import Outcome
from slurm.attempts import Attempt, Verdict
from slurm.config.cluster import Requeue

CANCELLED = "cancelled"
"""First word of the reason if a user cancelled the phase."""

PREEMPTED = "preempted"
"""First word of the reason if jobs of higher priority took the nodes."""

EXIT_FULL = 74
"""Exit code of a node's task if a process failed and found no room for its report (EX_IOERR)."""

_LONGEST = 3600  # s between two attempts
# Errors that the same images on the same device cause again.
_PERMANENT = ("OutOfMemoryError", "torch.OutOfMemoryError")


@dataclass(frozen=True)
class End:
    """The facts at the end of an attempt.

    Attributes:
        reached: whether the phase is complete.
        code: exit code of the job's steps.
        outcomes: exit reports of its processes, the first failure in front.
        unfit: nodes that failed their check for a reason of their own, with the reason.
        shared: nodes that failed it for a reason that other nodes may meet too.
        before: step of the newest checkpoint when the attempt started.
        now: the same at its end.
        nodes: number of its nodes.
        missing: rank and host of processes that left no exit report, though others did.
        state: SLURM's state of the job; RUNNING without SLURM.
        requeued: whether SLURM has requeued the job already.
        cancelled: whether somebody has cancelled the phase.
        preempted: whether jobs of higher priority take, or have taken, the nodes.
    """

    reached: bool
    code: int
    outcomes: Sequence[Outcome] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    before: int = 0
    now: int = 0
    nodes: int = 1
    missing: Sequence[tuple[int, str]] = ()
    state: str = "RUNNING"
    requeued: bool = False
    cancelled: bool = False
    preempted: bool = False


@dataclass(frozen=True)
class Decision:
    """The next action.

    Attributes:
        verdict: done; requeue; leave (SLURM or a user has decided already); stop.
        reason: why, in a sentence.
        kind: kind of the end as in `lensdist.utils.outcome`; silent without any exit report.
        delay: seconds before the next attempt.
        exclude: nodes not to use again.
    """

    verdict: Verdict
    reason: str
    kind: str
    delay: float = 0
    exclude: tuple[str, ...] = ()


def decide(end: End, past: Sequence[Attempt], policy: Requeue) -> Decision:
    """Decide what follows an attempt.

    Args:
        past: the attempts before it, since the phase was sent.
    """
    kind, reason = _what_happened(end)
    if end.reached:
        return Decision("done", "complete", "done")
    if end.requeued:
        return Decision("leave", f"SLURM has requeued it itself; {reason}", kind)
    if end.cancelled or end.state == "CANCELLED":
        saved = f"; saved at step {end.now}" if kind == "saved" else ""
        return Decision("leave", f"{CANCELLED}{saved}", kind)
    if end.state not in ("RUNNING", "TIMEOUT", "PREEMPTED"):
        return Decision("leave", f"ended by SLURM ({end.state}); {reason}", kind)
    if kind in ("input", "failed") or reason.startswith(_PERMANENT):
        return Decision("stop", reason, kind)

    exclude = tuple(sorted({*end.unfit, *(o.host for o in end.outcomes if o.kind == "device")}))
    if len(exclude) == end.nodes > 1:
        exclude = ()  # the check itself is probably wrong, and would fail on other nodes too
    if len(past) >= policy.limit:
        count = f"attempt {len(past) + 1} since it was sent, the last allowed"
        return Decision("stop", f"{count}; {reason}", kind)
    if end.preempted:
        saved = f"saved at step {end.now}" if kind == "saved" else f"at step {end.now}; {reason}"
        return Decision("requeue", f"{PREEMPTED}; {saved}", kind)
    if kind == "saved" and end.now > end.before:
        return Decision("requeue", reason, kind)
    fruitless = _fruitless(past) + 1 if end.now == end.before else 0
    if fruitless >= policy.crashes:
        times = f"{fruitless} attempts in a row" if fruitless > 1 else "the attempt"
        return Decision("stop", f"{times} ended without a new checkpoint; {reason}", kind)
    # No pause if an unfit node is excluded: the next attempt uses other nodes.
    elsewhere = exclude and not end.shared
    delay = 0 if elsewhere else min(policy.backoff * 2 ** max(0, fruitless - 1), _LONGEST)
    return Decision("requeue", reason, kind, delay, exclude)


def _what_happened(end: End) -> tuple[str, str]:
    """Return the kind of the end, and a sentence about it."""
    unfit = end.unfit or end.shared
    if unfit:
        return "device", f"node check failed: {min(unfit.items())[1]}"
    if end.code == EXIT_FULL and not end.outcomes:
        return "failed", (
            "No space left for the run's files, not even for its report (the log may have it): the "
            "disk, or your quota, is full"
        )
    if end.outcomes and (end.outcomes[0].bad or end.code != 0):
        first = end.outcomes[0]
        if first.kind == "saved":
            return "saved", f"asked to stop, and saved at step {end.now}"
        if first.kind == "crashed" and end.missing:
            rank, host = end.missing[0]
            return "silent", (
                f"process {rank} on {host} left no exit report, as if killed; then process "
                f"{first.rank} on {first.host}: {first.error}"
            )
        if first.bad:
            return first.kind, f"{first.error} (process {first.rank} on {first.host})"
    if end.code == 0:
        return "silent", "ended with code 0, but is not complete"
    return "silent", f"ended with code {end.code}, without an exit report"


def _fruitless(past: Sequence[Attempt]) -> int:
    """Count the attempts just before this one that failed without a new checkpoint.

    Attempts that SLURM ended (a lost node, preemption) do not count.
    """
    count = 0
    for attempt in reversed(past):
        if attempt.ended is None or attempt.ended.verdict == "leave":
            continue
        if attempt.ended.reason.startswith(PREEMPTED):
            continue
        if attempt.ended.step > attempt.started.step or attempt.ended.verdict != "requeue":
            break
        count += 1
    return count
