"""One phase as a JSON file: what to run, where, and which file must exist in the end.

submitit pickles only a function's name and the path of this file. People can read the file, and the
job checks it again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from lensdist.config.differences import unmet
from lensdist.data.manifest import MANIFEST, Manifest
from lensdist.phases import COMPLETE, completed, saved_steps
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json, unsealed
from lensdist.utils.settings import Strict
from slurm.attempts import AttemptLog, Event, Verdict, What
from slurm.config.cluster import Cluster

# Names of fields in files that were written by earlier versions.
_EARLIER = {"goal": "target", "words": "argv"}


class Target(Strict):
    """The result that a phase must produce. Only this counts as its success."""

    phase: str
    run: Path
    """Folder of the run, the packed set or the table."""
    kind: Literal["run", "scores", "set", "table"] = "run"
    split: Literal["train", "val", "test"] = "test"
    """The split that `scores` belong to."""
    settings: dict[str, Any] | None = None
    """Settings that a finished `run` must have; None: any."""

    def marker(self) -> Path:
        """Return the file whose existence means success."""
        names = {
            "run": COMPLETE,
            "scores": f"eval/{self.split}.json",
            "set": MANIFEST,
            "table": "results.json",
        }
        return self.run / names[self.kind]

    def reached(self) -> bool:
        """Return whether it exists, is undamaged and, for scores, belongs to the run's weights.

        Raises:
            UserError: its files are damaged, or it is a finished run with other settings.
        """
        if self.kind == "set":
            return self.marker().exists() and bool(Manifest.load(self.run))
        if self.kind == "table":
            return self.marker().exists()
        record = completed(self.run)
        other = unmet(record["config"], self.settings) if record and self.settings else []
        if other:
            raise UserError(
                f"{self.run} was completed with other settings ({'; '.join(other)}) than "
                f"{self.phase} was sent with; submit it again"
            )
        if record is None or self.kind == "run":
            return record is not None
        try:
            weights = self.scores()["weights"]
            return bool(weights["model.safetensors"] == record["files"]["export/model.safetensors"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def scores(self) -> dict[str, Any]:
        """Return the content of the file of `scores`.

        Raises:
            OSError, ValueError: it is missing or damaged.
        """
        return unsealed(read_json(self.marker()))


class Job(Strict):
    """One phase, ready to run on any node."""

    chain: str
    target: Target
    needs: tuple[Target, ...]
    follows: tuple[str, ...] = ()
    """Phases that must have ended before it, successfully or not."""
    together: tuple[str, ...] = ()
    """All phases that run in its job, one after the other; none: it has a job of its own."""
    argv: tuple[str, ...]
    """Arguments of `python`: `-m lensdist.train --config …`."""
    cluster: Cluster
    counts: tuple[int, ...] = (1,)
    """Numbers of nodes that can share a step evenly, ascending."""
    cwd: Path
    """The folder in which the chain was submitted: relative paths in its settings start here."""
    code: Path
    """The copy of the code that runs; first on `PYTHONPATH`."""
    state: Path
    """The launcher's folder: `.submit` in the folder of the runs."""
    folder: Path
    """The submission's folder: this file, logs, exit reports."""
    versions: dict[str, str] = Field({}, description="packages installed on the submitting machine")
    submitted: str = Field("", description="the command that submitted it")

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, raw: Any) -> Any:
        return {_EARLIER.get(k, k): v for k, v in raw.items()} if isinstance(raw, dict) else raw

    @property
    def file(self) -> Path:
        """The file that this job is read from."""
        return self.folder / f"{self.target.phase}.json"

    @property
    def attempt_log(self) -> AttemptLog:
        """The log of the phase's attempts."""
        return AttemptLog.of(self.state, self.target.phase)

    def log(self, what: What, job_id: str, **more: object) -> Event:
        """Add an event of this submission to the attempt log; see `Event` for the arguments."""
        return self.attempt_log.append(what, job_id, self.folder.name, **more)

    def log_sent(self, job_id: str) -> None:
        """Add to the attempt log that it was sent; if others share its job, it has an own log."""
        own = {"log": f"{self.target.phase}.{job_id}"} if self.together else {}
        self.log("sent", job_id, **own)

    def settled(self) -> Verdict | None:
        """Return `done` or `stop` if its last attempt in this submission ended so; else None."""
        mine = [e for e in self.attempt_log.events() if e.submission == self.folder.name]
        ends = [e.verdict for e in mine if e.what in ("started", "ended")]
        return ends[-1] if ends and ends[-1] in ("done", "stop") else None

    def outcome_folder(self, attempt: int) -> Path:
        """Return the folder of an attempt's exit reports and node reports."""
        return self.folder / "attempts" / f"{self.target.phase}-{attempt}"

    def forget_outcomes(self, until: int) -> None:
        """Remove the reports of the attempts up to this one; the attempt log keeps their ends."""
        with contextlib.suppress(OSError):
            for folder in self.outcome_folder(0).parent.iterdir():
                phase, _, number = folder.name.rpartition("-")
                if phase == self.target.phase and number.isdigit() and int(number) <= until:
                    shutil.rmtree(folder, ignore_errors=True)

    def step(self) -> int:
        """Return the step of the newest checkpoint; 0 if there is none."""
        return max(saved_steps(self.target.run), default=0)


def load_job(path: Path, *, to_run: bool = True) -> Job:
    """Read a job's file after checking that nobody else can have written it.

    Args:
        to_run: whether it will be executed; else it may be a colleague's.

    Raises:
        UserError: the folder belongs to another user, others can write to it, or can read it though
            the cluster's `share` does not allow that; or the file is invalid.
    """
    readable = _check_folder(path.parent, to_run=to_run)
    try:
        job = Job.model_validate_json(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except ValidationError as e:
        raise UserError(f"{path} is not a job of this version: {e.errors()[0]['msg']}") from e
    if job.code.is_relative_to(job.state):
        readable |= _check_folder(job.state, to_run=to_run)
    if readable and job.cluster.share is None:
        raise _open_to_others(path.parent)
    return job


def hours_file(state: Path, table: str) -> Path:
    """Return the file of the hours that a table's runs have used, for `lensdist report --used`."""
    return state / "used" / f"{table}.json"


def sent_job(state: Path, sent: Event, phase: str) -> Job:
    """Read the job file of a phase, not to run it; raises as `load_job`."""
    return load_job(state / sent.submission / f"{phase}.json", to_run=False)


def check_own(folder: Path) -> None:
    """Check that a folder is this user's, before files are written to be executed.

    Raises:
        UserError: it is another user's.
    """
    if folder.stat().st_uid != os.getuid():
        raise UserError(
            f"{folder} belongs to {owner(folder)}, whose runs you can only look at; give another "
            "folder (runs=FOLDER)"
        )


def owner(folder: Path) -> str:
    """Return the name of a folder's owner, or the number."""
    try:
        return folder.owner()
    except KeyError:
        return f"user {folder.stat().st_uid}"


def _check_folder(folder: Path, *, to_run: bool) -> bool:
    """Check that nobody else can write to a folder; return whether the group can read it."""
    try:
        found = folder.stat()
    except OSError as e:
        raise UserError(f"{folder}: {e.strerror}; do all nodes see it?") from e
    mode = stat.S_IMODE(found.st_mode)
    if (to_run and found.st_uid != os.getuid()) or mode & 0o027:
        raise _open_to_others(folder)
    return bool(mode & 0o050)


def _open_to_others(folder: Path) -> UserError:
    return UserError(
        f"{folder}: files in it are executed, so only you may have access; run "
        f"`chmod 700 {folder}`, and check who owns it"
    )
