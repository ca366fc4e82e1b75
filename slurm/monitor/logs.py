"""What the phases' logs say, as it is written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lensdist.errors import UserError
from slurm.attempts import Event
from slurm.job import Goal
from slurm.monitor.status import Seen, glance, log_file, look

_POLL = 0.5  # s between looks at the files
_LOOKS = 30  # of them between questions to SLURM, whose controller serves everybody
_DOUBT = 4  # of them, once SLURM has said that nothing comes any more
_BLOCK = 1 << 16  # bytes read at once from a log's end
_MOST = 1 << 22  # bytes read of it at all: a progress bar may be one line of a gigabyte


def logs(
    goals: Sequence[Goal],
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
    """Say the last lines of each phase's newest log, and with `follow` what is added to it.

    Following goes on in the new log when a phase is sent again, and ends when nothing more comes
    of any phase by itself.

    Args:
        goals: the chain's phases, in order.
        state: the launcher's folder.
        phases: names of those wanted; none: all that were sent.
        follow: whether to stay.
        lines: how many of each log at first.
        say: takes one line.
        all_nodes: every node's log, in place of the head node's.
        options: what the user's command has to say again, such as `--chain FILE`; for hints.
        sleep: waits so many seconds.

    Raises:
        UserError: a phase, or all, were never sent.
    """
    submit = "python slurm/submit.py submit"
    seen = [s for s in look(goals, state) if not phases or s.goal.phase in phases]
    for never in (s.goal.phase for s in seen if phases and s.sent is None):
        how = f"{submit} {never} {options}".rstrip()
        raise UserError(f"{never} was never sent, so it has no log; send it with: {how}")
    seen = [s for s in seen if s.sent is not None]
    if not seen:
        how = f"{submit} {options}".rstrip()
        raise UserError(f"no phase was ever sent, so there are no logs; send them with: {how}")
    readers = [_Reader(s, state, say, len(seen) > 1, all_nodes) for s in seen]
    for reader in readers:
        reader.begin(max(0, lines), follow)
    if follow:
        _follow(readers, state, sleep)


def last_lines(path: Path, lines: int) -> list[str]:
    """The end of a text file; nothing where it cannot be read."""
    tail = _Tail(path)
    return (tail.last(lines) + tail.rest())[-lines:]


def _follow(readers: list[_Reader], state: Path, sleep: Callable[[float], None]) -> None:
    number = ask = 0
    while readers:
        for reader in readers:
            reader.more()
        if number == ask:
            for reader, seen in zip(readers, look([r.goal for r in readers], state), strict=True):
                reader.judge(seen)
            ask += _DOUBT if any(r.doubt for r in readers) else _LOOKS
        for reader in readers:
            if reader.over:
                reader.more()  # what was written before the end, and read too early
                reader.close()
        readers = [r for r in readers if not r.over]
        if readers:
            sleep(_POLL)
        number += 1


class _Reader:
    """The logs of one phase.

    Attributes:
        goal: the phase.
        over: how it ended, once nothing more comes.
        doubt: whether it seems so, which is asked twice: SLURM does not always find time to answer.
    """

    def __init__(
        self, seen: Seen, state: Path, say: Callable[[str], None], named: bool, all_nodes: bool
    ) -> None:
        assert seen.sent is not None
        self.goal = seen.goal
        self.over = ""
        self.doubt = False
        self._seen = seen
        self._sent = seen.sent
        self._state = state
        self._say = say
        self._named = named
        self._all = all_nodes
        self._tails: dict[int, _Tail] = {}

    def begin(self, lines: int, follow: bool) -> None:
        """Say the end of the newest log; to be followed, its torn last line waits for the rest."""
        older = [e for e in self._seen.events if e.what == "sent" and e != self._sent]
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
                self._tell(node, found)
            if sent is self._sent:
                self._tails = tails
            return
        word, reason = self._seen.state
        self._note(f"job {self._sent.job} has no log yet; it is {word} {reason}".rstrip())

    def more(self) -> None:
        """Say what was added, and change to the new log if the phase was sent again."""
        seen = glance(self.goal, self._state)
        if seen.sent is not None and _key(seen.sent) != _key(self._sent):
            self._added()
            self._rest()
            self._sent, self._tails, self.doubt = seen.sent, {}, False
            self._note(f"sent again, as job {self._sent.job}")
        self._added()
        last = seen.last
        if last is not None and last.what == "ended":
            cancelled = any(e.what == "cancelled" for e in seen.mine)
            if last.verdict == "done":
                self.over = "done"
            elif last.verdict == "stop" or (last.verdict == "leave" and cancelled):
                self.over = f"ended: {last.reason}; `why {self.goal.phase}` says more"

    def judge(self, seen: Seen) -> None:
        """Take in how the whole phase stands."""
        if seen.complete:
            self.over = "complete"
        elif seen.failed and (self.doubt or seen.damage):
            word, reason = seen.state
            how = f"{word} ({reason})" if reason else word
            self.over = f"nothing more comes: {how}; `why {self.goal.phase}` says more"
        self.doubt = seen.failed

    def close(self) -> None:
        """Say what is left, and the last word."""
        self._rest()
        self._note(self.over)

    def _nodes(self, sent: Event) -> list[int]:
        if not self._all:
            return [0] if log_file(self._state, sent).exists() else []
        name = re.compile(rf"{re.escape(sent.job)}_(\d+)_log\.out")
        found = map(name.fullmatch, (p.name for p in (self._state / sent.submission).glob("*.out")))
        return sorted(int(match[1]) for match in found if match)

    def _added(self) -> None:
        for node in self._nodes(self._sent):
            tail = self._tails.setdefault(node, _Tail(log_file(self._state, self._sent, node)))
            self._tell(node, tail.new())

    def _rest(self) -> None:
        for node, tail in self._tails.items():
            self._tell(node, tail.rest())

    def _tell(self, node: int, lines: Sequence[str]) -> None:
        where = f"{self.goal.phase}:node{node}| " if self._all else f"{self.goal.phase}| "
        for line in lines:
            self._say(f"{where}{line}" if self._named or self._all else line)

    def _note(self, text: str) -> None:
        self._say(f"-- {self.goal.phase}: {text}")


class _Tail:
    """A text file from some place on, in whole lines. What cannot be read now may be later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._torn = b""

    def last(self, lines: int) -> list[str]:
        """The last whole lines; the next look begins behind them."""
        data, start = b"", 0
        try:
            with self._path.open("rb") as file:
                start = self._at = file.seek(0, 2)
                while start and len(data) < _MOST and data.count(b"\n") <= lines:
                    size = min(_BLOCK, start)
                    start -= size
                    file.seek(start)
                    data = file.read(size) + data
        except OSError:
            return []
        whole, _, self._torn = data.rpartition(b"\n")
        found = whole.split(b"\n") if whole or data.startswith(b"\n") else []
        return [_text(line) for line in found[-lines:]] if lines else []

    def new(self) -> list[str]:
        """Whole lines that were added."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._at:  # somebody emptied it
                    self._at, self._torn = 0, b""
                file.seek(self._at)
                data = file.read()
        except OSError:
            return []
        self._at += len(data)
        *whole, self._torn = (self._torn + data).split(b"\n")
        return [_text(line) for line in whole]

    def rest(self) -> list[str]:
        """The last line, where nothing has ended it."""
        torn, self._torn = self._torn, b""
        return [_text(torn)] if torn else []


def _text(line: bytes) -> str:
    """As a terminal would leave it: of what rewrites itself, the last state."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


def _key(sent: Event) -> tuple[str, str]:
    return sent.job, sent.submission
