"""The variables of the shell that submits, which must not reach a job or change what it asks for.

The shell may be a job itself, or a module of the centre may have set options of sbatch. What `plan`
prints is what runs, so the cluster's file alone decides.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from lensdist.utils.launched import RENDEZVOUS

# Of a job, a launcher, or MPI; and options of SLURM's commands, which win over the batch script.
_THEIRS: tuple[str, ...] = (
    "SLURM_",
    "SBATCH_",
    "SALLOC_",
    "SRUN_",
    "SCANCEL_",
    "SUBMITIT_",
    "LENSDIST_",
)
_THEIRS += ("TORCHELASTIC_", "PET_", "PMI", "OMPI_", "MV2_COMM_", "MASTER_")
_RANKS = {*RENDEZVOUS, "LOCAL_WORLD_SIZE", "GROUP_RANK"}
_KEPT = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"}


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the place of another process in another run."""
    return {name: value for name, value in environment.items() if name not in _RANKS}


def options_of_sbatch() -> list[str]:
    """Return the names of variables of this shell that would change what a job asks for."""
    return sorted(name for name in os.environ if name.startswith("SBATCH_"))


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Leave out the shell's variables while SLURM's commands send jobs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_THEIRS) and name not in _KEPT) or name in _RANKS
    }
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)
