"""Print the phases' logs: their last lines, and the lines added to them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lensdist.utils.errors import UserError
from slurm import COMMAND
from slurm.attempts import Event
from slurm.job import Target
from slurm.monitor.status import PhaseStatus, log_file, query, query_log

_POLL = 0.5  # s between two readings of the files
_ASK = 30  # readings between questions to SLURM, whose controller serves everybody
_ASK_AGAIN = 4  # readings until a second query, after SLURM has reported that a phase ended
_MOST = 1 << 22  # bytes read from a log's end: a progress bar may be one line of a gigabyte


def print_logs(
    targets: Sequence[Target],
    state: Path,
    phases: Sequence[str] = (),
    follow: bool = False,
    lines: int = 50,
    say: Callable[[str], None] = print,
    *,
    all_nodes: bool = False,
    options: str = "",
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print the last lines of each phase's newest log; with `follow`, what is added to it.

    Following continues in the new log when a phase is sent again. It ends when no phase runs or
    will start by itself.

    Args:
        phases: names of the wanted phases; none: all that were sent.
        all_nodes: print every node's log, not only the head node's.
        options: what the commands in hints must repeat, such as `--chain FILE`.

    Raises:
        UserError: a phase, or all, were never sent.
    """
    found = [s for s in query(targets, state) if not phases or s.target.phase in phases]
    for never in (s.target.phase for s in found if phases and s.sent is None):
        how = f"{COMMAND} submit {never} {options}".rstrip()
        raise UserError(f"{never} was never sent, so it has no log; send it with: {how}")
    readers = [_Reader(s, s.sent, state, say, all_nodes) for s in found if s.sent is not None]
    if not readers:
        how = f"{COMMAND} submit {options}".rstrip()
        raise UserError(f"no phase was ever sent, so there are no logs; send them with: {how}")
    for reader in readers:
        reader.named = len(readers) > 1 or all_nodes
        reader.print_end(max(0, lines), follow)
    if follow:
        _follow(readers, state, sleep)


def last_lines(path: Path, lines: int) -> list[str]:
    """Return the end of a text file; nothing if it cannot be read."""
    tail = _Tail(path)
    return (tail.last(lines) + tail.rest())[-lines:]


def _follow(readers: list[_Reader], state: Path, sleep: Callable[[float], None]) -> None:
    number = ask = 0
    while readers:
        for reader in readers:
            reader.print_new()
        if number == ask:
            for reader, one in zip(readers, query([r.target for r in readers], state), strict=True):
                reader.update(one)
            ask += _ASK_AGAIN if any(r.maybe_over for r in readers) else _ASK
        for reader in readers:
            if reader.over:
                reader.print_new()  # lines that were written just before the end
                reader.close()
        readers = [r for r in readers if not r.over]
        if readers:
            sleep(_POLL)
        number += 1


