"""Check all nodes before a run starts.

Every node of a job checks itself at the same time, writes a report, and waits for the others'
reports. So all nodes get the unfit ones, and none waits for processes that never come.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from pydantic import Field, ValidationError

from lensdist.utils.files import write_atomic
from lensdist.utils.outcome import node_name
from lensdist.utils.settings import Strict
from slurm.job import Job
from slurm.job_side import node_checks
from slurm.job_side.command import free_port

_PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors", "deepspeed", "lensdist")
# Share of preflight.seconds for a node's own checks; in the rest the others read its report.
_OWN_PART = 0.75
_PAUSES = (0.05, 2.0)  # s between two readings of the folder: the first, and the longest


class Report(Strict, extra="ignore"):  # those of earlier versions had more fields
    """The report of a node about itself."""

    host: str
    node: int = Field(description="its number in the job, from 0")
    problem: str = Field("", description="a sentence that names the node; empty: fit")
    shared: bool = Field(False, description="other nodes may have the problem too")
    port: int | None = Field(None, description="of the first node: a port that is free there")


def versions() -> dict[str, str]:
    """Return the versions of Python and of important packages, without importing them."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def examine(job: Job, node: int, clock: Callable[[], float] = time.time) -> Report:
    """Check this node, number `node` of the job from 0, up to the first failure."""
    limits = job.cluster.preflight
    end = time.monotonic() + _OWN_PART * limits.seconds
    host, problem = node_name(), ""
    shared = True  # at first: folders and packages that all nodes see
    try:
        place = node_checks.check_folders(job)
        node_checks.check_versions(job, versions())
        skew = node_checks.check_disk(limits, place, clock)
        shared = False
        node_checks.check_clock(limits, place, skew)
        node_checks.check_gpus(job, end)
        node_checks.run_own_check(job, end)
    except node_checks.Unfit as e:
        problem = f"{host} {e}"
    except OSError as e:
        problem = f"{host} cannot be checked ({e}); {node_checks.ELSEWHERE}"
    return Report(host=host, node=node, problem=problem, shared=shared and bool(problem))


def check_nodes(job: Job, folder: Path, node: int, count: int, port: int = 0) -> str:
    """Check this node, number `node` from 0, write its report, and wait for those of all nodes.

    Args:
        port: where the first node looks for a free port; 0: it needs none.

    Returns:
        Why the run must not start; empty if all nodes are fit.
    """
    limits = job.cluster.preflight
    if not limits.enabled:
        return ""
    copying = job.cluster.stage_seconds if job.cluster.stage else 0
    end = time.monotonic() + limits.seconds + copying
    mine = examine(job, node)
    if port and not node:
        mine = mine.model_copy(update={"port": free_port(job.cluster, port)})
    try:
        write_atomic(folder / f"node-{node:05d}.json", mine.model_dump_json(indent=1))
    except OSError as e:
        return mine.problem or f"{mine.host} cannot write {folder} ({e}); {node_checks.ELSEWHERE}"
    found = _gather(folder, {node: mine}, count, end)
    unfit = _unfit(found)
    missing = [str(number) for number in range(count) if number not in found]
    if mine.problem:
        return mine.problem
    if unfit:
        return f"not started: node {unfit[0].node}: {unfit[0].problem}"
    if missing:
        return (
            f"not started: node(s) {', '.join(missing)} of {count} did not report within "
            f"{limits.seconds + copying:g} s; are they up, and do they see {folder}?"
        )
    return ""


def silent_nodes(folder: Path, nodes: Sequence[str]) -> list[str]:
    """Return the nodes of an attempt that left no report, if at least as many others did.

    They lack the interpreter or the folder, or hang. If most are silent, it is not their fault.
    """
    told = _reports(folder, {})
    silent = [node for number, node in enumerate(nodes) if number not in told]
    return silent if len(silent) <= len(told) else []


def agreed_port(folder: Path) -> int | None:
    """Return the port that the first node has found free; None without its report."""
    first = _reports(folder, {}).get(0)
    return first.port if first is not None else None


def bad_nodes(folder: Path) -> list[Report]:
    """Return the reports of unfit nodes in an attempt's folder, by their number."""
    return _unfit(_reports(folder, {}))


def _unfit(found: dict[int, Report]) -> list[Report]:
    return [report for _, report in sorted(found.items()) if report.problem]


def _gather(folder: Path, found: dict[int, Report], count: int, end: float) -> dict[int, Report]:
    """Wait until `end` for `count` reports, and return those that exist."""
    pause, longest = _PAUSES
    while True:
        found = _reports(folder, found)
        left = end - time.monotonic()
        if all(number in found for number in range(count)) or left <= 0:
            return found
        time.sleep(min(pause, left))
        pause = min(2 * pause, longest)


def _reports(folder: Path, known: dict[int, Report]) -> dict[int, Report]:
    """Return the known reports and the new ones, by number, without unfinished files."""
    found, names = {**known}, []
    with contextlib.suppress(OSError):
        # Not by opening each name: network file systems remember that a file did not exist.
        names = os.listdir(folder)
    for name in names:
        number = name.removeprefix("node-").removesuffix(".json")
        if number.isdigit() and int(number) not in known:
            with contextlib.suppress(OSError, ValidationError):
                found[int(number)] = Report.model_validate_json((folder / name).read_text())
    return found
