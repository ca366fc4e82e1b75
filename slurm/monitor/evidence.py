"""What a phase left behind: its processes' words, its nodes' checks, its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lensdist import outcome
from lensdist.outcome import Outcome
from slurm.attempts import Attempt, Event, attempts
from slurm.job import Job
from slurm.job_side.epilogue import silent
from slurm.job_side.node_health import Report, bad_nodes
from slurm.monitor.logs import last_lines
from slurm.monitor.status import Seen, log_file

_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)$')
_FOREIGN = re.compile(r"/(site|dist)-packages/|/lib(64)?/python3|<frozen |<string>")
_CAUSED = re.compile(r"\n\nThe above exception was the direct cause of .+\n\n")
_DURING = re.compile(r"\n\nDuring handling of the above exception, .+\n\n")
_LOOKED_AT = 400  # lines of a log, from its end
# How torch's launcher tells of a process that a signal ended.
_KILLED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # a terminal's colours
_STAMP = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ \S+\] ")  # of torch's own log
# Frames of libraries, and what launchers draw around an error: nobody's error.
_LIBRARY = re.compile(
    r'  File "(?:<frozen |[^"\n]*(?:site|dist)-packages)[^\n]*\n(?:    [^\n]*\n)*'
)
_NOISE = re.compile(
    r"^\W*$|^submitit (INFO|WARNING)|^Traceback \(most recent|torch[/.]distributed[/.](elastic|run)"
    r"|^(Root Cause|Failures:|Other Failures|<NO_OTHER_FAILURES>|\[\d+\]:$)|\.py FAILED$"
    r"|^  (time|host|rank|exitcode|error_file|traceback) *:|Job step aborted: Waiting up to"
    r"|^step +\d+/\d+ "
)


@dataclass(frozen=True)
class Evidence:
    """Of one attempt.

    Attributes:
        words: of the processes that ended badly, the first in front.
        silent: processes that left no word though others did: rank and node.
        nodes: reports of those that did not pass the check.
    """

    words: list[Outcome] = field(default_factory=list)
    silent: list[tuple[int, str]] = field(default_factory=list)
    nodes: list[Report] = field(default_factory=list)


class Case:
    """One phase of a chain, and what speaks of it; read when asked for.

    Args:
        seen: the phase.
        chain: all phases, by name, in order.
        state: the launcher's folder.
    """

    def __init__(self, seen: Seen, chain: Mapping[str, Seen], state: Path) -> None:
        self.seen = seen
        self.phase = seen.goal.phase
        self._chain, self._state = chain, state

    @cached_property
    def before(self) -> Seen | None:
        """The phase that this one waits for, or because of which it stands still."""
        return _before(self.seen, self._chain)

    @cached_property
    def past(self) -> list[Attempt]:
        """All its attempts."""
        return attempts(self.seen.events)

    @cached_property
    def ended(self) -> bool:
        """Whether an end is to be explained: it stands still, or waits after an attempt."""
        seen = self.seen
        if seen.complete or seen.damage or seen.runs or self.before or seen.sent is None:
            return False
        last = seen.mine[-1] if seen.mine else None
        bad = last is not None and last.what == "ended" and last.kind not in ("saved", "done")
        return seen.live is False or bad

    @cached_property
    def evidence(self) -> Evidence:
        """Of the newest attempt, where its end is to be explained."""
        # Not of an attempt before the phase was sent again.
        mine = self.ended and any(e.what == "started" for e in self.seen.mine)
        if not mine:
            return Evidence()
        return gather(self._state, self.phase, self.past[-1].started, self.seen.job)

    @cached_property
    def log(self) -> Path | None:
        """The newest log: of the head node, or of the node whose process left no word."""
        if self.seen.sent is None:
            return None
        node, silent = 0, self.evidence.silent
        if silent and self.open:
            node = self.past[-1].started.nodes.index(silent[0][1])
        file = log_file(self._state, self.seen.sent, node)
        return file if file.exists() else None

    @cached_property
    def open(self) -> bool:
        """Whether the processes' own words leave it open what happened."""
        words = self.evidence.words
        told = bool(words) and not words[0].echo
        return self.ended and not told and not self.evidence.nodes

    @cached_property
    def step(self) -> int:
        """Of the newest checkpoint."""
        return self.seen.job.step() if self.seen.job else 0


