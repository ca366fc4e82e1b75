"""The steps of a chain on a cluster, ready to become jobs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from lensdist.config.schema import BaseRun
from lensdist.distributed.micro_batches import check_shares
from lensdist.utils.errors import UserError
from slurm.config.chain import Chain
from slurm.config.cluster import Cluster
from slurm.config.sweep import Point
from slurm.job import Job, Target
from slurm.plan.outdated import Existing
from slurm.plan.together import allocation


@dataclass(frozen=True)
class Step:
    """A phase of the chain (in a sweep: at one point), ready to become a job.

    Attributes:
        phase: its name in the chain.
        target: its result; `target.phase` is its name, with the point of a sweep.
        source: a description for people: `train configs/mae/debug.yaml`.
        cluster: the cluster that it runs on.
        existing: its part that exists already.
        needs: steps that must be complete before it.
        follows: names of steps that must have ended before it, successfully or not.
        config: the run's whole configuration; None if nothing is trained.
        argv: arguments of `python`; None for training, whose configuration is a file of the
            submission.
        counts: numbers of nodes that can share a step evenly.
        point: of a sweep.
    """

    phase: str
    target: Target
    source: str
    cluster: Cluster
    existing: Existing
    needs: tuple[Target, ...] = ()
    follows: tuple[str, ...] = ()
    config: BaseRun | None = None
    argv: tuple[str, ...] | None = None
    counts: tuple[int, ...] = (1,)
    point: Point | None = None

    @property
    def name(self) -> str:
        """Its name, with the point of a sweep."""
        return self.target.phase

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return self.existing.state == "done"


@dataclass(frozen=True)
class Plan:
    """The steps of a request, in order.

    Attributes:
        cluster: the cluster that it runs on.
        runs: folder of the runs.
        steps: all steps, the finished ones too.
    """

    chain: Chain
    cluster: Cluster
    runs: Path
    state: Path
    steps: tuple[Step, ...]

    @property
    def todo(self) -> tuple[Step, ...]:
        """The steps to send."""
        return tuple(step for step in self.steps if not step.done)

    def job(
        self, step: Step, folder: Path, code: Path, versions: dict[str, str], submitted: str = ""
    ) -> Job:
        """Return the job of a step; see `Job` for the other arguments."""
        # The configuration is copied: editing it while the job waits changes nothing.
        train = ("-m", "lensdist.train", "--config", str(folder / f"{step.name}.yaml"))
        return Job(
            chain=self.chain.name,
            target=step.target,
            needs=step.needs,
            follows=step.follows,
            together=self.together.get(step.name, ()),
            argv=train if step.argv is None else step.argv,
            cluster=step.cluster,
            counts=step.counts,
            cwd=Path.cwd(),
            code=code,
            state=self.state,
            folder=folder,
            versions=versions,
            submitted=submitted,
        )

    @cached_property
    def together(self) -> dict[str, tuple[str, ...]]:
        """The phases that share a job, by the name of each: neighbours with `together: true`."""
        found: dict[str, tuple[str, ...]] = {}
        if self.cluster.executor != "slurm":
            return found
        phases = self.chain.phases
        for shared, steps in groupby(
            self.todo, lambda s: s.point is None and s.phase in phases and phases[s.phase].together
        ):
            clusters = {step.name: step.cluster for step in steps}
            if shared and len(clusters) > 1:
                found |= dict.fromkeys(clusters, tuple(clusters))
        return found

    def __post_init__(self) -> None:
        """Check that phases can share their job; raises UserError."""
        clusters = {step.name: step.cluster for step in self.todo}
        for names in {*self.together.values()}:
            allocation({name: clusters[name] for name in names})

    @property
    def arrays(self) -> dict[str, str]:
        """The phase of each point of a sweep: its points become one job array."""
        return {step.name: step.phase for step in self.todo if step.point is not None}


def missing_inputs(plan: Plan) -> list[str]:
    """Return a sentence for each input that is not here and that no phase of the chain makes."""
    found = []
    for step in plan.todo:
        pack = plan.chain.phases[step.phase].pack if step.phase in plan.chain.phases else None
        inputs = {
            "src": pack.src if pack else None,
            "encoder": getattr(step.config, "encoder", None),
        }
        if step.config is not None:
            inputs["data.path"] = step.config.data.path
        for key, path in inputs.items():
            if path is not None and not path.exists() and not _made(path.absolute(), plan):
                found.append(f"{step.phase}: {key}={path} does not exist here")
    return [*dict.fromkeys(found)]  # once for all points of a sweep


def _made(path: Path, plan: Plan) -> bool:
    """Return whether a path is in the folder of a phase, or of a point of a sweep of it."""
    inside = path.relative_to(plan.runs).parts if path.is_relative_to(plan.runs) else ()
    return bool(inside) and inside[0].partition("@")[0] in plan.chain.phases


def shared_evenly(config: BaseRun, cluster: Cluster) -> tuple[int, ...]:
    """Return the numbers of nodes that can share a step evenly.

    Raises:
        UserError: the smallest number of the cluster cannot.
    """
    found = []
    for nodes in range(cluster.fewest, cluster.most + 1):
        try:
            check_shares(config.train, config.fewest, nodes * cluster.per_node)
            found.append(nodes)
        except UserError:
            if nodes == cluster.fewest:
                raise
    return tuple(found)
