"""The command of a node, and its environment."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lensdist import outcome
from lensdist.launched import DEVICE, MIN_TFLOPS, PREFLIGHT
from slurm.config.cluster import Cluster
from slurm.job import Job
from slurm.scheduler import hostnames

# torchrun's agent dies of SIGUSR2 unless told to pass it on, and SLURM's signals reach only the
# agent, never its workers, where processes are tracked by cgroups.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
_SAVE = 600  # s that torchrun leaves its processes to save in, before it kills them; its own: 30
USERS_GPUS = "LENSDIST_USERS_GPUS"  # CUDA_VISIBLE_DEVICES as it was when the chain was sent
ATTEMPT = "LENSDIST_ATTEMPT"


@dataclass(frozen=True)
class Place:
    """A node's place in its job; text, so that a plan can say "$SLURM_NODEID".

    Attributes:
        rank: this node's number.
        count: nodes of the attempt.
        head: name of the first.
        port: where its processes listen.
    """

    rank: str = "0"
    count: int = 1
    head: str = "127.0.0.1"
    port: str = "0"


def place(cluster: Cluster) -> Place:
    """This node's place, found on the node: the head node's variables are not every node's.

    Raises:
        RunError: SLURM does not know its nodes.
    """
    if cluster.executor != "slurm":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return Place(port=str(s.getsockname()[1]))
    # The step's: a job may have been given more nodes than can share its micro-batches evenly.
    names = hostnames(os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"])
    # By the job's id, so that all nodes know it, and two jobs on a node differ; and by the attempt,
    # should somebody else listen there. Below 32768, where Linux begins to give ports away to
    # outgoing connections.
    number = int(os.environ["SLURM_JOB_ID"]) + 6_007 * (int(os.environ.get(ATTEMPT, "1")) - 1)
    port = 10_000 + number % 20_000
    return Place(os.environ["SLURM_NODEID"], len(names), names[0], str(port))


def command(job: Job, place: Place) -> list[str]:
    """The command of one node."""
    cluster = job.cluster
    python = [*cluster.container, cluster.python or sys.executable, "-u"]
    world = place.count * cluster.per_node
    if world == 1:
        return [*python, *job.words]  # no launcher between signals and the run
    launch = ["-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(job.code / "accelerate_config.yaml"), "--multi_gpu"]
    launch += ["--num_machines", str(place.count), "--num_processes", str(world)]
    launch += ["--machine_rank", place.rank]
    launch += ["--main_process_ip", place.head, "--main_process_port", place.port]
    if place.count == 1:  # they meet by a file: torchrun's store would listen to the whole network
        launch += ["--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file"]
    return [*python, *launch, *job.words]


def variables(job: Job, count: int = 1) -> dict[str, str]:
    """What the command's environment has on top of the job's; the cluster's file decides."""
    cluster = job.cluster
    ours = {
        "PYTHONPATH": str(job.code),
        # Else `python -m` would take the toolkit from where the chain was sent from: the clone.
        "PYTHONSAFEPATH": "1",
    }
    if cluster.on_cpu:
        ours["ACCELERATE_USE_CPU"] = "true"
    if count * cluster.per_node > 1:
        ours |= {"PET_SIGNALS_TO_HANDLE": _SIGNALS, "PET_SHUTDOWN_TIMEOUT": str(_SAVE)}
        if count == 1:  # and process 0 listens on the loopback: lensdist.engine.rendezvous
            ours |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PET_LOCAL_ADDR": "127.0.0.1"}
    if cluster.cpus_per_task:
        # Fixed, because the number of threads is part of what makes a resume bit-exact.
        ours["OMP_NUM_THREADS"] = str(max(1, cluster.cpus_per_task // cluster.per_node))
    if cluster.interface:
        ours["NCCL_SOCKET_IFNAME"] = ours["GLOO_SOCKET_IFNAME"] = cluster.interface
    return {**ours, **cluster.env}


def environment(
    job: Job, place: Place, words: Path, inherited: Mapping[str, str]
) -> dict[str, str]:
    """All of it, on the node.

    Args:
        job: what runs.
        place: of this node.
        words: folder in which the attempt's processes leave theirs.
        inherited: the node's own variables.
    """
    cluster, env = job.cluster, {**inherited}
    path = env.get("PYTHONPATH")
    env |= variables(job, place.count)
    if path and "PYTHONPATH" not in cluster.env and str(job.code) not in path.split(os.pathsep):
        env["PYTHONPATH"] += os.pathsep + path
    env[outcome.FOLDER] = str(words)
    if cluster.preflight.enabled:
        env[PREFLIGHT] = "1"
        if cluster.gpus_per_node:
            env[DEVICE] = "cuda"
        if cluster.preflight.min_tflops:
            env[MIN_TFLOPS] = str(cluster.preflight.min_tflops)
    if cluster.executor == "local" and "CUDA_VISIBLE_DEVICES" not in cluster.env:
        # submitit's local executor hides every GPU, or ignores the user's choice of some.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        if USERS_GPUS in inherited:
            env["CUDA_VISIBLE_DEVICES"] = inherited[USERS_GPUS]
    return env


def line(job: Job, place: Place) -> str:
    """The command as one would type it, to show."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in variables(job, place.count).items())
    unknown = (place.rank, place.head, place.port)  # variables, which quotes would hide
    words = " ".join(w if w in unknown else shlex.quote(w) for w in command(job, place))
    return f"{settings} {words}".strip()
