"""The launcher: sends a chain of phases to SLURM, or runs it on this machine. Never imports torch.

docs/architecture.md says what its folders are for.
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
