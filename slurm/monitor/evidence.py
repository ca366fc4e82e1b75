"""The evidence that a phase left behind: its exit reports, its node reports, its log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from lensdist.utils import outcome
from lensdist.utils.outcome import Outcome
from slurm.attempts import Attempt, attempts
from slurm.job_side.epilogue import without_outcome
from slurm.job_side.node_health import Report, bad_nodes
from slurm.monitor.logs import last_lines
from slurm.monitor.status import PhaseStatus, log_file

_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)$')
_FOREIGN = re.compile(r"/(site|dist)-packages/|/lib(64)?/python3|<frozen |<string>")
_CAUSED = re.compile(r"\n\nThe above exception was the direct cause of .+\n\n")
_DURING = re.compile(r"\n\nDuring handling of the above exception, .+\n\n")
_LOG_END = 400  # lines of a log that are read
# torch's launcher writes this about a process that a signal ended.
_KILLED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # a terminal's colours
_STAMP = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ \S+\] ")  # of torch's own log
# Frames of libraries, and what launchers print around an error.
_LIBRARY = re.compile(
    r'  File "(?:<frozen |[^"\n]*(?:site|dist)-packages)[^\n]*\n(?:    [^\n]*\n)*'
)
_NOISE = re.compile(
    r"^\W*$|^submitit (INFO|WARNING)|^Traceback \(most recent|torch[/.]distributed[/.](elastic|run)"
    r"|^(Root Cause|Failures:|Other Failures|<NO_OTHER_FAILURES>|\[\d+\]:$)|\.py FAILED$"
    r"|^  (time|host|rank|exitcode|error_file|traceback) *:|Job step aborted: Waiting up to"
    r"|^([\d-]+ [\d:]+ INFO (rank \d+: )?)?step +\d+/\d+ "
)


class Case:
    """One phase of a chain with all evidence about it, read when it is asked for.

    Args:
        chain: the status of all phases, by name, in order.
    """

    def __init__(self, status: PhaseStatus, chain: Mapping[str, PhaseStatus], state: Path) -> None:
        self.status = status
        self.phase = status.target.phase
        self._chain, self._state = chain, state

    @cached_property
    def before(self) -> PhaseStatus | None:
        """The phase that this one waits for, or that prevents its start."""
        return _before(self.status, self._chain)

    @cached_property
    def past(self) -> list[Attempt]:
        """All its attempts."""
        return attempts(self.status.events)

    @cached_property
    def ended(self) -> bool:
        """Whether an end is to be explained: it stands still, or waits after a failed attempt."""
        one = self.status
        if one.complete or one.damage or one.running or self.before or one.sent is None:
            return False
        last = one.since_sent[-1] if one.since_sent else None
        bad = last is not None and last.what == "ended" and last.kind not in ("saved", "done")
        return one.live is False or bad

    @cached_property
    def _reports(self) -> Path | None:
        """The folder of the newest attempt's reports, if its end is to be explained."""
        if not self.ended or self.status.started is None:  # or of a submission before
            return None
        start = self.past[-1].started
        return self._state / start.submission / "attempts" / f"{self.phase}-{start.attempt}"

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Exit reports of the processes that failed, the first failure in front."""
        return [one for one in outcome.read(self._reports) if one.bad] if self._reports else []

    @cached_property
    def missing(self) -> list[tuple[int, str]]:
        """Rank and node of the processes that left no exit report though others did."""
        if self._reports is None or self.status.job is None:
            return []
        nodes = self.past[-1].started.nodes
        return without_outcome(self.status.job, nodes, outcome.read(self._reports))

    @cached_property
    def unfit(self) -> list[Report]:
        """Reports of the nodes that failed the check."""
        return bad_nodes(self._reports) if self._reports else []

    @cached_property
    def log(self) -> Path | None:
        """The newest log: of the head node, or of a node whose process left no exit report."""
        if self.status.sent is None:
            return None
        node = 0
        if self.missing and self.unexplained:
            node = self.past[-1].started.nodes.index(self.missing[0][1])
        sent = self.status.sent
        # Of a phase that never began in a job that others share, the job's.
        logs = [
            log_file(self._state, one, node) for one in (sent, sent.model_copy(update={"log": ""}))
        ]
        return next((file for file in logs if file.exists()), None)

    @cached_property
    def unexplained(self) -> bool:
        """Whether the reports do not explain the end."""
        explained = bool(self.outcomes) and not self.outcomes[0].echo
        return self.ended and not explained and not self.unfit

    @cached_property
    def step(self) -> int:
        """The step of the newest checkpoint."""
        return self.status.job.step() if self.status.job else 0


def short_traceback(text: str, lines: int) -> list[str]:
    """Return a traceback with a line per frame, outermost first; libraries' frames go first."""
    *_, block = _DURING.split(text)  # the exception that was raised last ended the process
    *causes, block = _CAUSED.split(block)
    rows, frames = block.splitlines(), []
    for row, code in zip(rows, [*rows[1:], ""], strict=False):
        found = _FRAME.match(row)
        if found:
            line = f":  {code.strip()}" if code.startswith("    ") else ""
            frames.append((found[1], f"{_short(found[1])}:{found[2]} in {found[3]}{line}"))
    cause = [f"because of {causes[-1].splitlines()[-1]}"] if causes else []
    return _fitted(frames, max(1, lines - len(cause))) + cause


