"""One phase as a file: what is sent to a node, and what must be there in the end.

What submitit pickles is a function by name and the path of such a file: all else is in the file,
which people can read, and which is checked again where it is used.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from lensdist.config.base import Strict
from lensdist.data.manifest import MANIFEST, Manifest
from lensdist.engine.differences import unmet
from lensdist.errors import UserError
from lensdist.phases import COMPLETE, completed
from lensdist.sealed import read_json, unsealed
from slurm.config.cluster import Cluster

RESULTS = "results.json"


class Goal(Strict):
    """What a phase must leave behind: the only thing that counts as its success."""

    phase: str
    run: Path
    """Folder of the run (of the set, of the table)."""
    kind: Literal["run", "scores", "set", "table"] = "run"
    split: Literal["train", "val", "test"] = "test"
    """What `scores` are of."""
    settings: dict[str, Any] | None = None
    """What a `run` must have been asked for; None: anything."""

    def marker(self) -> Path:
        """The file that says so."""
        names = {
            "run": COMPLETE,
            "scores": f"eval/{self.split}.json",
            "set": MANIFEST,
            "table": RESULTS,
        }
        return self.run / names[self.kind]

    def reached(self) -> bool:
        """Whether it is there, whole, and (scores) about the weights that the run has now.

        Raises:
            UserError: it says that it is finished, but its files are damaged, or it is a run with
                other settings.
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
            weights = self.scored()["weights"]
            return bool(weights["model.safetensors"] == record["files"]["export/model.safetensors"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def scored(self) -> dict[str, Any]:
        """What the file of `scores` says.

        Raises:
            OSError, ValueError: it is missing or damaged.
        """
        return unsealed(read_json(self.marker()))


class Job(Strict):
    """One phase, ready to run on any node."""

    chain: str
    goal: Goal
    needs: tuple[Goal, ...]
    follows: tuple[str, ...] = ()
    """Names of those that must have ended before it, however."""
    words: tuple[str, ...]
    """What `python` is given: `-m lensdist.train --config …`."""
    cluster: Cluster
    counts: tuple[int, ...] = (1,)
    """Numbers of nodes on which the step can be shared evenly, ascending."""
    cwd: Path
    """Where the chain was submitted: what relative paths of its settings mean."""
    code: Path
    """The snapshot that runs: on `PYTHONPATH`, in front of everything."""
    state: Path
    """The launcher's folder, `.submit` in the folder of the runs."""
    folder: Path
    """The submission: this file, logs, what processes said at their end."""
    versions: dict[str, str] = Field({}, description="of what was installed where it was sent from")
    submitted: str = Field("", description="the line that it was submitted with")

    @property
    def ledger(self) -> Path:
        """The file of the phase's attempts."""
        return self.state / "ledger" / f"{self.goal.phase}.jsonl"

    def words_of(self, attempt: int) -> Path:
        """Folder in which an attempt's processes and nodes leave what they have to say."""
        return self.folder / "attempts" / f"{self.goal.phase}-{attempt}"

    def step(self) -> int:
        """Of the newest checkpoint: whether an attempt has got anywhere."""
        names = (p.name for p in (self.goal.run / "checkpoints").glob("step-*"))
        return max((int(n[5:]) for n in names if n[5:].isdigit()), default=0)


def load_job(path: Path) -> Job:
    """Read a job's file, if nobody else can have written it.

    Raises:
        UserError: the folder is another user's, or open to others; or the file is no job.
    """
    _check_closed(path.parent)
    try:
        job = Job.model_validate_json(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from e
    except ValidationError as e:
        raise UserError(f"{path} is no job of this version: {e.errors()[0]['msg']}") from e
    if job.code.is_relative_to(job.state):
        _check_closed(job.state)
    return job


def _check_closed(folder: Path) -> None:
    try:
        found = folder.stat()
    except OSError as e:
        raise UserError(f"{folder}: {e.strerror}; do all nodes see it?") from e
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(
            f"{folder} must be yours and closed to others (chmod 700): what lies there is run"
        )
