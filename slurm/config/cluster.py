"""The settings of a cluster: where a chain runs (`configs/clusters/<name>.yaml`)."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from lensdist.estimate.hardware import Shape
from lensdist.utils.settings import Strict
from slurm.config.walltime import Minutes

# sbatch's flags that a setting of the cluster decides already.
_OURS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "nodes": "nodes",
    "gpus-per-node": "gpus_per_node",
    "gpus": "gpus_per_node",
    "gpus-per-task": "gpus_per_node",
    "ntasks": "processes_per_node",
    "ntasks-per-node": "processes_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "mem_gb",
    "time": "walltime",
    "signal": "save_before_end",
    "exclude": "exclude",
}
_LAUNCHER = {"array", "dependency", "kill-on-invalid-dep", "job-name", "output", "error"}
_LAUNCHER |= {"open-mode", "requeue", "no-requeue", "chdir", "export"}
# Those of the launcher's that a job can do without: a site may forbid them.
_DROPPED = {*_OURS, "open-mode", "requeue", "kill-on-invalid-dep"}


def breaks_lines(text: str) -> bool:
    """Return whether a text has control characters or line separators."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def _one_line(text: str) -> str:
    if breaks_lines(text):  # it could become another line of the batch script
        raise ValueError(f"has a control character ({text!r})")
    return text


def _name(pattern: str, what: str) -> AfterValidator:
    def check(name: str) -> str:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"{name!r} is not {what}")
        return name

    return AfterValidator(check)


Line = Annotated[str, AfterValidator(_one_line)]
Flag = Annotated[str, _name("[A-Za-z][A-Za-z0-9_-]*", "a flag's name; leave out the dashes")]
Variable = Annotated[str, _name("[A-Za-z_][A-Za-z0-9_]*", "a variable's name")]


def _ports(text: str) -> str:
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if found is None or not 1024 <= int(found[1]) <= int(found[2] or found[1]) < 2**16:
        raise ValueError(f"{text!r} is not a port, or a range of ports, from 1024 to 65535")
    return text


Ports = Annotated[str, BeforeValidator(str), AfterValidator(_ports)]


class Requeue(Strict):
    """The rules for starting a phase again after a failure."""

    limit: int = Field(50, ge=0, description="attempts after the first, for any reason")
    crashes: int = Field(
        3, ge=1, description="crashes in a row without a new checkpoint; then the phase is stopped"
    )
    backoff: int = Field(
        30,
        ge=0,
        description="seconds to wait after a crash; doubled at each further one, up to 1 h",
    )


class Preflight(Strict):
    """The checks that a node must pass before a run starts on it."""

    enabled: bool = Field(True, description="false: start without any check")
    command: str | None = Field(
        None, description="a shell command of your own; a node where it fails is not used"
    )
    seconds: int = Field(
        180,
        ge=1,
        description="time in which all processes must reach their devices and each other, after "
        "they have loaded torch; more where that was slow",
    )
    load_seconds: int = Field(
        600, ge=1, description="time in which the processes of a node must have loaded torch"
    )
    min_free_gb: float = Field(5.0, ge=0, description="free space where the run is written, GB")
    min_write_mb_s: float = Field(5.0, ge=0, description="write rate there, MB/s")
    max_clock_skew: float = Field(
        30.0, gt=0, description="largest difference of the node's and the file system's clock, s"
    )
    min_tflops: float | None = Field(
        None, gt=0, description="speed of a GPU in bfloat16, TFLOP/s; null: any"
    )


