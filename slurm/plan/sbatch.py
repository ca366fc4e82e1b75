"""A job as submitit's executor and as the batch script that sbatch is given.

Before the steps `begin`, after them `settle`: the script outlives a task that is killed, so what
follows from an attempt is decided whatever happened to it.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm.job import Job

TASKS_WAIT = 60  # s that a job's other nodes may take once one has ended: to save, or to say why


def slurm_executor(job: Job, after: Sequence[str], array: str | None = None) -> Any:
    """submitit's executor for one phase.

    Args:
        job: the phase; any of them, where it is an array.
        after: conditions of `--dependency`: `afterok:17`.
        array: name of the phase, where the script is one for an array of jobs.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # a plan shows the batch script on machines without SLURM, too

    cluster = job.cluster
    flags: dict[str, str | int | bool] = {**cluster.sbatch}
    if after:
        flags["dependency"] = ",".join(after)
        # Else a job whose predecessor failed stays in the queue for ever.
        flags["kill-on-invalid-dep"] = "yes"
    flags["requeue"] = True  # after the loss of a node, whatever the cluster's default is
    if cluster.exclude:
        flags["exclude"] = ",".join(cluster.exclude)
    if cluster.most > cluster.fewest:
        flags["nodes"] = cluster.nodes
    optional = {
        # With a number of tasks SLURM gives the fewest nodes of a range, and never more.
        "ntasks_per_node": 1 if cluster.most == cluster.fewest else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus_per_node": cluster.gpus_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{round(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
    }
    setup, teardown = _around(job, array)
    executor = Executor(job.folder)
    executor.update_parameters(
        job_name=f"{job.chain}-{array or job.goal.phase}",
        nodes=cluster.fewest,
        time=cluster.walltime,
        signal_delay_s=cluster.save_before_end,
        stderr_to_stdout=True,
        setup=setup,
        teardown=teardown,
        srun_args=_srun(job),
        additional_parameters=flags,
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def batch_script(job: Job, after: Sequence[str], array: str | None = None) -> str:
    """The text that sbatch will be given (of an array, without its `--array`)."""
    executor = slurm_executor(job, after, array)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def array_file(folder: Path, phase: str, index: int | str) -> Path:
    """The job of an array's task, for a script that knows its number only."""
    return folder / f"{phase}.array" / f"{index}.json"


def _around(job: Job, array: str | None) -> tuple[list[str], list[str]]:
    file = shlex.quote(str(job.folder / f"{job.goal.phase}.json"))
    if array is not None:
        before, after = str(array_file(job.folder, array, "\0")).split("\0")
        file = f'{shlex.quote(before)}"$SLURM_ARRAY_TASK_ID"{shlex.quote(after)}'
    python = shlex.quote(sys.executable)
    setup = [
        # The snapshot, and nothing that happens to lie where the chain was sent from.
        f'export PYTHONPATH={shlex.quote(str(job.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1",
        *job.cluster.setup,
        "# whatever ends the steps, what follows is settled below",
        "set +e; trap : TERM",
        f"begun=$({python} -m slurm.job_side.prologue {file}) || exit $?",
        'eval "$begun"',
    ]
    # SLURM ends a script that has its own job queued again: settling must outlive that.
    return setup, ["code=$?; trap '' TERM", f"{python} -m slurm.job_side.epilogue {file} $code"]


def _srun(job: Job) -> list[str]:
    cluster = job.cluster
    flags = {"wait": str(TASKS_WAIT)}
    if cluster.most > cluster.fewest:
        flags["ntasks-per-node"] = "1"
    if cluster.cpus_per_task:
        # Since SLURM 22.05 srun does not take it over from sbatch: a task would get one core.
        flags["cpus-per-task"] = str(cluster.cpus_per_task)
    flags |= cluster.srun
    return [f"--{name}={value}" if value else f"--{name}" for name, value in flags.items()]
