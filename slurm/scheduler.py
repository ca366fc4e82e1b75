"""SLURM's commands: the one file that calls them.

All of them answer, with what they know, on machines without SLURM too: nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence

from pydantic import Field

from lensdist.config.base import Strict
from lensdist.errors import RunError

PATIENCE = 60  # s, of one command; a controller under load takes its time
_AWAY = (5, 10, 30, 60, 120)  # s between looks whether a controller that was away is back
_NO_ANSWER = re.compile(r"unable to contact|no answer within|timed out", re.IGNORECASE)

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED")


class JobState(Strict):
    """What SLURM says of a job (of a task of an array, where it is one)."""

    job: str = Field(description="its id, as it was given: 17, or 17_3")
    state: str = Field(description="PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, …")
    reason: str = Field("", description="why it waits, or ended: Priority, Dependency, TimeLimit")
    nodes: str = Field("", description="as SLURM writes them: gpu[07-08]")
    exit_code: str = Field("", description="status:signal")

    @property
    def active(self) -> bool:
        """Whether it is in the queue: something may still come of it."""
        return self.state in WAITING or self.state in RUNNING

    @property
    def stuck(self) -> bool:
        """Whether it waits for what never comes: a failed job, a release, nodes that are none."""
        return self.state in WAITING and (
            self.reason in ("DependencyNeverSatisfied", "BadConstraints")
            or "held" in self.reason.lower()
        )


def available() -> bool:
    """Whether SLURM's commands are here."""
    return shutil.which("sbatch") is not None


def ask(*words: str) -> str:
    """A command's output; nothing where it fails, or is not there."""
    if shutil.which(words[0]) is None:
        return ""
    done = _run(*words)
    return done.stdout if done.returncode == 0 else ""


def tell(*words: str) -> None:
    """A command that must succeed.

    Raises:
        RunError: it did not, in its own words.
    """
    done = _run(*words)
    if done.returncode:
        raise RunError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"no answer within {PATIENCE} s")
    except OSError as e:
        return subprocess.CompletedProcess(words, 1, "", str(e))


def states(ids: Sequence[str]) -> dict[str, JobState]:
    """Of each job that SLURM knows, in the queue or in its accounting.

    Raises:
        RunError: SLURM does not answer: that is not the same as knowing no such job.
    """
    found: dict[str, JobState] = {}
    unique = [*dict.fromkeys(ids)]
    if not unique:
        return found
    known = ",".join(unique)
    # sacct remembers finished jobs but lags some seconds behind; what squeue says is newer.
    past = ask("sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason,NodeList,ExitCode", "-j", known)
    for line in past.splitlines():
        job, state, reason, nodes, code = (line.split("|") + [""] * 5)[:5]
        if job in unique and state:
            found[job] = JobState(
                job=job, state=state.split()[0], reason=reason, nodes=nodes, exit_code=code
            )  # "CANCELLED by 1000"
    for line in _queue(unique):
        job, state, reason, nodes = (line.split("|") + [""] * 4)[:4]
        if job in unique:
            old = found.get(job)
            found[job] = JobState(
                job=job,
                state=state,
                reason="" if reason == "None" else reason,
                nodes=nodes,
                exit_code=old.exit_code if old else "",
            )
    return found


def _queue(ids: Sequence[str]) -> list[str]:
    """squeue's lines on these jobs."""
    if shutil.which("squeue") is None:
        return []
    # -a: hidden partitions too; -r: a line a task of an array.
    words = ["squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%N", "-j"]
    done = _run(*words, ",".join(ids))
    if done.returncode == 0:
        return done.stdout.splitlines()
    if "Invalid job id" not in done.stderr:
        raise RunError(f"squeue: {done.stderr.strip() or 'no answer'}; try again later")
    # One id that it has forgotten makes SLURM refuse all.
    return [line for one in ids for line in _queue([one])] if len(ids) > 1 else []


def details(job: str) -> dict[str, str]:
    """`scontrol show job`: JobState, Restarts, EndTime, ExitCode, …; nothing if it is forgotten."""
    answer = ask("scontrol", "-o", "show", "job", job).splitlines()
    return dict(re.findall(r"(\S+?)=(\S*)", answer[0])) if answer else {}


def requeue(job: str) -> None:
    """Queue a job again; a controller that is away for some minutes is waited for.

    Raises:
        RunError: SLURM refused.
    """
    for pause in (*_AWAY, None):
        try:
            tell("scontrol", "requeue", job)
            return
        except RunError as e:
            if pause is None or not _NO_ANSWER.search(str(e)):
                raise
            time.sleep(pause)


def change(job: str, exclude: Sequence[str] = (), delay: float = 0) -> None:
    """Keep a job that waits away from some nodes, and from starting within `delay` seconds.

    Raises:
        RunError: SLURM refused.
    """
    changes = []
    if exclude:
        changes.append(f"ExcNodeList={','.join(exclude)}")
    if delay:
        changes.append(f"StartTime=now+{round(delay)}")
    if changes:
        tell("scontrol", "update", f"JobId={job}", *changes)


def own_id(env: Mapping[str, str]) -> str:
    """Of the job that this process is in, as people and logs call it: 17, or 17_3 in an array."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def seconds_left(job: str) -> float | None:
    """Until a running job reaches its time limit; None where it has none, or nobody knows."""
    found = re.fullmatch(
        r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", ask("squeue", "-h", "-o", "%L", "-j", job).strip()
    )
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are passed over.

    Raises:
        RunError: SLURM refused.
    """
    if ids:
        tell("scancel", *ids)


def hostnames(nodes: str) -> list[str]:
    """gpu[07-08] -> gpu07, gpu08.

    Raises:
        RunError: SLURM does not understand it, or is not here.
    """
    words = ("scontrol", "show", "hostnames", nodes)
    done = _run(*words)
    if done.returncode or not done.stdout.strip():  # it leaves with 0 whatever it was given
        raise RunError(f"{' '.join(words)}: {done.stderr.strip() or 'no answer'}")
    return done.stdout.split()
