"""Make a job for submitit's executor, and its batch script for sbatch.

The script runs the prologue before the steps, and the epilogue after them. It outlives a task that
is killed, so the epilogue always decides what follows.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from slurm.config.cluster import Cluster
from slurm.job import Job
from slurm.job_side import shell
from slurm.plan.together import allocation

TASKS_WAIT = 60  # s for a job's other nodes to save or report after one has ended
_TASK = re.compile(r"(.+)_(\d+)")


def slurm_executor(
    job: Job, after: Sequence[str], array: str | None = None, shared: Sequence[Job] = ()
) -> Any:
    """Return submitit's executor for a job.

    Args:
        after: conditions of `--dependency`, such as `afterok:17`.
        array: the phase, for any point of a sweep.
        shared: all phases that the job runs, if there are several.

    Raises:
        UserError: these phases cannot share a job.
    """
    from slurm.plan.submitit_executor import Executor

    cluster = job.cluster
    if shared:
        cluster = allocation({one.target.phase: one.cluster for one in shared})
    own = {flag.lstrip("-").replace("_", "-"): value for flag, value in cluster.sbatch.items()}
    flags: dict[str, str | int | bool] = {f: v or True for f, v in own.items() if v is not None}
    if after:
        flags["dependency"] = ",".join(after)
        # Without this, a job stays in the queue for ever if its predecessor failed.
        flags["kill-on-invalid-dep"] = "yes"
    flags["export"] = "ALL"  # some centres' default is NONE, which leaves nothing of `setup`
    flags["requeue"] = True  # after the loss of a node, whatever the cluster's default is
    if cluster.exclude:
        flags["exclude"] = ",".join(cluster.exclude)
    if cluster.most > cluster.fewest:
        flags["nodes"] = cluster.nodes
    optional = {
        # With a number of tasks SLURM always gives the smallest number of a range of nodes.
        "ntasks_per_node": 1 if cluster.most == cluster.fewest else None,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{round(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
    }
    _ask_for_gpus(cluster, optional, flags)
    setup, teardown = _around(job, array, shared)
    # The container of srun has an interpreter of its own; a `container` is entered later.
    python = shlex.quote(cluster.python) if cluster.boxed and cluster.python else None
    dropped = [flag for flag, value in own.items() if value is None]
    steps = [line for one in shared for line in _phase_of_shared(one)]
    executor = Executor(job.folder, dropped=dropped, python=python, steps=steps)
    executor.update_parameters(
        job_name=f"{job.chain}-{array or job.target.phase}",
        nodes=cluster.fewest,
        time=cluster.walltime,
        signal_delay_s=cluster.save_before_end,
        stderr_to_stdout=True,
        setup=setup,
        teardown=teardown,
        srun_args=_srun(job),
        additional_parameters=flags,
        wckey=None,  # submitit's own default is its name
        array_parallelism=cluster.at_once or 10**9,
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def batch_script(
    job: Job,
    after: Sequence[str],
    array: str | None = None,
    tasks: int = 0,
    shared: Sequence[Job] = (),
) -> str:
    """Return the text that sbatch is given for a job, or for an array of so many tasks."""
    executor = slurm_executor(job, after, array, shared)
    if array is not None:
        executor.parameters["map_count"] = tasks
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def batches(
    jobs: Mapping[str, Job],
    arrays: Mapping[str, str],
    ids: Mapping[str, str],
    largest: int | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the batch scripts to send: name, its jobs, and what it waits for.

    Several jobs are the tasks of an array, or phases that run one after the other (`together`).

    Args:
        jobs: by name, each after those it needs.
        arrays: the phase of each point of a sweep; points that wait alike become one array.
        ids: ids of jobs; the caller adds those of a script's jobs before it asks for the next.
        largest: how many tasks an array may have; more points become several arrays.
    """
    for phase, group in groupby(jobs, key=lambda n: arrays.get(n, [*jobs[n].together, n][0])):
        names = [*group]
        if jobs[names[0]].together:
            each = [one for n in names for one in dependencies([n], jobs, ids) or []]
            yield phase, names, [*dict.fromkeys(each)]
            continue
        at_once = jobs[names[0]].cluster.at_once or len(names)
        before: list[str] = []
        for number, part in enumerate(batched(names, largest or len(names)), 1):
            after = dependencies(part, jobs, ids)
            if len(part) > 1 and after is not None:
                # A dot: no phase has that name.
                yield phase if number == 1 else f"{phase}.{number}", part, after + before
            else:
                for index, name in enumerate(part):
                    # Each after the one so many places before it: no more run in all.
                    lane = part[index - at_once : index - at_once + 1] if at_once <= index else []
                    waits = [f"afterany:{ids[one]}" for one in lane] or before
                    yield name, [name], (dependencies([name], jobs, ids) or []) + waits
            last = dict.fromkeys(_array_of(ids[one]) for one in part[-at_once:])
            before = [f"afterany:{job}" for job in last] if at_once < len(names) else []


