"""submitit's executor for SLURM, where it has to differ."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmExecutor, SlurmJob


class Executor(SlurmExecutor):  # type: ignore[misc]
    """An executor that can leave out options of sbatch, in arrays too.

    Args:
        folder: the submission's folder.
        dropped: options that are left out, without dashes.
        python: the interpreter, quoted for the shell; None: this one.
        steps: lines in place of submitit's own step.
    """

    def __init__(
        self,
        folder: Path,
        dropped: Sequence[str] = (),
        python: str | None = None,
        steps: Sequence[str] = (),
    ) -> None:
        super().__init__(folder, python=python)
        self._dropped, self._steps = dropped, steps

    @classmethod
    def affinity(cls) -> int:
        """Return that it can be used: a plan shows the batch script without SLURM too."""
        return 2

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        text = str(super()._make_submission_file_text(command, uid))
        if self._steps:
            before, _, after = text.partition("\nsrun ")
            text = "\n".join([before, *self._steps, "", after.partition("\n\n")[2]])
        lines = text.split("\n")
        names = [line.removeprefix("#SBATCH --").partition("=")[0] for line in lines]
        is_flag = [line.startswith("#SBATCH ") for line in lines]
        kept = zip(lines, names, is_flag, strict=True)
        return "\n".join(line for line, name, flag in kept if not (flag and name in self._dropped))

    def _internal_process_submissions(self, delayed: list[DelayedSubmission]) -> list[Any]:
        """Send one job, or several as an array; submitit's own arrays are of its own class."""
        if len(delayed) == 1:
            return list(super()._internal_process_submissions(delayed))
        pickles = []
        for one in delayed:
            one.set_timeout(self.parameters.get("time", 5), self.max_num_timeout)
            pickles.append(self.folder / f"{uuid.uuid4().hex}.pkl")
            one.dump(pickles[-1])
        self.parameters["map_count"] = len(delayed)
        first = self._submit_command(self._submitit_command_str)
        tasks = [*range(first.num_tasks)]
        for index, pickle in enumerate(pickles):
            paths = JobPaths(self.folder, job_id=f"{first.job_id}_{index}")
            paths.move_temporary_file(pickle, "submitted_pickle")
        return [SlurmJob(self.folder, f"{first.job_id}_{i}", tasks) for i in range(len(delayed))]
