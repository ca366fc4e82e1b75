"""A plan to submitit: SLURM jobs that wait for each other, or phase after phase here."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lensdist.config import save
from lensdist.errors import RunError, UserError
from lensdist.files import to_json, write_atomic
from slurm.jobs import ROOT, USERS_GPUS, Job, run_phase
from slurm.plan import Plan, Step

JOBS = "jobs.json"  # in a submission: the id of each phase's job
_TAIL = 15  # lines of a failed phase's log to show
# Where the node finds `slurm.jobs`, whatever folder the job was sent from.
_PATH = f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'


def send(plan: Plan, say: Callable[[str], None]) -> None:
    """Send what is not finished yet.

    Raises:
        UserError: a phase is needed that is neither finished nor asked for; nothing was sent.
        RunError: sbatch refused (what was sent before is cancelled), or a phase here failed.
    """
    for step in plan.steps:
        if step.done:
            say(f"{step.name}: complete already, skipped")
    steps = [step for step in plan.steps if not step.done]
    _check_needs(steps)
    if not steps:
        return
    if plan.cluster.executor == "slurm" and shutil.which("sbatch") is None:
        raise UserError("no sbatch here: submit from a login node of the cluster")
    folder = _submission(plan)
    say(f"submission {folder}")
    jobs = {step.name: _write(step, folder) for step in steps}
    if plan.cluster.executor == "slurm":
        _queue(plan.chain.name, jobs, folder, say)
    else:
        _here(plan, jobs, folder, say)


def slurm_executor(chain: str, job: Job, folder: Path, after: Sequence[str]) -> Any:
    """submitit's executor for one phase.

    Args:
        chain: prefix of the job's name.
        job: the phase.
        folder: the submission, where logs go too.
        after: ids of the jobs that must succeed first.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 2  # a plan shows the batch script on machines without SLURM, too

    cluster, flags = job.cluster, dict(job.cluster.sbatch)
    if after:
        flags["dependency"] = "afterok:" + ":".join(after)
        # Else a job whose predecessor failed stays in the queue for ever.
        flags["kill-on-invalid-dep"] = "yes"
    # One node's failure ends the others' waiting for it.
    srun = ["--kill-on-bad-exit=1"]
    if cluster.cpus_per_task:
        # Since SLURM 22.05 srun does not take it over from sbatch: a task would get one core.
        srun.append(f"--cpus-per-task={cluster.cpus_per_task}")
    optional = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus_per_node": cluster.gpus_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{round(cluster.mem_gb * 1024)}M" if cluster.mem_gb else None,
    }
    executor = Executor(folder)
    executor.update_parameters(
        job_name=f"{chain}-{job.goal.phase}",
        nodes=cluster.nodes,
        ntasks_per_node=1,
        time=cluster.walltime,
        signal_delay_s=cluster.save_before_end,
        stderr_to_stdout=True,
        setup=[_PATH, *cluster.setup],
        srun_args=srun,
        additional_parameters=flags,
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def batch_script(chain: str, job: Job, folder: Path, after: Sequence[str]) -> str:
    """The text that sbatch will be given."""
    executor = slurm_executor(chain, job, folder, after)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _check_needs(steps: Sequence[Step]) -> None:
    sent = {step.name for step in steps}
    for step in steps:
        for need in step.needs:
            if need.phase not in sent and not need.reached():
                raise UserError(
                    f"{step.name} needs {need.phase}, which is not complete; submit it too"
                )


def _submission(plan: Plan) -> Path:
    # Nobody else may put a file there: submitit unpickles what it finds on the node.
    plan.submissions.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = plan.submissions / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder.mkdir(mode=0o700)
    return folder


def _write(step: Step, folder: Path) -> Job:
    job = step.job(folder)
    if step.config is not None:
        save(step.config, folder / f"{step.name}.yaml")
    write_atomic(_file(folder, step.name), job.model_dump_json(indent=2))
    return job


def _file(folder: Path, phase: str) -> Path:
    return folder / f"{phase}.json"


def _queue(chain: str, jobs: dict[str, Job], folder: Path, say: Callable[[str], None]) -> None:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    sent: dict[str, Any] = {}
    for phase, job in jobs.items():
        after = [sent[need.phase].job_id for need in job.needs if need.phase in sent]
        try:
            sent[phase] = slurm_executor(chain, job, folder, after).submit(
                run_phase, str(_file(folder, phase))
            )
        except (FailedJobError, FailedSubmissionError) as e:
            for other in sent.values():  # half a chain is not what was asked for
                other.cancel(check=False)
            raise RunError(f"{phase} was refused, so nothing is queued: {e}") from e
        write_atomic(folder / JOBS, to_json({p: s.job_id for p, s in sent.items()}))
        waits = f", after {', '.join(after)}" if after else ""
        say(f"{phase}: job {sent[phase].job_id}{waits}, log {sent[phase].paths.stdout}")


def _here(plan: Plan, jobs: dict[str, Job], folder: Path, say: Callable[[str], None]) -> None:
    from submitit.core.utils import environment_variables

    local = plan.cluster.executor == "local"
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with environment_variables(PYTHONPATH=path, **({} if gpus is None else {USERS_GPUS: gpus})):
        for phase, job in jobs.items():
            say(f"{phase}: running")
            _one(phase, job, folder, local, say)
            if not job.goal.reached():
                raise RunError(f"{phase} is not complete; what needs it was not started")
            say(f"{phase}: complete, {job.goal.run}")


def _one(phase: str, job: Job, folder: Path, local: bool, say: Callable[[str], None]) -> None:
    if not local:
        from submitit.local.debug import DebugExecutor

        try:
            # Not result(): on any failure that opens a debugger, which waits for a terminal.
            DebugExecutor(folder).submit(run_phase, str(_file(folder, phase))).exception()
        except SystemExit as e:
            print(f"error: {e}", file=sys.stderr)
        return
    from submitit.local.local import LocalExecutor

    executor = LocalExecutor(folder)
    executor.update_parameters(
        timeout_min=job.cluster.walltime,
        signal_delay_s=job.cluster.save_before_end,
        stderr_to_stdout=True,
    )
    task = executor.submit(run_phase, str(_file(folder, phase)))
    ids = folder / JOBS
    known = json.loads(ids.read_text()) if ids.exists() else {}
    write_atomic(ids, to_json({**known, phase: task.job_id}))
    say(f"{phase}: log {task.paths.stdout}")
    task.wait()
    if not job.goal.reached():
        for line in task.paths.stdout.read_text(errors="replace").splitlines()[-_TAIL:]:
            say(f"  | {line}")