class Cluster(Shape):
    """This machine, or the resources that each job asks SLURM for."""

    executor: Literal["local", "debug", "slurm"] = Field(
        "local",
        description="slurm: one job per phase; local: on this machine, output in files; "
        "debug: in the launcher's own process, output on the terminal",
    )
    partition: Line | None = Field(None, description="sbatch --partition")
    account: Line | None = Field(None, description="sbatch --account")
    qos: Line | None = Field(None, description="sbatch --qos")
    constraint: Line | None = Field(None, description="sbatch --constraint")
    gpu_request: Literal["gpus-per-node", "gpus-per-task", "gres", "none"] = Field(
        "gpus-per-node",
        description="the option of sbatch that asks for GPUs; none: nodes are taken whole, and "
        "their GPUs with them",
    )
    cpus_per_task: int | None = Field(
        None, ge=1, description="cores of a node, which its processes share"
    )
    mem_gb: float | None = Field(None, gt=0, description="memory of a node; null: SLURM's default")
    walltime: Minutes = Field(
        1440, description="time limit of a job: minutes, HH:MM:SS or D-HH:MM:SS"
    )
    at_once: int | None = Field(
        None, ge=1, description="tasks of a sweep that may run at the same time; null: all"
    )
    save_before_end: int = Field(
        60,
        ge=1,
        description="seconds before the limit at which SLURM's signal makes the run save and stop; "
        "a run stops earlier if its own steps and saves take longer",
    )
    exclude: tuple[Line, ...] = Field((), description="nodes that are not used")
    interface: Line | None = Field(
        None, description="network interface between nodes: ib0; null: the libraries choose"
    )
    ports: Ports = Field(
        "10000-29999",
        description="ports of the first node for the processes of several nodes: one, or a range; "
        "each attempt takes a free one. From 32768 on Linux gives them to other connections",
    )
    setup: tuple[Line, ...] = Field(
        (),
        description="lines of the batch script: [module load cuda]; one that fails ends the job, "
        "unless it ends with || true",
    )
    container: tuple[Line, ...] = Field(
        (),
        description="command before the run's own: [apptainer, exec, --nv, X.sif]",
    )
    python: Line | None = Field(
        None, description="Python interpreter of the run, if a container has its own"
    )
    env: dict[Variable, Line] = Field({}, description="environment variables of the run")
    sbatch: dict[Flag, Line | None] = Field(
        {},
        description="more flags of sbatch, without dashes; '' for a flag without value; null drops "
        "a flag that is set otherwise",
    )
    srun: dict[Flag, Line] = Field(
        {}, description="more flags of srun: {container-image: …}; '' for a flag without value"
    )
    stage: Literal["data"] | None = Field(
        None,
        description="data: each node copies a run's packed set to its own disk, once, and reads "
        "the copy; where there is no room it reads the set",
    )
    stage_to: Line | None = Field(
        None,
        description="folder on a node's own disk for `stage`; null: $SLURM_TMPDIR, $TMPDIR or /tmp",
    )
    stage_seconds: int = Field(
        1800, ge=1, description="time in which all nodes must have copied what `stage` says"
    )
    share: Literal["group"] | None = Field(
        None,
        description="group: your group may read the runs, their status and logs; null: what the "
        "launcher keeps is yours alone",
    )
    tflops: float | None = Field(
        None, gt=0, description="speed of one process in training, for the times that plan shows"
    )
    phases: dict[str, dict[str, Any]] = Field(
        {},
        description="other values of these keys, for the phases of a kind (train, evaluate, "
        "simulate, pack, report) or of a name: {simulate: {partition: cpu}}",
    )
    requeue: Requeue = Requeue()
    preflight: Preflight = Preflight()

    @field_validator("stage", mode="before")
    @classmethod
    def _not_the_environment(cls, value: Any) -> Any:
        if value == "env":
            raise ValueError(
                "env: an environment cannot move, since its files hold its path; put it into a "
                "container's image, which a node reads as one file"
            )
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.executor != "slurm":
            self._is_one_machine()
        if self.gpus and self.processes_per_node not in (None, self.gpus):
            raise ValueError(
                f"processes_per_node {self.processes_per_node} is not gpus_per_node "
                f"{self.gpus}; each process uses one GPU: leave processes_per_node out"
            )
        if self.save_before_end >= 60 * self.walltime:
            raise ValueError(
                f"save_before_end {self.save_before_end} s is not less than walltime "
                f"{self.walltime} min; lower it"
            )
        for flag, value in self.sbatch.items():
            name = flag.lstrip("-").replace("_", "-")
            if value is None and name in _DROPPED:
                continue
            if name in _OURS or (name == "gres" and re.match(r"(.*,)?gpu\b", value or "")):
                ours = _OURS.get(name, "gpus_per_node")
                raise ValueError(f"sbatch: {flag}: use the cluster's {ours} in its place")
            if name in _LAUNCHER:
                raise ValueError(f"sbatch: {flag}: the launcher sets it; leave it out")
        if self.stage and (self.container or self.boxed):
            raise ValueError("stage: a container does not see the node's disk; leave out stage")
        if self.gpu_request == "gpus-per-task" and self.most > self.fewest:
            raise ValueError("gpu_request: gpus-per-task needs one number of nodes, not a range")
        return self

    def _is_one_machine(self) -> None:
        if self.most > 1:
            raise ValueError(f"nodes: executor {self.executor} has 1 node, not {self.nodes}")
        for name in ("setup", "sbatch", "srun"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}: executor {self.executor} does not use SLURM; use env, or set up your "
                    "shell first"
                )

    @property
    def boxed(self) -> bool:
        """Whether srun itself puts the task into a container (pyxis)."""
        return any(flag.lstrip("-").startswith("container") for flag in self.srun)

    @property
    def on_cpu(self) -> bool:
        """Whether processes must not use a GPU that they find.

        A single local process may use the GPU of a laptop; several cannot share it.
        """
        alone = self.most * self.per_node == 1
        return not self.gpus_per_node and (self.executor == "slurm" or not alone)

    @property
    def own_python(self) -> bool:
        """Whether another interpreter runs the job than the one that sends it."""
        return bool(self.container or self.python or self.boxed)

    @property
    def port_range(self) -> tuple[int, int]:
        """The first and the last of `ports`."""
        first, _, last = self.ports.partition("-")
        return int(first), int(last or first)

    def at_most(self, processes: int) -> Cluster:
        """Return this cluster, limited to a number of processes."""
        each = min(self.per_node, processes)
        most = min(self.most, processes // each)
        fewest = min(self.fewest, most)
        nodes = most if most == fewest else f"{fewest}-{most}"
        return self.with_processes(each).model_copy(update={"nodes": nodes})

    def with_processes(self, each: int) -> Cluster:
        """Return this cluster with a number of processes on a node, and their share of it."""
        part = each / self.per_node
        kind = str(self.gpus_per_node).rpartition(":")[0]
        more: dict[str, Any] = {"processes_per_node": None if self.gpus else each}
        if self.gpus:
            more["gpus_per_node"] = f"{kind}:{each}" if kind else each
        if self.gpu_request != "none" or not self.gpus_per_node:  # else the node is taken whole
            if self.cpus_per_task:
                more["cpus_per_task"] = max(1, math.ceil(self.cpus_per_task * part))
            if self.mem_gb:
                more["mem_gb"] = self.mem_gb * part
        return self.model_copy(update=more)
