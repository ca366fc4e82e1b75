"""Before a run starts on a node: whether the node is fit for it.

Every node of a job checks itself at the same time, leaves a report, and waits for the others'. So
all of them know which node is unfit, and none waits in a rendezvous to which one will never come.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from lensdist.config.base import Strict
from lensdist.files import write_atomic
from lensdist.outcome import node_name
from slurm.job import Job
from slurm.job_side import node_checks

_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors", "deepspeed", "lensdist")
# Of the time within which nodes must report: the rest is for the others to see what this one says.
_OWN_PART = 0.75
_PAUSES = (0.05, 2.0)  # s, between two looks at the folder: the first, and the longest


class Report(Strict):
    """What a node found; what it did not get to is None, or empty."""

    host: str
    node: int = Field(description="its number in the job, from 0")
    time: float = Field(description="seconds since 1970")
    versions: dict[str, str]
    gpus: tuple[str, ...] = Field(
        (), description="name, uuid, uncorrected ECC errors, degrees C; in nvidia-smi's words"
    )
    free_gb: float | None = Field(None, description="where the run is written")
    write_mb_s: float | None = Field(None, description="there, until it is on the disk")
    clock_skew: float | None = Field(None, description="seconds ahead of the file system's clock")
    problem: str = Field("", description="one sentence that names the node; empty: fit")
    shared: bool = Field(False, description="the problem would ail other nodes too, perhaps")


def versions() -> dict[str, str]:
    """Of Python and of the packages on which results depend; none of them is imported."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def examine(job: Job, node: int, clock: Callable[[], float] = time.time) -> Report:
    """This node's checks, up to the first that it does not pass; raises for nothing that is wrong.

    Args:
        job: what is to run.
        node: this node's number in the job, from 0.
        clock: the node's, in seconds since 1970.
    """
    end = time.monotonic() + _OWN_PART * job.cluster.preflight.seconds
    host, problem = node_name(), ""
    found: dict[str, Any] = {"versions": versions()}
    shared = True  # folders and an environment that all nodes see
    try:
        place = node_checks.see(job)
        node_checks.compare(job, found["versions"])
        node_checks.write(job.cluster.preflight, place, clock, found)
        shared = False
        node_checks.clock(job.cluster.preflight, place, found["clock_skew"])
        node_checks.gpus(job, end, found)
        node_checks.centre(job, end)
    except node_checks.Unfit as e:
        problem = f"{host} {e}"
    except OSError as e:
        problem = f"{host} cannot be checked ({e}); {node_checks.ELSEWHERE}"
    shared = shared and bool(problem)
    return Report(host=host, node=node, time=clock(), problem=problem, shared=shared, **found)


def check(job: Job, folder: Path, node: int, count: int) -> str:
    """Examine this node, tell the others, and wait until all have told.

    Args:
        job: what is to run.
        folder: of the attempt; reports go there.
        node: this node's number, from 0.
        count: of nodes.

    Returns:
        Why the run must not start, in a sentence; nothing where all nodes are fit.
    """
    if not job.cluster.preflight.enabled:
        return ""
    end = time.monotonic() + job.cluster.preflight.seconds
    mine = examine(job, node)
    try:
        write_atomic(folder / f"node-{node:05d}.json", mine.model_dump_json(indent=1))
    except OSError as e:
        return mine.problem or f"{mine.host} cannot write {folder} ({e}); {node_checks.ELSEWHERE}"
    found = _gather(folder, {node: mine}, count, end)
    unfit = [found[number] for number in sorted(found) if found[number].problem]
    missing = [str(number) for number in range(count) if number not in found]
    if mine.problem:
        return mine.problem
    if unfit:
        return f"not started: node {unfit[0].node}: {unfit[0].problem}"
    if missing:
        return (
            f"not started: node(s) {', '.join(missing)} of {count} have not reported within "
            f"{job.cluster.preflight.seconds:g} s; are they up, and do they see {folder}?"
        )
    return ""


def bad_nodes(folder: Path) -> list[Report]:
    """Reports of the nodes that are unfit, by their number: with a problem of their own or not.

    Args:
        folder: of the attempt; it need not exist.
    """
    found = _reports(folder, {})
    return [found[number] for number in sorted(found) if found[number].problem]


def _gather(folder: Path, found: dict[int, Report], count: int, end: float) -> dict[int, Report]:
    """Wait until `end` for `count` reports; those that are there."""
    pause, longest = _PAUSES
    while True:
        found = _reports(folder, found)
        left = end - time.monotonic()
        if all(number in found for number in range(count)) or left <= 0:
            return found
        time.sleep(min(pause, left))
        pause = min(2 * pause, longest)


def _reports(folder: Path, known: dict[int, Report]) -> dict[int, Report]:
    """Those known and those new, by number; a file that is not whole yet is passed over."""
    found, names = {**known}, []
    with contextlib.suppress(OSError):
        # Never a file by its name: network file systems remember for a while that it was not there.
        names = os.listdir(folder)
    for name in names:
        number = name.removeprefix("node-").removesuffix(".json")
        if number.isdigit() and int(number) not in known:
            with contextlib.suppress(OSError, ValidationError):
                found[int(number)] = Report.model_validate_json((folder / name).read_text())
    return found
