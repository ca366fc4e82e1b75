"""Find what exists of a phase already, and whether it is outdated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lensdist.config.differences import differences, unmet
from lensdist.config.schema import BaseRun
from lensdist.data.manifest import Manifest
from lensdist.phases import completed, saved_steps
from lensdist.runs.asked import other_inputs
from lensdist.utils import provenance
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json
from lensdist.utils.text import some
from lensdist.utils.yaml_reader import read_plain
from slurm import ROOT
from slurm.attempts import AttemptLog
from slurm.job import Target, sent_job

Trigger = Literal["config", "data", "code"]
TRIGGERS: tuple[Trigger, ...] = ("config", "data", "code")


@dataclass(frozen=True)
class Existing:
    """The part of a phase that exists before it is sent.

    Attributes:
        state: new; begun (continues from its checkpoint); done; again (outdated, runs again).
        reasons: the changes since then, whether or not the phase runs again for them.
    """

    state: Literal["new", "begun", "done", "again"]
    reasons: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The state in words."""
        why = "; ".join(self.reasons)
        return {
            "new": "to do",
            "begun": "begun, goes on from its newest checkpoint",
            "done": f"complete already, skipped{f' (though {why})' if why else ''}",
            "again": f"runs again because of {why}; the old one is kept under another name",
        }[self.state]


def of_run(target: Target, config: BaseRun, state: Path, triggers: Sequence[Trigger]) -> Existing:
    """Return what exists of a training phase, which runs again after the changes in `triggers`.

    Raises:
        UserError: the run is marked complete, but its files are damaged.
    """
    record = completed(target.run)
    wanted = config.model_dump(mode="json")
    if record is None:
        return _of_begun(target.run, config, wanted)
    found: dict[Trigger, list[str]] = {
        "config": unmet(record["config"], wanted),
        "data": _other_data(record, config),
        "code": _other_code(record.get("code"), target, state),
    }
    return _decide("done", found, triggers)


def of_scores(
    target: Target, trained: Existing, state: Path, triggers: Sequence[Trigger]
) -> Existing:
    """Return what exists of an evaluation; `trained` is what exists of its run."""
    if trained.state != "done" or not target.reached():
        return Existing("new")
    code = _other_code(target.scores().get("code"), target, state)
    return _decide("done", {"code": code}, triggers)


def of_set(target: Target, wanted: Mapping[str, object], triggers: Sequence[Trigger]) -> Existing:
    """Return what exists of a packed set whose manifest must have the `wanted` entries."""
    if not target.reached():
        return Existing("new")
    found = Manifest.load(target.run).model_dump(mode="json")
    other = [f"another {name}" for name, value in wanted.items() if found[name] != value]
    return _decide("done", {"config": other}, triggers)


def _of_begun(run: Path, config: BaseRun, wanted: dict[str, Any]) -> Existing:
    saved = {
        step: folder / "checkpoint.json"
        for step, folder in saved_steps(run).items()
        if (folder / "checkpoint.json").exists()
    }
    if not saved:
        return Existing("new")
    step = max(saved)
    try:
        before = read_plain(run / "config.yaml")
        meta = dict(read_json(saved[step])["meta"])
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return Existing("begun")  # the run reads them again, and reports the damage
    found: dict[Trigger, list[str]] = {
        "config": differences(before, wanted),
        "data": _other_data({**meta, "config": before}, config),
    }
    limit = config.train.max_steps
    if limit is not None and step > limit:
        found["config"].append(f"train.max_steps: {step} steps are done already, not {limit}")
    # Not the user's choice: no run continues with other settings or data.
    return _decide("begun", found, TRIGGERS)


def _decide(
    state: Literal["done", "begun"], found: dict[Trigger, list[str]], triggers: Sequence[Trigger]
) -> Existing:
    counted = [one for what, those in found.items() if what in triggers for one in those]
    if counted:
        return Existing("again", tuple(counted))
    return Existing(state, tuple(one for those in found.values() for one in those))


def _other_data(saved: Mapping[str, Any], config: BaseRun) -> list[str]:
    try:
        return other_inputs(saved, config)
    except UserError:
        return []  # not there yet: an earlier phase makes it, or the run reports it


def _other_code(recorded: object, target: Target, state: Path) -> list[str]:
    """Return the edits since a result was made, as one reason; the result recorded its code."""
    if not isinstance(recorded, dict) or not recorded:
        return []
    edited = provenance.changed(recorded, ROOT / "lensdist", _made_with(target, state))
    return [f"changed code ({some(edited)})"] if edited else []


def _made_with(target: Target, state: Path) -> Path | None:
    """Return the copy of the `lensdist` package that completed a phase, if it is known."""
    for event in reversed(AttemptLog.of(state, target.phase).events()):
        if event.what == "ended" and event.verdict == "done":
            with suppress(UserError):
                return sent_job(state, event, target.phase).code / "lensdist"
            break
    return None
