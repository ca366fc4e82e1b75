"""SLURM's commands; no other file calls them.

On a machine without SLURM, questions get an empty answer.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from lensdist.utils.errors import RunError
from lensdist.utils.settings import Strict
from lensdist.utils.text import counted
from slurm.session import own_environment

PATIENCE = 60  # s that a command may take; a busy controller is slow
_AWAY = (5, 10, 30, 60, 120)  # s between attempts to reach a controller that does not answer
_NO_ANSWER = re.compile(r"unable to contact|no answer within|timed out", re.IGNORECASE)

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED")

_WAITS = re.compile(r"#SBATCH\s+--(dependency|kill-on-invalid-dep)\b")
_ASKED = re.compile(
    r"^#SBATCH --((?:nodes|ntasks-per-node|cpus-per-task|gpus\S*?|gres|mem|constraint)=\S+)", re.M
)
_START = re.compile(
    r"Job \d+ to start at (?P<time>.+?) using (?P<cores>\d+) processors? on nodes? (?P<nodes>\S+)"
    r"(?: in partition (?P<partition>\S+))?"
)
_PREEMPTS = re.compile(r"Preempts: (?P<jobs>.+)")


class JobState(Strict):
    """SLURM's report about a job, or about one task of a job array."""

    job: str = Field(description="its id as it was asked for: 17, or 17_3")
    state: str = Field(description="PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, …")
    reason: str = Field("", description="why it waits or ended: Priority, Dependency, TimeLimit")
    nodes: str = Field("", description="in SLURM's notation: gpu[07-08]")
    exit_code: str = Field("", description="status:signal")

    @property
    def active(self) -> bool:
        """Whether it is in the queue or runs."""
        return self.state in WAITING or self.state in RUNNING

    @property
    def stuck(self) -> bool:
        """Whether it waits for something that never happens without help."""
        return self.state in WAITING and (
            self.reason in ("DependencyNeverSatisfied", "BadConstraints")
            or "held" in self.reason.lower()
        )


def available() -> bool:
    """Return whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None


def states(ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of each job that SLURM's queue or accounting has.

    Raises:
        RunError: SLURM does not answer, which does not mean that it has no such job.
    """
    found: dict[str, JobState] = {}
    unique = [*dict.fromkeys(ids)]
    if not unique:
        return found
    known = ",".join(unique)
    # sacct remembers finished jobs but lags some seconds behind squeue.
    past = _ask(
        "sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason,NodeList,ExitCode", "-j", known
    )
    for line in past.splitlines():
        job, state, reason, nodes, code = (line.split("|") + [""] * 5)[:5]
        if job in unique and state:
            word = state.split()[0]  # "CANCELLED by 1000"
            found[job] = JobState(job=job, state=word, reason=reason, nodes=nodes, exit_code=code)
    for line in _queue(unique):
        job, state, reason, nodes = (line.split("|") + [""] * 4)[:4]
        if job in unique:
            code = found[job].exit_code if job in found else ""
            reason = "" if reason == "None" else reason
            found[job] = JobState(job=job, state=state, reason=reason, nodes=nodes, exit_code=code)
    return found


def sent_from(folder: Path) -> dict[str, str]:
    """Return the newest job of each name whose batch script is in a folder; of an array its id.

    Raises:
        RunError: SLURM does not answer, which does not mean that there is none.
    """
    done = _run("squeue", "-h", "-a", "-t", "all", "-o", "%F|%j|%o")
    if done.returncode:
        raise RunError(f"squeue: {done.stderr.strip() or 'no answer'}; try again later")
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    ours = [row for row in rows if len(row) == 3 and Path(row[2]).parent == folder]
    return {name: job for job, name, _ in sorted(ours, key=lambda row: int(row[0]))}


def is_away(answer: str) -> bool:
    """Return whether a command failed because the controller does not answer: it may obey later."""
    return _NO_ANSWER.search(answer) is not None


def pauses() -> tuple[float, ...]:
    """Return the seconds to wait between attempts to reach a controller that does not answer."""
    return _AWAY


def details(job: str) -> dict[str, str]:
    """Return the fields of `scontrol show job`, or nothing if SLURM has forgotten the job."""
    answer = _ask("scontrol", "-o", "show", "job", job).splitlines()
    return dict(re.findall(r"(\S+?)=(\S*)", answer[0])) if answer else {}


def largest_array() -> int | None:
    """Return how many tasks a job array may have; None without SLURM, or if it does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.M)
    return max(1, int(found[1])) if found else None


def seconds_left(job: str) -> float | None:
    """Return the time until a running job's limit; None if there is no limit, or it is unknown."""
    answer = _ask("squeue", "-h", "-o", "%L", "-j", job).strip()
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", answer)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def comment(job: str) -> str:
    """Return a job's comment; empty if it has none, or it is unknown."""
    found = _ask("squeue", "-h", "-o", "%k", "-j", job).strip()
    return "" if found == "(null)" else found


def note(job: str, text: str) -> None:
    """Set a job's comment.

    Raises:
        RunError: SLURM refused.
    """
    tell("scontrol", "update", f"JobId={job}", f"Comment={text}")