def error_lines(log: Path, lines: int) -> list[str]:
    """Return the last lines of a log that may explain a failure; none if there is no log."""
    text = "\n".join(last_lines(log, _LOG_END)) + "\n"
    kept = [
        line
        for line in _LIBRARY.sub("", text).splitlines()
        if _KILLED.search(line) or not _NOISE.search(line)
    ]
    return [_printable(_STAMP.sub("", line)) for line in kept[-lines:]]


def killed_process(log: Path) -> tuple[str, str] | None:
    """Return local rank and `0:signal` of the last process that a signal ended, from a log."""
    found = [m for line in last_lines(log, _LOG_END) if (m := _KILLED.search(line))]
    if not found or not found[-1][1].startswith("-"):
        return None
    return found[-1][2], f"0:{found[-1][1][1:]}"


def _before(one: PhaseStatus, chain: Mapping[str, PhaseStatus]) -> PhaseStatus | None:
    if one.complete or one.damage or one.running:
        return None
    names = list(chain)
    if one.job is not None:
        needs = [chain[n.phase] for n in one.job.needs if n.phase in chain]
        first = next((need for need in needs if not need.complete), None)
    else:  # without a job file its needs are unknown: take the first failed phase before it
        front = names[: names.index(one.target.phase)] if one.sent is None else []
        first = next((chain[name] for name in front if chain[name].failed), None)
    if first is None:
        return None
    return _before(first, chain) or first


def _fitted(frames: list[tuple[str, str]], lines: int) -> list[str]:
    keep = [*range(len(frames))]
    if len(frames) > lines:  # our own frames, and where the exception was raised
        keep = [n for n in keep if n >= len(frames) - 2 or not _FOREIGN.search(frames[n][0])]
    while len(keep) > 1 and len(_with_gaps(frames, keep)) > lines:
        del keep[0]
    return _with_gaps(frames, keep)


def _with_gaps(frames: list[tuple[str, str]], keep: list[int]) -> list[str]:
    found, before = list[str](), -1
    for number in keep:
        if number > before + 1:
            found.append(f"… {number - before - 1} more")
        found.append(frames[number][1])
        before = number
    return found


def _short(path: str) -> str:
    """Return a file's path within its package."""
    for part in ("/site-packages/", "/dist-packages/"):
        if part in path:
            return path.rpartition(part)[2]
    return f"lensdist/{path.rpartition('/lensdist/')[2]}" if "/lensdist/" in path else path


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", line)).rstrip()