def batched(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield the names in lists of a size, the last perhaps shorter."""
    for start in range(0, len(names), size):
        yield [*names[start : start + size]]


def array_file(folder: Path, phase: str, index: int | str) -> Path:
    """Return the file of an array's task; the script has only the task's number."""
    return folder / f"{phase}.array" / f"{index}.json"


def dependencies(
    names: Sequence[str], jobs: Mapping[str, Job], ids: Mapping[str, str]
) -> list[str] | None:
    """Return the conditions that a group of jobs waits for; None if they differ within the group.

    Args:
        names: of the group: one phase, or all points of a swept one.
        jobs: all jobs that are sent, by name.
        ids: ids of the jobs before them: 17, or 17_3 for a task of an array.
    """
    conditions: list[str] = []
    before = [[ids[need.phase] for need in jobs[n].needs if need.phase in ids] for n in names]
    if len({len(one) for one in before}) > 1:
        return None
    for column in zip(*before, strict=True):
        if len({*column}) == 1:
            conditions.append(f"afterok:{column[0]}")
            continue
        tasks = [found.groups() for job in column if (found := _TASK.fullmatch(job))]
        arrays = {array for array, _ in tasks}
        if len(arrays) != 1 or [n for _, n in tasks] != [str(i) for i in range(len(names))]:
            return None
        conditions.append(f"aftercorr:{arrays.pop()}")  # each task after the same task of the other
    ends = [_array_of(ids[other]) for n in names for other in jobs[n].follows if other in ids]
    return [*dict.fromkeys(conditions), *(f"afterany:{job}" for job in dict.fromkeys(ends))]


def _array_of(job: str) -> str:
    found = _TASK.fullmatch(job)
    return found[1] if found else job


def _around(job: Job, array: str | None, shared: Sequence[Job]) -> tuple[list[str], list[str]]:
    """Return the lines of the script before and after the steps."""
    file = " ".join(shlex.quote(str(one.file)) for one in shared or [job])
    if array is not None:
        before, after = str(array_file(job.folder, array, "\0")).split("\0")
        file = f'{shlex.quote(before)}"$SLURM_ARRAY_TASK_ID"{shlex.quote(after)}'
    python = shlex.quote(sys.executable)
    setup = [
        *shell.look(sys.executable, job.code, file),
        # The copy of the code, and no file of the folder that the chain was sent from.
        f'export PYTHONPATH={shlex.quote(str(job.code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export PYTHONSAFEPATH=1",
        *_checked(job.cluster.setup),
        "# the epilogue below must run, however the steps end",
        "set +e; trap : TERM",
        *(shell.phases(sys.executable) if shared else shell.begin(sys.executable, file)),
    ]
    if shared:
        return setup, ["exit $failed"]
    # SLURM ends the script when it requeues the job: the epilogue must ignore that.
    return setup, ["code=$?; trap '' TERM", f"{python} -m slurm.job_side.epilogue {file} $code"]


def _phase_of_shared(job: Job) -> list[str]:
    """Return the line that runs a phase in a job that others share."""
    file, phase = shlex.quote(str(job.file)), job.target.phase
    python = (job.cluster.boxed and job.cluster.python) or sys.executable
    head = shlex.quote(str(job.folder / f"{phase}."))
    flags = shlex.join(["--unbuffered", "--open-mode=append", *_srun(job)])
    log = f'--output {head}"$SLURM_JOB_ID"_%t_log.out'
    srun = f"{flags} {log} {shlex.quote(python)} -m slurm.job_side.run {file}"
    return [f'run_phase {file} {srun} >> {head}"$SLURM_JOB_ID"_0_log.out 2>&1']


def _checked(lines: Sequence[str]) -> list[str]:
    """Return the user's lines of the script, of which one that fails ends the job."""
    if not lines:
        return []
    line = '$(sed -n "${LINENO}p" "$0")'  # bash's own word is of a line inside a function
    told = f'echo "error: setup ended with exit code $code at: {line}" >&2'
    return [
        f"trap 'code=$?; {told}; exit $code' ERR",
        *lines,
        "trap - ERR",
    ]


def _ask_for_gpus(
    cluster: Cluster, optional: dict[str, Any], flags: dict[str, str | int | bool]
) -> None:
    """Add the option that asks for the cluster's GPUs."""
    if not cluster.gpus_per_node:
        return
    count = cluster.gpus_per_node
    if cluster.gpu_request == "none":
        flags.setdefault("exclusive", True)
    elif cluster.gpu_request == "gres":
        flags["gres"] = ",".join(filter(None, (f"gpu:{count}", str(flags.get("gres", "")))))
    else:
        optional[cluster.gpu_request.replace("-", "_")] = count


def _srun(job: Job) -> list[str]:
    cluster = job.cluster
    flags = {"wait": str(TASKS_WAIT), "export": "ALL"}  # whatever SLURM_EXPORT_ENV says
    if cluster.most > cluster.fewest:
        flags["ntasks-per-node"] = "1"
    if cluster.cpus_per_task and cluster.sbatch.get("cpus-per-task", "") is not None:
        # Since SLURM 22.05 srun does not inherit it from sbatch: a task would get one core.
        flags["cpus-per-task"] = str(cluster.cpus_per_task)
    flags |= cluster.srun
    return [f"--{name}={value}" if value else f"--{name}" for name, value in flags.items()]