def hostnames(nodes: str) -> list[str]:
    """Return the names in a list of nodes: gpu[07-08] -> gpu07, gpu08.

    Raises:
        RunError: SLURM does not understand the list, or is not on this machine.
    """
    argv = ("scontrol", "show", "hostnames", nodes)
    done = _run(*argv)
    if done.returncode or not done.stdout.strip():  # its exit code is 0 for any list
        raise RunError(f"{' '.join(argv)}: {done.stderr.strip() or 'no answer'}")
    return done.stdout.split()


def own_id(env: Mapping[str, str]) -> str:
    """Return the id of the job that this process belongs to: 17, or 17_3 in an array."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env["SLURM_JOB_ID"]


def expected_start(script: str) -> str:
    """Ask SLURM when a job could start if it were sent now; nothing is queued.

    The jobs that it depends on do not exist yet, so its dependencies are left out.

    Returns:
        The time and the nodes, or the reason why it cannot start, which begins with `refused: `.

    Raises:
        RunError: SLURM does not answer.
    """
    lines = script.splitlines(keepends=True)
    kept = [line for line in lines if not _WAITS.match(line)]
    # The user may have chosen another format, such as `relative`.
    with own_environment():
        env = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
        done = _run("sbatch", "--test-only", text="".join(kept), env=env)
    answer = done.stderr + done.stdout
    found = _START.search(answer)
    if done.returncode or found is None:
        if is_away(answer):
            raise RunError("SLURM does not answer; try again later")
        said = (re.sub(r"^sbatch: (error: )?", "", line).strip() for line in answer.splitlines())
        reason = "; ".join(filter(None, said)) or f"exit code {done.returncode}"
        if "node configuration is not available" in reason:
            reason += f"; asked for: {', '.join(_ASKED.findall(script))}"
        return f"refused: {reason}"
    cores, partition = counted(int(found["cores"]), "core"), found["partition"]
    text = f"at {found['time'].replace('T', ' ')} on {cores}"
    text += f" of {found['nodes']}" + (f", partition {partition}" if partition else "")
    preempts = _PREEMPTS.search(answer)
    text += f", in place of job {preempts['jobs']}" if preempts else ""
    return text + ("" if len(kept) == len(lines) else ", not counting the phases it waits for")


def requeue(job: str) -> None:
    """Queue a running job again; wait some minutes for a controller that does not answer.

    Raises:
        RunError: SLURM refused.
    """
    for pause in (*_AWAY, None):
        try:
            tell("scontrol", "requeue", job)
            return
        except RunError as e:
            if pause is None or not is_away(str(e)):
                raise
            time.sleep(pause)


def send(script: Path, exclude: Sequence[str] = (), delay: float = 0) -> str:
    """Send a batch script; return the job's id. Nothing of this process's own job is passed on.

    Raises:
        RunError: SLURM refused, or does not answer, and then may have the job.
    """
    argv = ["sbatch", "--parsable"]
    argv += [f"--exclude={','.join(exclude)}"] if exclude else []
    argv += [f"--begin=now+{round(delay)}"] if delay else []
    with own_environment():
        done = _run(*argv, str(script))
    number = done.stdout.strip().partition(";")[0]  # a federation adds its cluster's name
    if done.returncode or not number.isdigit():
        raise RunError(f"sbatch: {(done.stderr or done.stdout).strip() or 'no answer'}")
    return number


def depend(job: str, conditions: Sequence[str]) -> None:
    """Let a waiting job wait for other conditions, such as `afterok:17`, in place of its own.

    Raises:
        RunError: SLURM refused.
    """
    tell("scontrol", "update", f"JobId={job}", f"Dependency={','.join(conditions)}")


def change(job: str, exclude: Sequence[str] = (), delay: float = 0) -> None:
    """Exclude nodes from a waiting job, and let it start after `delay` seconds at the earliest.

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


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; SLURM ignores those that have ended.

    Raises:
        RunError: SLURM refused.
    """
    if ids:
        tell("scancel", *ids)


def tell(*argv: str) -> None:
    """Run a command that must succeed.

    Raises:
        RunError: it failed; the message is the command's own.
    """
    done = _run(*argv)
    if done.returncode:
        raise RunError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")


def _ask(*argv: str) -> str:
    """Return a command's output; nothing if it fails or does not exist."""
    done = _run(*argv)
    return done.stdout if done.returncode == 0 else ""


def _queue(ids: Sequence[str]) -> list[str]:
    """Return squeue's lines about these jobs."""
    if shutil.which("squeue") is None:
        return []
    # -a: hidden partitions too; -r: one line for each task of an array.
    argv = ["squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%N", "-j"]
    done = _run(*argv, ",".join(ids))
    if done.returncode == 0:
        return done.stdout.splitlines()
    if "Invalid job id" not in done.stderr:
        raise RunError(f"squeue: {done.stderr.strip() or 'no answer'}; try again later")
    # SLURM refuses the whole list if it has forgotten one of the jobs.
    return [line for one in ids for line in _queue([one])] if len(ids) > 1 else []


def _run(
    *argv: str, text: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, input=text, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"no answer within {PATIENCE} s")
    except OSError as e:
        return subprocess.CompletedProcess(argv, 1, "", str(e))
