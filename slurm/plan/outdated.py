"""What is there of a phase already, and whether it still is what is asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lensdist import provenance
from lensdist.config.reader import read_plain
from lensdist.config.schema import BaseRun
from lensdist.data.manifest import Manifest
from lensdist.engine.asked import other_inputs
from lensdist.engine.differences import differences, unmet
from lensdist.errors import UserError
from lensdist.phases import completed
from lensdist.sealed import read_json
from slurm.attempts import Ledger
from slurm.job import Goal, load_job

Trigger = Literal["config", "data", "code"]
TRIGGERS: tuple[Trigger, ...] = ("config", "data", "code")


@dataclass(frozen=True)
class Standing:
    """How a phase stands before it is sent.

    Attributes:
        state: new; begun (goes on from its checkpoint); done; again (done or begun, but outdated).
        reasons: what has changed since, whether or not it makes the phase run again.
    """

    state: Literal["new", "begun", "done", "again"]
    reasons: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """For people."""
        why = "; ".join(self.reasons)
        return {
            "new": "to do",
            "begun": "begun, goes on from its newest checkpoint",
            "done": f"complete already, skipped{f' (though {why})' if why else ''}",
            "again": f"runs again, for {why}; what is there is kept aside",
        }[self.state]


def of_run(
    goal: Goal, config: BaseRun, state: Path, package: Path, triggers: Sequence[Trigger]
) -> Standing:
    """Of a training phase.

    Args:
        goal: its run.
        config: what is asked for.
        state: the launcher's folder.
        package: the toolkit as it is now.
        triggers: what makes a finished phase run again when it has changed.

    Raises:
        UserError: the run says that it is finished, but its files are damaged.
    """
    record = completed(goal.run)
    wanted = config.model_dump(mode="json")
    if record is None:
        return _of_begun(goal.run, config, wanted)
    found: dict[Trigger, list[str]] = {"config": unmet(record["config"], wanted)}
    found["data"] = _other_data(record, config)
    recorded = record.get("code")
    edited = provenance.changed(recorded, package, _made_with(goal, state)) if recorded else []
    found["code"] = [f"changed code ({_few(edited)})"] if edited else []
    return _judged("done", found, triggers)


def of_scores(
    goal: Goal, trained: Standing, state: Path, package: Path, triggers: Sequence[Trigger]
) -> Standing:
    """Of an evaluation, whose training stands as `trained`."""
    if trained.state != "done" or not goal.reached():
        return Standing("new")
    recorded = goal.scored().get("code")
    edited = provenance.changed(recorded, package, _made_with(goal, state)) if recorded else []
    code = [f"changed code ({_few(edited)})"] if edited else []
    return _judged("done", {"code": code}, triggers)


def of_set(goal: Goal, wanted: Mapping[str, object], triggers: Sequence[Trigger]) -> Standing:
    """Of a packed set.

    Args:
        goal: the set.
        wanted: what its manifest must say.
        triggers: as in `of_run`.
    """
    if not goal.reached():
        return Standing("new")
    there = Manifest.load(goal.run).model_dump(mode="json")
    other = [f"another {name}" for name, value in wanted.items() if there[name] != value]
    return _judged("done", {"config": other}, triggers)


def set_aside(folder: Path) -> Path:
    """Rename what is outdated: nothing is ever deleted. Returns where it is now."""
    kept = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    while os.path.lexists(kept):  # of the same second, or from before a clock was set back
        kept = kept.with_name(f"{kept.name}+")
    folder.rename(kept)
    return kept


def _of_begun(run: Path, config: BaseRun, wanted: dict[str, Any]) -> Standing:
    checkpoints = sorted((run / "checkpoints").glob("step-*/checkpoint.json"))
    if not checkpoints:
        return Standing("new")
    try:
        before = read_plain(run / "config.yaml")
        meta = dict(read_json(checkpoints[-1])["meta"])
        steps = int(checkpoints[-1].parent.name.removeprefix("step-"))
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return Standing("begun")  # the run itself reads them again, and names what is damaged
    found: dict[Trigger, list[str]] = {
        "config": differences(before, wanted),
        "data": _other_data({**meta, "config": before}, config),
    }
    limit = config.train.max_steps
    if limit is not None and steps > limit:
        found["config"].append(f"train.max_steps: {steps} steps are done already, not {limit}")
    # Not a matter of choice: a run never goes on with other settings or data.
    return _judged("begun", found, TRIGGERS)


def _judged(
    state: Literal["done", "begun"], found: dict[Trigger, list[str]], triggers: Sequence[Trigger]
) -> Standing:
    counted = [one for what, those in found.items() if what in triggers for one in those]
    if counted:
        return Standing("again", tuple(counted))
    return Standing(state, tuple(one for those in found.values() for one in those))


def _other_data(saved: Mapping[str, Any], config: BaseRun) -> list[str]:
    try:
        return other_inputs(saved, config)
    except UserError:
        return []  # not there (yet): the run will say so, or an earlier phase makes it


def _made_with(goal: Goal, state: Path) -> Path | None:
    """The toolkit that a phase was completed with, if the launcher kept it."""
    for event in reversed(Ledger(state / "ledger" / f"{goal.phase}.jsonl").events()):
        if event.what == "ended" and event.verdict == "done":
            try:
                return load_job(state / event.submission / f"{goal.phase}.json").code / "lensdist"
            except UserError:
                return None
    return None


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
