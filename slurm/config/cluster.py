"""Where a chain runs: what `configs/clusters/<name>.yaml` may say."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lensdist.config.base import Strict
from lensdist.estimate.hardware import Shape

# sbatch's flags that say what a cluster's own settings say: two truths would part sooner or later.
_OURS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "nodes": "nodes",
    "gpus-per-node": "gpus_per_node",
    "gres": "gpus_per_node",
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
_LAUNCHERS = {"array", "dependency", "kill-on-invalid-dep", "job-name", "output", "error"}
_LAUNCHERS |= {"open-mode", "requeue", "no-requeue", "chdir", "export"}
_FLAG = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def breaks_lines(text: str) -> bool:
    """Whether a text holds control characters, or what some programs take for the end of a line."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def _texts(raw: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """All keys and values that are text, and where."""
    if isinstance(raw, str):
        yield at, raw
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield at, str(key)
            yield from _texts(value, (*at, str(key)))
    elif isinstance(raw, list | tuple):
        for value in raw:
            yield from _texts(value, at)


def _named(values: dict[str, str], pattern: re.Pattern[str], what: str) -> dict[str, str]:
    for name in values:
        if not pattern.fullmatch(name):
            raise ValueError(f"{name!r} {what}")
    return values


class Requeue(Strict):
    """How often a phase is started again, and when it is given up."""

    limit: int = Field(50, ge=0, description="attempts after the first, whatever ended them")
    crashes: int = Field(
        3, ge=1, description="crashes in a row without a new checkpoint after which it is given up"
    )
    backoff: int = Field(
        30,
        ge=0,
        description="seconds to wait after a crash; doubled with each in a row, up to 1 h",
    )


class Preflight(Strict):
    """What every node must show before the run starts on it."""

    enabled: bool = Field(True, description="false: start at once")
    command: str | None = Field(
        None, description="the centre's own check, in a shell; a node where it fails is not used"
    )
    seconds: int = Field(
        180,
        ge=1,
        description="within which all processes must have found each other and their devices",
    )
    min_free_gb: float = Field(5.0, ge=0, description="free space where the run is written")
    min_write_mb_s: float = Field(5.0, ge=0, description="write rate there, of 16 MB")
    max_clock_skew: float = Field(
        30.0, gt=0, description="seconds that a node's clock may differ from the file system's"
    )
    min_tflops: float | None = Field(
        None, gt=0, description="of a GPU's matrix products in bfloat16; null: any"
    )


class Cluster(Shape):
    """One machine, or what each job asks SLURM for."""

    executor: Literal["local", "debug", "slurm"] = Field(
        "local",
        description="slurm: a job a phase; local: here, phase by phase, output in files; "
        "debug: the same in the launcher's own process, output on the terminal",
    )
    partition: str | None = Field(None, description="sbatch --partition")
    account: str | None = Field(None, description="sbatch --account")
    qos: str | None = Field(None, description="sbatch --qos")
    constraint: str | None = Field(None, description="sbatch --constraint")
    cpus_per_task: int | None = Field(
        None, ge=1, description="cores of a node's one task, which its processes share"
    )
    mem_gb: float | None = Field(None, gt=0, description="memory of a node; null: SLURM's default")
    walltime: int = Field(1440, ge=1, description="limit of a phase's job, in minutes")
    save_before_end: int = Field(
        60,
        ge=1,
        description="seconds before the limit at which SLURM's signal tells the run to save and "
        "leave; a run leaves sooner where its own steps and saves take longer",
    )
    exclude: tuple[str, ...] = Field((), description="nodes not to be used")
    interface: str | None = Field(
        None, description="network interface between nodes, such as ib0; null: the libraries choose"
    )
    setup: tuple[str, ...] = Field((), description="lines of the batch script: module load, …")
    container: tuple[str, ...] = Field(
        (),
        description="words before the run's command, such as [apptainer, exec, --nv, X.sif]",
    )
    python: str | None = Field(
        None, description="the interpreter of the run's command, where a container has its own"
    )
    env: dict[str, str] = Field({}, description="environment of the phases' commands")
    sbatch: dict[str, str] = Field({}, description="more flags of sbatch, without their dashes")
    srun: dict[str, str] = Field(
        {}, description="flags of srun, such as pyxis's {container-image: …}; '' for no value"
    )
    tflops: float | None = Field(
        None, gt=0, description="what a process sustains in training; for estimates of plan only"
    )
    requeue: Requeue = Requeue()
    preflight: Preflight = Preflight()

    @model_validator(mode="after")
    def _one_line_each(self) -> Self:
        """What is written into a batch script must not become another line, or flag, of it."""
        for where, text in _texts(self.model_dump()):
            if breaks_lines(text) and where != ("preflight", "command"):
                raise ValueError(f"{'.'.join(where)}: holds a control character ({text!r})")
        return self

    @field_validator("sbatch", "srun")
    @classmethod
    def _flags(cls, value: dict[str, str]) -> dict[str, str]:
        return _named(value, _FLAG, "is not the name of a flag; leave out its dashes")

    @field_validator("env")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        return _named(value, _VARIABLE, "is not the name of a variable")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.executor != "slurm":
            self._is_one_machine()
        if self.gpus_per_node and self.processes_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"processes_per_node {self.processes_per_node} is not gpus_per_node "
                f"{self.gpus_per_node}; a GPU serves one process: leave processes_per_node out"
            )
        if self.save_before_end >= 60 * self.walltime:
            raise ValueError(
                f"save_before_end {self.save_before_end} s is the whole walltime of "
                f"{self.walltime} min; lower it"
            )
        for flag in self.sbatch:
            name = flag.lstrip("-").replace("_", "-")
            if name in _OURS:
                raise ValueError(f"sbatch: {flag} is said by the cluster's {_OURS[name]}; set that")
            if name in _LAUNCHERS:
                raise ValueError(f"sbatch: {flag} is the launcher's own; leave it out")
        return self

    def _is_one_machine(self) -> None:
        if self.most > 1:
            raise ValueError(f"nodes: executor {self.executor} has one node, not {self.nodes}")
        for name in ("setup", "sbatch", "srun"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}: executor {self.executor} asks SLURM for nothing; use env, or set up "
                    "your shell before"
                )

    @property
    def on_cpu(self) -> bool:
        """Whether processes must keep to the CPU, whatever they find.

        One local process may take the GPU of a laptop; several could not share it.
        """
        alone = self.most * self.per_node == 1
        return not self.gpus_per_node and (self.executor == "slurm" or not alone)

    def at_most(self, processes: int) -> Cluster:
        """The same for a phase of so many processes or fewer."""
        each = min(self.per_node, processes)
        most = min(self.most, processes // each)
        fewest = min(self.fewest, most)
        gpus = {"gpus_per_node": each} if self.gpus_per_node else {"processes_per_node": each}
        nodes = most if most == fewest else f"{fewest}-{most}"
        return Cluster.model_validate({**self.model_dump(), **gpus, "nodes": nodes})
