"""Where a chain runs: what `configs/clusters/<name>.yaml` may say."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Strict


class Cluster(Strict):
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
    nodes: int = Field(1, ge=1, description="nodes of a training job")
    gpus_per_node: int | None = Field(
        None, ge=1, description="null: none is asked for (one local process takes one it finds)"
    )
    processes_per_node: int | None = Field(None, ge=1, description="null: one for each GPU, or one")
    cpus_per_task: int | None = Field(
        None, ge=1, description="cores of a node's one task, which its processes share"
    )
    mem_gb: float | None = Field(None, gt=0, description="memory of a node; null: SLURM's default")
    walltime: int = Field(1440, ge=1, description="limit of a phase's job, in minutes")
    save_before_end: int = Field(
        120, ge=1, description="seconds before the limit at which the run is told to save and leave"
    )
    setup: tuple[str, ...] = Field((), description="lines of the batch script: module load, …")
    env: dict[str, str] = Field({}, description="environment of the phases' commands")
    sbatch: dict[str, str] = Field({}, description="more flags of sbatch, without their dashes")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.executor != "slurm":
            if self.nodes > 1:
                raise ValueError(f"nodes: executor {self.executor} has one node, not {self.nodes}")
            if self.setup:
                raise ValueError(
                    f"setup: executor {self.executor} writes no batch script; use env, or set up "
                    "your shell before"
                )
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
        return self

    @property
    def per_node(self) -> int:
        """Processes on a node."""
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def world(self) -> int:
        """Processes of a training phase."""
        return self.nodes * self.per_node

    @property
    def on_cpu(self) -> bool:
        """Whether processes must keep to the CPU, whatever they find.

        One local process may take the GPU of a laptop; several could not share it.
        """
        return not self.gpus_per_node and (self.executor == "slurm" or self.world > 1)

    def alone(self) -> Cluster:
        """The same for a phase of a single process."""
        gpus = 1 if self.gpus_per_node else None
        return self.model_copy(
            update={"nodes": 1, "processes_per_node": None, "gpus_per_node": gpus}
        )
