"""What the fake SLURM knows: a JSON file of jobs, which its commands and a test read and change."""

from __future__ import annotations

import contextlib
import fcntl
import getopt
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

State = dict[str, Any]
Job = dict[str, Any]

PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
FINISHED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED"),
)


class Failed(Exception):
    """A command's exit code, and what it says on stderr and on stdout."""


class Unsupported(Exception):
    """The real command may know it; this one does not."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[State]:
    """The state, for this process alone; changes are kept."""
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state: State = json.load(file)
        yield state
        file.seek(0)
        file.truncate()
        json.dump(state, file, indent=1)


def new_job(number: int, task: int | None, flags: dict[str, str], script: str) -> Job:
    """A job that has just been queued."""
    waits = flags.get("dependency", "")
    return {
        "id": str(number) if task is None else f"{number}_{task}",
        "array": None if task is None else str(number),
        "name": flags.get("job-name", "sbatch"),
        "state": "PENDING",
        "reason": "Dependency" if waits else "None",
        "nodes": "",
        "restarts": 0,
        "requeue": 1,
        "comment": flags.get("comment", "(null)"),
        "preempt_time": "None",
        "exit_code": "0:0",
        "partition": flags.get("partition", "main"),
        "dependency": waits,
        "excluded": flags.get("exclude", ""),
        "start_time": "",
        "delay": 0,
        "left": "10:00",
        "script": script,
        "command": "(null)",
        "flags": flags,
        "queued": True,
        "accounted": {},
    }


def options(words: list[str], short: str, *long: str) -> tuple[dict[str, list[str]], list[str]]:
    """Each option's values, and the words that are none."""
    try:
        pairs, rest = getopt.gnu_getopt(words, short, list(long))
    except getopt.GetoptError as e:
        raise Unsupported(str(e)) from e
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name.lstrip("-"), []).append(value)
    return found, rest


def named(state: State, name: str) -> list[Job]:
    """The jobs in the queue that an id means: one, or all tasks of an array."""
    return [j for j in state["jobs"].values() if j["queued"] and name in (j["id"], j["array"])]


def known(state: State, name: str) -> bool:
    """Whether the queue has the job, or the array that it would be of."""
    return bool(named(state, name) or named(state, name.partition("_")[0]))


def ranges(numbers: Iterable[int]) -> str:
    """1, 2, 3, 5 -> 1-3,5."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def hostnames(expression: str) -> list[str]:
    """a[07-08,11],x -> a07, a08, a11, x."""
    found = []
    for prefix, inside, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]*)\]([^,\[]*))?", expression):
        for part in inside.split(","):
            first, _, last = part.partition("-")
            if last and int(last) < int(first):
                why = f"scontrol: error: _parse_single_range: Invalid range: `{part}'\n"
                raise Failed(0, f"{why}Invalid hostlist: {expression}\n")
            numbers = range(int(first), int(last or first) + 1) if first else [0]
            for n in numbers:
                found.append(f"{prefix}{n:0{len(first)}}{suffix}" if first else prefix)
    return found


def rows(jobs: list[Job]) -> list[Job]:
    """A row a job, but one for all of an array's tasks that wait: its id is 7_[1-2]."""
    found: list[Job] = []
    for array in dict.fromkeys(j["array"] for j in jobs):
        own = [j for j in jobs if j["array"] == array]
        waiting = [j for j in own if array and j["state"] in PENDING]
        if waiting:
            tasks = ranges(int(j["id"].partition("_")[2]) for j in waiting)
            tasks = tasks if len(waiting) == 1 else f"[{tasks}]"
            found.append({**waiting[0], "id": f"{array}_{tasks}"})
        found += [j for j in own if j not in waiting]
    return found


def stamp(later: float) -> str:
    """A time from now, as SLURM writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + later))
