"""The launcher: sends a chain of phases to SLURM, or runs it on this machine. Never imports torch.

submit.py commands.py   the command line config/                 the user's files and arguments:
chains, clusters, sweeps plan/                   the steps, outdated results, estimated times, batch
scripts submission/             copies the code, writes job files, sends jobs to SLURM or runs them
here job_side/               runs inside a job: prologue, node checks, the command, epilogue
monitor/                status, logs, and the page of `why` job.py                  one phase as a
JSON file, which the job reads attempts.py             the log of all attempts of a phase
scheduler.py            SLURM's commands
"""

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the code: the clone, or site-packages."""

COMMAND = (
    "lensdist slurm"
    if ROOT.name in ("site-packages", "dist-packages")
    else "python slurm/submit.py"
)
"""The command to type."""

Say = Callable[[str], None]
"""Prints a line for the user."""
