"""The resources of one phase: a share of the cluster's, and the phase's own keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lensdist.utils.errors import UserError
from slurm.config.chain import Phase
from slurm.config.cluster import Cluster
from slurm.config.request import read_cluster

# Keys that decide the number of processes; CPUs and memory follow it, unless they are given.
_SHAPE = ("nodes", "gpus_per_node", "processes_per_node", "gpu_request")
_FOLLOWS = ("cpus_per_task", "mem_gb")
# CPUs and minutes of phases that do not train; those that read or simulate images use few threads.
_SMALL = {"simulate": (4, 240), "pack": (4, 240), "evaluate": (4, 120), "report": (1, 15)}
_GB_PER_CPU = 4


def cluster_of(
    name: str, phase: Phase, file: Path, arguments: Sequence[str], own: Sequence[str]
) -> Cluster:
    """Return the cluster with the resources of a phase.

    A later one wins: the file and `cluster.key=value`; for SLURM, the small share that a phase of
    its kind needs if it does not train; the file's `phases`, by kind and by name; the chain's
    `cluster`; and `PHASE.cluster.key=value`.

    Args:
        arguments: `cluster.key=value` of the command line.
        own: `key=value` of this phase alone.

    Raises:
        UserError: a key or a value is wrong.
    """
    base = read_cluster(file, arguments)
    try:
        return _of_phase(name, phase, base, lambda *more: read_cluster(file, arguments, *more), own)
    except UserError as e:  # the file itself was read
        text = str(e).replace("(command line)", "(cluster keys of the phase)")
        raise UserError(text) from e


def _of_phase(
    name: str, phase: Phase, base: Cluster, read: Callable[..., Cluster], own: Sequence[str]
) -> Cluster:
    given = [*_settings(base.phases.get(phase.kind, {})), *_settings(base.phases.get(name, {}))]
    if phase.walltime is not None:
        given.append(f"walltime={phase.walltime}")
    given += [*_settings(phase.cluster), *own]
    shape = [one for one in given if one.partition("=")[0].strip() in _SHAPE]
    small = phase.train is None and base.executor == "slurm"
    first = [f"{key}={value}" for key, value in _small(base, phase.kind).items()] if small else []
    shaped = read(*first, *shape)
    if not small and shaped.per_node != base.per_node:
        share = base.with_processes(shaped.per_node)
        shaped = shaped.model_copy(update={key: getattr(share, key) for key in _FOLLOWS})
    limit = phase.processes if phase.train is not None else 1
    limited = shaped if limit is None else shaped.at_most(limit)
    found = {key: getattr(limited, key) for key in (*_SHAPE, *_FOLLOWS)}
    rest = [one for one in given if one not in shape]
    return read(*first, *_settings(found), *rest)


def _small(base: Cluster, kind: str) -> dict[str, Any]:
    """Return the keys of a phase that does not train: few CPUs, minutes, and no GPU."""
    cpus, walltime = _SMALL[kind]
    walltime = min(walltime, base.walltime)
    found: dict[str, Any] = {"nodes": 1, "gpus_per_node": "null", "processes_per_node": "null"}
    found |= {"walltime": walltime, "save_before_end": min(base.save_before_end, 30 * walltime)}
    if base.gpus:
        found["preflight.command"] = "null"  # a check of GPUs
    if base.cpus_per_task:
        found["cpus_per_task"] = cpus = min(cpus, base.cpus_per_task)
    if base.mem_gb:
        share = base.mem_gb * cpus / (base.cpus_per_task or cpus)
        least = min(base.mem_gb, _GB_PER_CPU * cpus)
        found["mem_gb"] = round(least if not base.cpus_per_task else max(least, share), 3)
    return found


def _settings(values: Mapping[str, Any]) -> list[str]:
    """Return a mapping as `key=value`, with values in JSON."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]
