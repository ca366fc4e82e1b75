"""A chain on a cluster, checked and worked out before anything is written or sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lensdist.errors import UserError
from slurm.config.chain import Chain
from slurm.config.cluster import Cluster
from slurm.config.request import (
    Request,
    phase_names,
    read_cluster,
    read_request,
    settings_of_nothing,
)
from slurm.config.sweep import Point, points
from slurm.plan.builder import Maker
from slurm.plan.outdated import TRIGGERS, Trigger
from slurm.plan.step import Step

ROOT = Path(__file__).resolve().parents[2]
STATE = ".submit"


@dataclass(frozen=True)
class Plan:
    """The phases asked for, in order."""

    chain: Chain
    cluster: Cluster
    runs: Path
    steps: tuple[Step, ...]

    @property
    def state(self) -> Path:
        """Where the launcher keeps what it has sent."""
        return self.runs / STATE

    @property
    def todo(self) -> tuple[Step, ...]:
        """What is to be sent."""
        return tuple(step for step in self.steps if not step.done)


def make_plan(
    chain_file: Path,
    cluster_file: Path,
    words: Sequence[str],
    sweeps: Sequence[str] = (),
    triggers: Sequence[Trigger] = TRIGGERS,
) -> Plan:
    """Check everything, and work out what runs where.

    Args:
        chain_file: `configs/chains/….yaml`.
        cluster_file: `configs/clusters/….yaml`.
        words: names of phases (none: all) and settings, as `Request` has them.
        sweeps: `key=v1,v2` each.
        triggers: what makes a finished phase run again when it has changed.

    Raises:
        UserError: all that is wrong, a line each.
    """
    errors: list[str] = []
    request: Request | None = None
    cluster: Cluster | None = None
    combined: list[Point] = []
    try:
        request = read_request(chain_file, words)
        for word in (one for one in phase_names(words) if "@" in one):
            errors.append(f"{word} is a point of a sweep: name the phase, and give --sweep")
    except UserError as e:
        errors.append(str(e))
    try:
        cluster = read_cluster(cluster_file, words)
    except UserError as e:
        errors.append(str(e))
    try:
        combined = points(sweeps)
    except UserError as e:
        errors.append(str(e))
    if request is None or cluster is None or errors:
        raise UserError("\n".join(errors))

    told = settings_of_nothing(request.chain, [s for p in combined for s in p.settings])
    if told:
        raise UserError("\n".join(dict.fromkeys(told)))
    maker = Maker(request, chain_file, cluster_file, cluster, ROOT, STATE, triggers)
    steps: dict[str, list[Step]] = {}
    swept = _swept(request, combined)
    for name in request.chain.phases:
        steps[name] = []
        for point in combined if name in swept else [None]:
            try:
                steps[name] += maker.make(name, point, steps)
            except UserError as e:
                errors += [f"{name}: {one}" for one in str(e).splitlines()]
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    chosen = [step for name in request.phases for step in steps[name]]
    if swept:
        chosen += maker.sweep_table(chosen)
    return Plan(request.chain, cluster, request.runs, tuple(chosen))


def _swept(request: Request, combined: Sequence[Point]) -> set[str]:
    """Phases that differ from point to point: those whose settings do, and what follows them."""
    phases = request.chain.phases
    firsts = {s.partition("=")[0].split(".")[0] for point in combined for s in point.settings}
    swept: set[str] = set()
    if not combined:
        return swept
    everywhere = bool(firsts - set(phases))
    for name, phase in phases.items():
        direct = name in firsts or (everywhere and phase.train is not None)
        if direct or swept & set(request.chain.needs(name)):
            swept.add(name)
    # A chain's own table is one for all points.
    return {name for name in swept if phases[name].report is None}
