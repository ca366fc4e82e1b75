"""A phase of a chain on its cluster, worked out and ready to become a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lensdist.config.schema import BaseRun
from lensdist.engine.batches import check_shares
from lensdist.errors import UserError
from slurm.config.cluster import Cluster
from slurm.config.sweep import Point
from slurm.job import Goal, Job
from slurm.plan.outdated import Standing


@dataclass(frozen=True)
class Step:
    """A phase of the chain (of a sweep: at one point), ready to become a job.

    Attributes:
        phase: its name in the chain.
        goal: what it leaves behind; `goal.phase` is its own name, with the point where it has one.
        needs: what must be complete before it.
        follows: what must have ended before it, however.
        source: what it does, to show: `train configs/mae/debug.yaml`.
        config: the run's whole configuration; None where nothing is trained.
        words: what `python` is given; None for a training phase, whose configuration is a file of
            the submission.
        cluster: where it runs.
        counts: numbers of nodes on which its step can be shared evenly.
        standing: what is there already.
        point: of a sweep.
    """

    phase: str
    goal: Goal
    needs: tuple[Goal, ...]
    follows: tuple[Goal, ...]
    source: str
    config: BaseRun | None
    words: tuple[str, ...] | None
    cluster: Cluster
    counts: tuple[int, ...]
    standing: Standing
    point: Point | None = None

    @property
    def name(self) -> str:
        return self.goal.phase

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return self.standing.state == "done"

    @property
    def made_anew(self) -> bool:
        """Whether what others are made from is still to be made."""
        return self.goal.kind in ("run", "set") and self.standing.state in ("new", "begun")

    def job(
        self,
        chain: str,
        state: Path,
        folder: Path,
        code: Path,
        versions: dict[str, str],
        submitted: str = "",
    ) -> Job:
        """The job, whose files lie in `folder`; see `Job` for the others."""
        # The resolved configuration: what is edited while the job waits does not change it.
        train = ("-m", "lensdist.train", "--config", str(folder / f"{self.name}.yaml"))
        return Job(
            chain=chain,
            goal=self.goal,
            needs=self.needs,
            follows=tuple(goal.phase for goal in self.follows),
            words=train if self.words is None else self.words,
            cluster=self.cluster,
            counts=self.counts,
            cwd=Path.cwd(),
            code=code,
            state=state,
            folder=folder,
            versions=versions,
            submitted=submitted,
        )


def shared_evenly(config: BaseRun, cluster: Cluster) -> tuple[int, ...]:
    """Numbers of nodes that can share a step.

    Raises:
        UserError: the fewest that the cluster may give cannot.
    """
    found = []
    for nodes in range(cluster.fewest, cluster.most + 1):
        try:
            check_shares(config, nodes * cluster.per_node)
            found.append(nodes)
        except UserError:
            if nodes == cluster.fewest:
                raise
    return tuple(found)
