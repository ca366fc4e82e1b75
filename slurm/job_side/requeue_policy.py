"""What follows from the end of an attempt: nothing here but the decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lensdist.outcome import Outcome
from slurm.attempts import Attempt, Verdict
from slurm.config.cluster import Requeue

CANCELLED = "cancelled"
"""Begins the reason of an end that somebody wanted."""

_LONGEST = 3600  # s between two attempts
# What the same images on the same device will do again.
_HOPELESS = ("OutOfMemoryError", "torch.OutOfMemoryError")


@dataclass(frozen=True)
class End:
    """What is known when an attempt has ended.

    Attributes:
        reached: whether the phase is complete.
        code: exit code of the attempt.
        words: what its processes said, the first bad one in front.
        unfit: nodes that did not pass their check for a reason of their own, and that reason.
        shared: nodes that did not, for a reason that other nodes may meet too.
        before: step of the newest checkpoint when the attempt began.
        now: the same at its end.
        nodes: how many it ran on.
        missing: rank and host of processes that left no word, though others did.
        state: what SLURM calls the job at this moment; RUNNING where it has no say.
        restarted: whether SLURM has already queued the job again.
        cancelled: whether somebody has cancelled the phase.
    """

    reached: bool
    code: int
    words: Sequence[Outcome] = ()
    unfit: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    before: int = 0
    now: int = 0
    nodes: int = 1
    missing: Sequence[tuple[int, str]] = ()
    state: str = "RUNNING"
    restarted: bool = False
    cancelled: bool = False


@dataclass(frozen=True)
class Decision:
    """What is to be done.

    Attributes:
        verdict: done; requeue (by us); leave (SLURM, or whoever cancelled, has decided); stop.
        reason: why, in a sentence.
        kind: of the end, as `lensdist.outcome` has it; silent where no process left a word.
        delay: seconds before the next attempt.
        exclude: nodes not to be used again.
    """

    verdict: Verdict
    reason: str
    kind: str
    delay: float = 0
    exclude: tuple[str, ...] = ()


def judge(end: End, past: Sequence[Attempt], policy: Requeue) -> Decision:
    """Decide, once for every end.

    Args:
        end: of this attempt.
        past: the attempts before it since the phase was sent.
        policy: of the cluster.
    """
    kind, reason = _what_happened(end)
    if end.reached:
        return Decision("done", "complete", "done")
    if end.restarted:
        return Decision("leave", f"SLURM has queued it again itself; {reason}", kind)
    if end.cancelled or end.state == "CANCELLED":
        saved = f"; saved at step {end.now}" if kind == "saved" else ""
        return Decision("leave", f"{CANCELLED}{saved}", kind)
    if end.state not in ("RUNNING", "TIMEOUT"):
        return Decision("leave", f"ended by SLURM ({end.state}); {reason}", kind)
    if kind in ("input", "failed") or reason.startswith(_HOPELESS):
        return Decision("stop", reason, kind)

    exclude = tuple(sorted({*end.unfit, *(w.host for w in end.words if w.kind == "device")}))
    if len(exclude) == end.nodes > 1:
        exclude = ()  # the centre's command is wrong, say: other nodes would fare no better
    if len(past) >= policy.limit:
        count = f"attempt {len(past) + 1} since it was sent, the last allowed"
        return Decision("stop", f"{count}; {reason}", kind)
    if kind == "saved" and end.now > end.before:
        return Decision("requeue", reason, kind)
    fruitless = _fruitless(past) + 1 if end.now == end.before else 0
    if fruitless >= policy.crashes:
        times = f"{fruitless} attempts in a row" if fruitless > 1 else "the attempt"
        return Decision("stop", f"{times} ended without a new checkpoint; {reason}", kind)
    # An unfit node is not waited for: the next attempt runs elsewhere.
    elsewhere = exclude and not end.shared
    delay = 0 if elsewhere else min(policy.backoff * 2 ** max(0, fruitless - 1), _LONGEST)
    return Decision("requeue", reason, kind, delay, exclude)


def _what_happened(end: End) -> tuple[str, str]:
    unfit = end.unfit or end.shared
    if unfit:
        return "device", f"not fit: {min(unfit.items())[1]}"
    if end.words and (end.words[0].bad or end.code != 0):
        first = end.words[0]
        if first.kind == "saved":
            return "saved", f"asked to stop, and saved at step {end.now}"
        if first.kind == "crashed" and end.missing:
            rank, host = end.missing[0]
            return "silent", (
                f"process {rank} on {host} ended without a word, as if killed; then process "
                f"{first.rank} on {first.host}: {first.error}"
            )
        if first.bad:
            return first.kind, f"{first.error} (process {first.rank} on {first.host})"
    if end.code == 0:
        return "silent", "ended with code 0, but is not complete"
    return "silent", f"ended with code {end.code}, without a word of why"


def _fruitless(past: Sequence[Attempt]) -> int:
    """Attempts just before this one that ended badly where they began.

    What SLURM took away (a lost node, preemption) has no end of its own, and is nobody's fault.
    """
    count = 0
    for attempt in reversed(past):
        if attempt.ended is None or attempt.ended.verdict == "leave":
            continue
        if attempt.ended.step > attempt.started.step or attempt.ended.verdict != "requeue":
            break
        count += 1
    return count
