"""Find a chain that was sent, from any folder, and its phases."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lensdist.utils.errors import UserError
from lensdist.utils.text import some
from slurm import COMMAND, Say
from slurm.attempts import phases_sent
from slurm.config.request import Request, phase_names, read_request
from slurm.config.source import CHAIN, Source
from slurm.config.sweep import SWEEP
from slurm.job import Target, sent_job
from slurm.monitor.status import query_log
from slurm.register import COPY, STATE, Entry, register_file, registered


@dataclass(frozen=True)
class Found:
    """A chain that was sent.

    Attributes:
        targets: those of the phases that a command names; all, if it names none.
        everything: the targets of all phases.
        options: what a further command about the chain must repeat.
    """

    targets: list[Target]
    everything: list[Target]
    state: Path
    options: tuple[str, ...]


def find_sent(
    source: Source | None, arguments: Sequence[str], say: Say, *, changes: bool = False
) -> Found:
    """Find the chain that a command is about.

    It is the one in `runs=FOLDER`; or that of `source` in the current folder; or the one that the
    register of sent chains names, first those sent from the current folder.

    Args:
        source: what the command line names; None: nothing.
        arguments: names of phases, and settings.
        changes: whether the command changes the chain; then no choice is made between several.

    Raises:
        UserError: no such chain was sent, or several were.
    """
    names = phase_names(arguments)
    tables = [one for one in names if one.startswith(SWEEP)]  # no phase of the chain's file
    arguments = [one for one in arguments if one not in tables]
    runs = [one for one in arguments if one.startswith("runs=")]
    options = [*(source.words if source else ()), *runs]
    if runs and (source is None or _registered_name(source)):
        source = _copy(Path(runs[-1].removeprefix("runs=")).absolute() / STATE)
    name = _registered_name(source)
    if source is None or name:
        usual = read_request(Source(CHAIN), runs)
        entry = _choose(name, usual.state, say, changes=changes)
        if entry.runs != usual.runs and not name:
            options = ["--chain", entry.name]
        request = _sent_request(entry, arguments)
    else:
        request = read_request(source, arguments)
        if not _was_sent(request.state) and runs:
            raise UserError(f"{request.state} does not exist: no chain was sent with {runs[-1]}")
        if changes and not runs:
            _check_alone(request, say)
        if not _was_sent(request.state):
            entry = _choose(request.chain.name, request.state, say, changes=changes)
            request = _sent_request(entry, arguments)
    everything = _targets(request)
    if lost := {*tables} - {one.phase for one in everything}:
        raise UserError(f"no {some(sorted(lost))} was sent in {request.runs}")
    named = [one for one in everything if {one.phase, one.phase.partition("@")[0]} & {*names}]
    return Found(named if names else everything, everything, request.state, tuple(options))


def _check_alone(request: Request, say: Say) -> None:
    """Raise UserError if other chains of this name were sent from the current folder."""
    here = [one for one in registered(say) if one.cwd == Path.cwd()]
    alike = {one.runs for one in here if one.name == request.chain.name and _was_sent(one.state)}
    if _was_sent(request.state):
        alike.add(request.runs)
    if len(alike) > 1:
        raise SeveralSentError(sorted(alike))


class SeveralSentError(UserError):
    """An error: several chains fit; `first` is the word that names the first of them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        words = [f"runs={shlex.quote(str(one))}" for one in folders]
        super().__init__(f"{len(folders)} chains were sent; say which one: {some(words, 4)}")
        self.first = words[0]


def targets_of(entry: Entry) -> list[Target]:
    """Return the targets of all phases of a chain in the register.

    Raises:
        UserError: its copy cannot be read.
    """
    return _targets(_sent_request(entry, []))


def _sent_request(entry: Entry, arguments: Sequence[str]) -> Request:
    others = [one for one in arguments if not one.startswith("runs=")]
    return read_request(_copy(entry.state), [*others, f"runs={json.dumps(str(entry.runs))}"])


def _registered_name(source: Source | None) -> str | None:
    """Return the name that `--chain` gives, if it is no file's."""
    file = source.file if source else None
    is_name = file is not None and file.name == str(file) and not file.exists()
    return file.name if file is not None and is_name and not file.suffix else None


def _copy(state: Path) -> Source:
    """Return the chain as it was sent; an earlier version kept no copy, and had one default."""
    return Source(state / COPY if (state / COPY).is_file() else CHAIN)


def _was_sent(state: Path) -> bool:
    return bool(phases_sent(state))


def _choose(name: str | None, here: Path, say: Say, *, changes: bool) -> Entry:
    """Return the chain of a name (None: any) that was sent last, from the current folder if any.

    Args:
        here: where its state is if it was sent from here, for the message.

    Raises:
        UserError: there is none, or there are several and the command changes it.
    """
    known = [one for one in registered(say) if name in (None, one.name) and _was_sent(one.state)]
    if name is None and _was_sent(here) and here not in [one.state for one in known]:
        # Sent by an earlier version, which kept no register.
        known.append(Entry(name=CHAIN.stem, runs=here.parent, cwd=Path.cwd(), time=0))
    own = [one for one in known if one.cwd == Path.cwd()]
    found = own or known
    if not found:
        what = "no chain" if name is None else f"no chain {name}"
        raise UserError(
            f"{what} was sent: {here} does not exist, and {register_file()} names none that does; "
            f"send one with `{COMMAND} submit common/best --cluster FILE` or "
            f"`{COMMAND} submit --chain NAME --cluster FILE`, or give runs=FOLDER"
        )
    chosen = found[0]
    if len(found) > 1 and changes:
        raise SeveralSentError([one.runs for one in found])
    if len(found) > 1 or not own:
        say(f"chain {chosen.name} in {chosen.runs}, sent from {chosen.cwd}")
    return chosen


def _targets(request: Request) -> list[Target]:
    """Return the targets of all phases, with points of sweeps."""
    sent = phases_sent(request.state)
    found: list[str] = []
    for name in request.chain.phases:
        points = [one for one in sent if one.startswith(f"{name}@")]
        # A phase that was only sent as a sweep is its points.
        found += [*([name] if name in sent or not points else []), *points]
    found += [one for one in sent if one.startswith(SWEEP)]
    return [_target(one, request) for one in found]


def _target(name: str, request: Request) -> Target:
    """Return a phase's target as it was sent; if it never was, as the chain has it."""
    target = Target(phase=name, run=request.runs / name, kind="table")
    phase = request.chain.phases.get(name.partition("@")[0])
    if phase is not None and phase.evaluate is not None:
        run = request.runs / phase.evaluate
        target = Target(phase=name, run=run, kind="scores", split=phase.split)
    elif phase is not None and phase.report is None:
        target = target.model_copy(update={"kind": "run" if phase.train else "set"})
    sent = query_log(target, request.state).sent
    if sent is not None:
        with contextlib.suppress(UserError):  # a file of another version: show the rest
            return sent_job(request.state, sent, name).target
    return target
