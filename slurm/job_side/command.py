"""The command that a node runs, and its environment."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lensdist.utils import outcome
from lensdist.utils.errors import RunError
from lensdist.utils.hostlist import expand
from lensdist.utils.launched import DEVICE, MIN_TFLOPS, PATIENCE, PREFLIGHT
from slurm.config.cluster import Cluster
from slurm.job import Job
from slurm.session import without_ranks

# torchrun's agent would die of SIGUSR2, and under cgroups SLURM's signals do not reach its workers:
# so the agent must pass them on.
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2"
_SAVE = 600  # s that torchrun lets its processes save before it kills them; its default is 30
_TRIES = 100  # ports
USERS_GPUS = "LENSDIST_USERS_GPUS"
"""Variable with CUDA_VISIBLE_DEVICES as it was when the chain was sent."""
ATTEMPT = "LENSDIST_ATTEMPT"
"""Variable with the attempt's number."""


@dataclass(frozen=True)
class Place:
    """A node's place in its job; text, because a plan shows "$SLURM_NODEID".

    Attributes:
        rank: the node's number.
        count: number of nodes of the attempt.
        head: name of the first node.
        port: where the processes listen.
    """

    rank: str = "0"
    count: int = 1
    head: str = "127.0.0.1"
    port: str = "0"


def find_place(cluster: Cluster) -> Place:
    """Return this node's place; called on the node, since the head node's variables differ.

    SLURM's variables suffice: its commands may not exist here, in a container.

    Raises:
        RunError: they do not name the nodes.
    """
    if cluster.executor != "slurm":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return Place(port=str(s.getsockname()[1]))
    # Of the step: the job may have more nodes than can share its micro-batches evenly.
    try:
        names = expand(os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"])
    except ValueError as e:
        raise RunError(f"SLURM_STEP_NODELIST: {e}") from e
    # From the job's id: the same on all its nodes, and different for two jobs on one node. The
    # attempt changes it, in case another program has the port.
    first, last = cluster.port_range
    number = int(os.environ["SLURM_JOB_ID"]) + 6_007 * (int(os.environ.get(ATTEMPT, "1")) - 1)
    port = first + number % (last - first + 1)
    return Place(os.environ["SLURM_NODEID"], len(names), names[0], str(port))


def free_port(cluster: Cluster, first: int) -> int:
    """Return a port of the cluster's range that is free on this node, from `first` on.

    It is `first` itself if all that are tried are taken: the run then says so.
    """
    low, high = cluster.port_range
    for step in range(min(_TRIES, high - low + 1)):
        port = low + (first - low + step) % (high - low + 1)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("", port))
            return port
    return first


def command(job: Job, place: Place) -> list[str]:
    """Return the command of one node."""
    cluster = job.cluster
    python = [*cluster.container, cluster.python or sys.executable, "-u"]
    world = place.count * cluster.per_node
    if world == 1:
        return [*python, *job.argv]  # no launcher between signals and the run
    launch = ["-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(job.code / "accelerate_config.yaml"), "--multi_gpu"]
    launch += ["--num_machines", str(place.count), "--num_processes", str(world)]
    launch += ["--machine_rank", place.rank]
    launch += ["--main_process_ip", place.head, "--main_process_port", place.port]
    if place.count == 1:  # rendezvous by file: torchrun's store listens to the whole network
        launch += ["--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file"]
    return [*python, *launch, *job.argv]


def variables(job: Job, count: int = 1) -> dict[str, str]:
    """Return the variables that the launcher sets on `count` nodes; the cluster's `env` wins."""
    cluster = job.cluster
    ours = {
        "PYTHONPATH": str(job.code),
        # Without this, `python -m` imports the toolkit from the folder where the chain was sent.
        "PYTHONSAFEPATH": "1",
    }
    if cluster.on_cpu:
        ours["ACCELERATE_USE_CPU"] = "true"
    if count * cluster.per_node > 1:
        ours |= {"PET_SIGNALS_TO_HANDLE": _SIGNALS, "PET_SHUTDOWN_TIMEOUT": str(_SAVE)}
        if (
            count == 1
        ):  # process 0 listens on the loopback only: see lensdist.distributed.rendezvous
            ours |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PET_LOCAL_ADDR": "127.0.0.1"}
    if cluster.cpus_per_task:
        # Fixed, because a bit-exact resume needs the same number of threads.
        ours["OMP_NUM_THREADS"] = str(max(1, cluster.cpus_per_task // cluster.per_node))
    if cluster.interface:
        ours["NCCL_SOCKET_IFNAME"] = ours["GLOO_SOCKET_IFNAME"] = cluster.interface
    return {**ours, **cluster.env}


def environment(
    job: Job, place: Place, outcomes: Path, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return all variables of the command, on the node.

    Args:
        outcomes: folder of the attempt's exit reports.
        inherited: the node's own variables.
    """
    cluster, env = job.cluster, without_ranks(inherited)
    path = env.get("PYTHONPATH")
    env |= variables(job, place.count)
    if path and "PYTHONPATH" not in cluster.env and str(job.code) not in path.split(os.pathsep):
        env["PYTHONPATH"] += os.pathsep + path
    env |= {outcome.FOLDER: str(outcomes), outcome.NODE: place.rank}
    if cluster.preflight.enabled:
        env[PREFLIGHT] = "1"
        env[PATIENCE] = str(cluster.preflight.load_seconds + cluster.preflight.seconds)
        if cluster.gpus_per_node:
            env[DEVICE] = "cuda"
        if cluster.preflight.min_tflops:
            env[MIN_TFLOPS] = str(cluster.preflight.min_tflops)
    if cluster.executor == "local" and "CUDA_VISIBLE_DEVICES" not in cluster.env:
        # submitit's local executor hides all GPUs, or ignores the user's choice.
        env.pop("CUDA_VISIBLE_DEVICES", None)
        if USERS_GPUS in inherited:
            env["CUDA_VISIBLE_DEVICES"] = inherited[USERS_GPUS]
    return env


def shown_command(job: Job, place: Place) -> str:
    """Return the command as one would type it."""
    settings = " ".join(f"{k}={shlex.quote(v)}" for k, v in variables(job, place.count).items())
    unknown = (place.rank, place.head, place.port)  # may be shell variables, so without quotes
    argv = " ".join(a if a in unknown else shlex.quote(a) for a in command(job, place))
    return f"{settings} {argv}".strip()