class _Reader:
    """The logs of one phase.

    Attributes:
        named: whether each line begins with the phase's name.
        over: how the phase ended, once no more lines will come.
        maybe_over: whether it seems to have ended; SLURM is asked twice, as it may be too busy.
    """

    def __init__(
        self,
        status: PhaseStatus,
        sent: Event,
        state: Path,
        say: Callable[[str], None],
        all_nodes: bool,
    ) -> None:
        self.target = status.target
        self.named = all_nodes
        self.over = ""
        self.maybe_over = False
        self._status, self._sent, self._state = status, sent, state
        self._say, self._all = say, all_nodes
        self._tails: dict[int, _Tail] = {}

    def print_end(self, lines: int, follow: bool) -> None:
        """Print the end of the newest log; when following, without an unfinished last line."""
        older = [e for e in self._status.events if e.what == "sent" and e != self._sent]
        for sent in (self._sent, *reversed(older)):
            tails = {n: _Tail(log_file(self._state, sent, n)) for n in self._nodes(sent)}
            if not tails:
                continue
            if sent is not self._sent:
                self._note(f"job {self._sent.job} has no log yet; this is of job {sent.job}")
            for node, tail in tails.items():
                found = tail.last(lines)
                if lines and not (follow and sent is self._sent):
                    found = (found + tail.rest())[-lines:]
                self._print(node, found)
            if sent is self._sent:
                self._tails = tails
            return
        word, reason = self._status.state
        self._note(f"job {self._sent.job} has no log yet; it is {word} {reason}".rstrip())

    def print_new(self) -> None:
        """Print the added lines, and change to the new log if the phase was sent again."""
        one = query_log(self.target, self._state)
        if one.sent is not None and _key(one.sent) != _key(self._sent):
            self._print_added()
            self._print_rest()
            self._sent, self._tails, self.maybe_over = one.sent, {}, False
            self._note(f"sent again, as job {self._sent.job}")
        self._print_added()
        last = one.last
        if last is not None and last.what == "ended":
            cancelled = any(e.what == "cancelled" for e in one.since_sent)
            if last.verdict == "done":
                self.over = "done"
            elif last.verdict == "stop" or (last.verdict == "leave" and cancelled):
                self.over = f"ended: {last.reason}; `why {self.target.phase}` says more"

    def update(self, one: PhaseStatus) -> None:
        """Use the phase's whole status, with SLURM's answer."""
        if one.complete:
            self.over = "complete"
        elif one.failed and (self.maybe_over or one.damage):
            word, reason = one.state
            how = f"{word} ({reason})" if reason else word
            self.over = f"no more lines will come: {how}; `why {self.target.phase}` says more"
        self.maybe_over = one.failed

    def close(self) -> None:
        """Print an unfinished last line, and how the phase ended."""
        self._print_rest()
        self._note(self.over)

    def _nodes(self, sent: Event) -> list[int]:
        if not self._all:
            return [0] if log_file(self._state, sent).exists() else []
        name = re.compile(rf"{re.escape(sent.log or sent.job)}_(\d+)_log\.out")
        found = map(name.fullmatch, (p.name for p in (self._state / sent.submission).glob("*.out")))
        return sorted(int(match[1]) for match in found if match)

    def _print_added(self) -> None:
        for node in self._nodes(self._sent):
            tail = self._tails.setdefault(node, _Tail(log_file(self._state, self._sent, node)))
            self._print(node, tail.new())

    def _print_rest(self) -> None:
        for node, tail in self._tails.items():
            self._print(node, tail.rest())

    def _print(self, node: int, lines: Sequence[str]) -> None:
        where = f"{self.target.phase}:node{node}| " if self._all else f"{self.target.phase}| "
        for line in lines:
            self._say(f"{where}{line}" if self.named else line)

    def _note(self, text: str) -> None:
        self._say(f"-- {self.target.phase}: {text}")


class _Tail:
    """A reader of a text file from some place on, in whole lines; an unreadable file has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._unfinished = b""

    def last(self, lines: int) -> list[str]:
        """Return the last whole lines; `new` starts after them."""
        try:
            with self._path.open("rb") as file:
                self._at = file.seek(0, 2)
                file.seek(max(0, self._at - _MOST))
                data = file.read(min(self._at, _MOST))
        except OSError:
            return []
        whole, _, self._unfinished = data.rpartition(b"\n")
        found = whole.split(b"\n") if whole or data.startswith(b"\n") else []
        return [_text(line) for line in found[-lines:]] if lines else []

    def new(self) -> list[str]:
        """Return the whole lines that were added."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._at:  # somebody emptied the file
                    self._at, self._unfinished = 0, b""
                file.seek(self._at)
                data = file.read()
        except OSError:
            return []
        self._at += len(data)
        *whole, self._unfinished = (self._unfinished + data).split(b"\n")
        return [_text(line) for line in whole]

    def rest(self) -> list[str]:
        """Return the last line if it is unfinished."""
        rest, self._unfinished = self._unfinished, b""
        return [_text(rest)] if rest else []


def _text(line: bytes) -> str:
    """Return a line as a terminal shows it: after carriage returns, the last text."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


def _key(sent: Event) -> tuple[str, str]:
    return sent.job, sent.submission
