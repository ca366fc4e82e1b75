"""One phase as a file, and what every node of its job does with it.

What submitit pickles is `run_phase` by name and the path of the file: all else is in that file,
which people can read, and which is checked again where it is used.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from lensdist.config.base import Strict
from lensdist.errors import UserError
from lensdist.phases import COMPLETE, completed
from slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]

# torchrun's agent dies of SIGUSR2 unless told to pass it on, and SLURM's signals reach only the
# agent, never its workers, where processes are tracked by cgroups.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
USERS_GPUS = "LENSDIST_USERS_GPUS"  # CUDA_VISIBLE_DEVICES as it was when the chain was sent
_SHARED_FILE_PATIENCE = 60  # s; network file systems show a new file to other nodes that late


class Goal(Strict):
    """What a phase must leave behind: the only thing that counts as its success."""

    phase: str
    run: Path
    split: Literal["train", "val", "test"] | None = None
    """Scores of this split; None: the finished run itself."""

    def marker(self) -> Path:
        """The file that says so."""
        return self.run / (f"eval/{self.split}.json" if self.split else COMPLETE)

    def reached(self) -> bool:
        """Whether it is there, whole, and (scores) about the weights that the run has now.

        Raises:
            UserError: the run says that it is finished, but its files are damaged.
        """
        record = completed(self.run)
        if record is None or self.split is None:
            return record is not None
        try:
            weights = json.loads(self.marker().read_text())["weights"]
            return bool(weights["model.safetensors"] == record["files"]["export/model.safetensors"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


class Job(Strict):
    """One phase, ready to run on any node."""

    goal: Goal
    needs: tuple[Goal, ...]
    words: tuple[str, ...]
    """What `python` is given: `-m lensdist.train --config …`."""
    cluster: Cluster
    cwd: Path
    """Where the chain was submitted: what relative paths of its settings mean."""


@dataclass(frozen=True)
class Place:
    """A node's place in its job; text, so that a plan can say "$SLURM_NODEID"."""

    rank: str = "0"
    head: str = "127.0.0.1"
    port: str = "0"


def run_phase(path: str) -> None:
    """On every node of a job: run the phase, and leave with 0 only if it is complete.

    Raises:
        SystemExit: with one sentence; submitit would make a traceback of any other exception.
    """
    job = Job.model_validate_json(Path(path).read_text())
    phase = job.goal.phase
    try:
        for need in job.needs:
            if not need.reached():
                sys.exit(f"{phase} not started: {need.phase} is not complete ({need.marker()})")
        code = _run(command(job, place(job.cluster)), _environment(job), job.cwd)
        # Not the exit code: launchers exit 1 after a run that was told to stop and has saved, and
        # gloo's workers sometimes abort after all is done. The head node wrote the marker itself.
        patient = _SHARED_FILE_PATIENCE if os.environ.get("SLURM_NODEID", "0") != "0" else 0
        if _appears(job.goal, patient):
            return
    except UserError as e:
        sys.exit(f"{phase}: {e}")
    sys.exit(
        f"{phase} ended with code {code} and is not complete (no {job.goal.marker()}); the lines "
        "above say why. Submitted again, it goes on from its newest checkpoint"
    )


def command(job: Job, place: Place) -> list[str]:
    """The command of one node."""
    python, cluster = [sys.executable, "-u"], job.cluster
    if cluster.world == 1:
        return [*python, *job.words]  # no launcher between signals and the run
    launch = ["-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "accelerate_config.yaml"), "--multi_gpu"]
    launch += ["--num_machines", str(cluster.nodes), "--num_processes", str(cluster.world)]
    launch += ["--machine_rank", place.rank]
    launch += ["--main_process_ip", place.head, "--main_process_port", place.port]
    return [*python, *launch, *job.words]


def variables(job: Job) -> dict[str, str]:
    """What the command's environment has on top of the job's; the cluster's file decides."""
    cluster, ours = job.cluster, {}
    if cluster.on_cpu:
        ours["ACCELERATE_USE_CPU"] = "true"
    if cluster.world > 1:
        ours["PET_SIGNALS_TO_HANDLE"] = _SIGNALS
    if cluster.cpus_per_task:
        # Fixed, because the number of threads is part of what makes a resume bit-exact.
        ours["OMP_NUM_THREADS"] = str(max(1, cluster.cpus_per_task // cluster.per_node))
    return {**ours, **cluster.env}


def line(job: Job, place: Place) -> str:
    """The command as one would type it, to show."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in variables(job).items())
    words = " ".join(w if w.startswith("$") else shlex.quote(w) for w in command(job, place))
    return f"{settings} {words}".strip()


def place(cluster: Cluster) -> Place:
    """This node's place, found on the node: the head node's variables are not every node's."""
    if cluster.world == 1:
        return Place()
    if cluster.executor != "slurm":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return Place(port=str(s.getsockname()[1]))
    nodes = os.environ["SLURM_JOB_NODELIST"]
    found = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
    )
    # By the job's id, so that all nodes know it, and two jobs on a node differ. Below 32768, where
    # Linux begins to give ports away to outgoing connections.
    port = 10_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
    return Place(os.environ["SLURM_NODEID"], found.stdout.split()[0], str(port))


def _environment(job: Job) -> dict[str, str]:
    env = {**os.environ, **variables(job)}
    if job.cluster.executor == "local" and "CUDA_VISIBLE_DEVICES" not in job.cluster.env:
        # submitit's local executor hides every GPU, or ignores the user's choice of some.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        if USERS_GPUS in os.environ:
            env["CUDA_VISIBLE_DEVICES"] = os.environ[USERS_GPUS]
    return env


def _run(words: list[str], env: dict[str, str], cwd: Path) -> int:
    """Run a command, passing on the signals that ask it to save and leave; its exit code."""
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            sys.exit("told to stop before it began")
        child.send_signal(number)

    # In place of submitit's own handler, which would requeue the job while the run still saves.
    before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        child = subprocess.Popen(words, env=env, cwd=cwd)
        return child.wait()
    finally:
        if child is not None and child.poll() is None:  # Ctrl-C, or the executor's own time limit
            child.terminate()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _appears(goal: Goal, patience: float) -> bool:
    end = time.monotonic() + patience
    while not (there := goal.reached()) and time.monotonic() < end:
        time.sleep(1)
    return there
