"""The resources of a job that runs several phases, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from lensdist.utils.errors import UserError
from slurm.config.cluster import Cluster

_EQUAL = ("partition", "account", "qos", "constraint", "gpu_request", "exclude", "setup", "sbatch")


def allocation(clusters: Mapping[str, Cluster]) -> Cluster:
    """Return the resources that suffice for each phase, and the time for all of them.

    Args:
        clusters: by the phases' names.

    Raises:
        UserError: two phases ask for what one job cannot have.
    """
    name, first = next(iter(clusters.items()))
    for other, cluster in clusters.items():
        for key in _EQUAL:
            if getattr(cluster, key) != getattr(first, key):
                raise UserError(
                    f"{name} and {other} cannot run together: they differ in {key}; leave out "
                    "`together`, or give both the same"
                )
        if cluster.most > cluster.fewest:
            raise UserError(
                f"{other} cannot run together with others on {cluster.nodes} nodes: give one number"
            )
    every = [*clusters.values()]
    widest = max(every, key=lambda one: (one.gpus or 0, one.per_node))
    memory = [one.mem_gb for one in every]
    cpus = [one.cpus_per_task for one in every]
    return first.model_copy(
        update={
            "nodes": max(one.most for one in every),
            "gpus_per_node": widest.gpus_per_node,
            "processes_per_node": widest.processes_per_node,
            "cpus_per_task": max(filter(None, cpus), default=None),
            "mem_gb": None if None in memory else max(filter(None, memory)),
            "walltime": sum(one.walltime for one in every),
            "save_before_end": max(one.save_before_end for one in every),
        }
    )
