"""When jobs could start, as SLURM foresees it: `sbatch --test-only`, which queues nothing."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from lensdist.errors import UserError
from slurm import scheduler

_WAITS = re.compile(r"#SBATCH\s+--(dependency|kill-on-invalid-dep)\b")
_START = re.compile(
    r"Job \d+ to start at (?P<time>.+?) using (?P<cores>\d+) processors? on nodes? (?P<nodes>\S+)"
    r"(?: in partition (?P<partition>\S+))?"
)
_PREEMPTS = re.compile(r"Preempts: (?P<jobs>.+)")


def starts(scripts: Mapping[str, str]) -> list[tuple[str, str]]:
    """When each phase's job could start if it were sent now.

    The jobs that a phase is to wait for do not exist yet, so each is asked about as if it waited
    for none.

    Args:
        scripts: batch scripts by phase.

    Returns:
        For each phase SLURM's answer in a sentence: when and where, or why never.

    Raises:
        UserError: there is no sbatch here.
    """
    if not scheduler.available():
        raise UserError("no sbatch here: ask on a login node of the cluster when jobs could start")
    return [(phase, _start(script)) for phase, script in scripts.items()]


def _start(script: str) -> str:
    lines = script.splitlines(keepends=True)
    kept = [line for line in lines if not _WAITS.match(line)]
    # Else a user's own format of times, such as `relative`, comes out.
    env = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"],
            input="".join(kept),
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=scheduler.PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"unknown: {e}"
    answer = done.stderr + done.stdout
    found = _START.search(answer)
    if done.returncode or found is None:
        return f"refused: {_told(answer) or f'sbatch ended with code {done.returncode}'}"
    return _sentence(found, _PREEMPTS.search(answer), waits=len(kept) < len(lines))


def _sentence(found: re.Match[str], preempts: re.Match[str] | None, *, waits: bool) -> str:
    cores, partition = int(found["cores"]), found["partition"]
    said = f"at {found['time'].replace('T', ' ')} on {cores:,} core{'' if cores == 1 else 's'}"
    said += f" of {found['nodes']}" + (f", partition {partition}" if partition else "")
    if preempts:
        said += f", in place of job {preempts['jobs']}"
    return said + (", not counting the phases it waits for" if waits else "")


def _told(answer: str) -> str:
    """What sbatch said, without its prefixes, in a line."""
    lines = (re.sub(r"^sbatch: (error: )?", "", line).strip() for line in answer.splitlines())
    return "; ".join(line for line in lines if line)