def gather(state: Path, phase: str, started: Event, job: Job | None) -> Evidence:
    """All that is left of an attempt.

    Args:
        state: the launcher's folder.
        phase: its name.
        started: the attempt's beginning.
        job: its file, which says how many processes a node had; None: not known.
    """
    folder = state / started.submission / "attempts" / f"{phase}-{started.attempt}"
    words = outcome.read(folder)
    missing = silent(job, started.nodes, words) if job is not None else []
    return Evidence([word for word in words if word.bad], missing, bad_nodes(folder))


def trace(text: str, lines: int) -> list[str]:
    """A traceback in a line a frame, outermost first; libraries' frames are left out first.

    Args:
        text: as Python prints it.
        lines: at most so many.
    """
    *_, block = _DURING.split(text)  # what was raised last is what ended the process
    *causes, block = _CAUSED.split(block)
    rows, frames = block.splitlines(), []
    for row, code in zip(rows, [*rows[1:], ""], strict=False):
        found = _FRAME.match(row)
        if found:
            line = f":  {code.strip()}" if code.startswith("    ") else ""
            frames.append((found[1], f"{_short(found[1])}:{found[2]} in {found[3]}{line}"))
    said = [f"because of {causes[-1].splitlines()[-1]}"] if causes else []
    return _fitted(frames, max(1, lines - len(said))) + said


def meaningful(log: Path, lines: int) -> list[str]:
    """The last lines of a log that say something of what went wrong; none where there is no log."""
    text = "\n".join(last_lines(log, _LOOKED_AT)) + "\n"
    kept = [
        line
        for line in _LIBRARY.sub("", text).splitlines()
        if _KILLED.search(line) or not _NOISE.search(line)
    ]
    return [_printable(_STAMP.sub("", line)) for line in kept[-lines:]]


def killed(log: Path) -> tuple[str, str] | None:
    """Rank on its node, and `0:signal`, of the last process that a log says a signal ended."""
    found = [m for line in last_lines(log, _LOOKED_AT) if (m := _KILLED.search(line))]
    if not found or not found[-1][1].startswith("-"):
        return None
    return found[-1][2], f"0:{found[-1][1][1:]}"


def _before(seen: Seen, chain: Mapping[str, Seen]) -> Seen | None:
    if seen.complete or seen.damage or seen.runs:
        return None
    names = list(chain)
    if seen.job is not None:
        needs = [chain[n.phase] for n in seen.job.needs if n.phase in chain]
        first = next((need for need in needs if not need.complete), None)
    else:  # what it needs is not written down anywhere: what is in front of it and failed
        front = names[: names.index(seen.goal.phase)] if seen.sent is None else []
        first = next((chain[name] for name in front if chain[name].failed), None)
    if first is None:
        return None
    return _before(first, chain) or first


def _fitted(frames: list[tuple[str, str]], lines: int) -> list[str]:
    keep = [*range(len(frames))]
    if len(frames) > lines:  # ours, and where it was raised
        keep = [n for n in keep if n >= len(frames) - 2 or not _FOREIGN.search(frames[n][0])]
    while len(keep) > 1 and len(_drawn(frames, keep)) > lines:
        del keep[0]
    return _drawn(frames, keep)


def _drawn(frames: list[tuple[str, str]], keep: list[int]) -> list[str]:
    found, before = list[str](), -1
    for number in keep:
        if number > before + 1:
            found.append(f"… {number - before - 1} more")
        found.append(frames[number][1])
        before = number
    return found


def _short(path: str) -> str:
    """As one would look for it: within its package, wherever that lies."""
    for part in ("/site-packages/", "/dist-packages/"):
        if part in path:
            return path.rpartition(part)[2]
    return f"lensdist/{path.rpartition('/lensdist/')[2]}" if "/lensdist/" in path else path


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", line)).rstrip()
