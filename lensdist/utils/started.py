"""Processes that srun or mpirun started: their rank, number and meeting place (torch-free).

torchrun and accelerate launch set RANK and four more variables. srun and mpirun set variables of
their own, from which `adopt` makes those five.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from lensdist.utils.errors import UserError
from lensdist.utils.hostlist import expand, repeated

_LOOPBACK = "127.0.0.1"
_PORTS = 10_000, 20_000  # the first, and how many: below those that Linux gives to connections


@dataclass(frozen=True)
class _Launch:
    """What a launcher says about one of its processes; an empty text is not known.

    Attributes:
        by: its name.
        source: the variable with the number of processes.
        here: number of processes of this machine.
        host: the machine of process 0.
        key: the same on all processes of this launch, and different for another one.
    """

    by: str
    source: str
    rank: str
    size: str
    local: str
    here: str
    host: str
    key: str


def adopt(environment: MutableMapping[str, str]) -> str | None:
    """Set RANK, WORLD_SIZE, … in one of several processes that srun or mpirun started.

    Nothing changes if another launcher has set RANK, or the user WORLD_SIZE=1. MASTER_ADDR and
    MASTER_PORT are kept where they are set.

    Returns:
        The launcher; None: there is none, or it started one process.

    Raises:
        UserError: there are several processes, but their variables are incomplete or wrong.
    """
    if environment.get("RANK") or environment.get("WORLD_SIZE") == "1":
        return None
    launches = (find(environment) for find in _FINDERS)
    found = next((one for one in launches if one.size not in ("", "1")), None)
    if found is None:
        return None
    wrong = _wrong(found, environment)
    if wrong:
        raise UserError(
            f"{found.by} started {found.size} processes ({found.source}), but {wrong}; start them "
            "with torchrun or accelerate launch, or set WORLD_SIZE=1 to train a separate run in "
            "each"
        )
    first, count = _PORTS
    port = first + zlib.crc32(found.key.encode()) % count
    environment.update(RANK=found.rank, WORLD_SIZE=found.size, LOCAL_RANK=found.local)
    environment.setdefault("MASTER_ADDR", _LOOPBACK if found.here == found.size else found.host)
    environment.setdefault("MASTER_PORT", str(port))
    if found.here:
        environment["LOCAL_WORLD_SIZE"] = found.here
    return found.by


def _wrong(found: _Launch, environment: Mapping[str, str]) -> str:
    """Return why processes cannot find each other by these variables; empty if they can."""
    for what, text in (("rank", found.rank), ("rank on its node", found.local)):
        if not (text.isdigit() and found.size.isdigit() and int(text) < int(found.size)):
            return f"this one's {what} is {text or 'not known'}"
    ours = environment.get("WORLD_SIZE") or found.size
    if ours != found.size:
        return f"WORLD_SIZE is {ours}"
    if found.here != found.size and not (environment.get("MASTER_ADDR") or found.host):
        return "MASTER_ADDR, the machine of process 0, is not set"
    if found.by == "srun" and environment.get("SLURM_NTASKS", found.size) != found.size:
        return "SLURM_NTASKS is another number: they are left from another step (`unset` both)"
    if found.by == "srun" and "SLURM_PTY_PORT" in environment:
        return "only one of them has the terminal (--pty)"
    return ""


def _of_slurm(environment: Mapping[str, str]) -> _Launch:
    """Read a step's variables; neither salloc's shell nor a batch script has SLURM_STEP_NUM_TASKS.

    Where mpirun starts its own agents by srun, they are fewer than its processes.
    """
    get = environment.get
    size, of_mpi = get("SLURM_STEP_NUM_TASKS", ""), get("PMI_SIZE", "1")
    try:
        here = str(repeated(get("SLURM_STEP_TASKS_PER_NODE", ""))[int(get("SLURM_NODEID", ""))])
        host = expand(get("SLURM_STEP_NODELIST", ""))[0]
    except (ValueError, IndexError):
        here, host = "", ""
    return _Launch(
        by="srun",
        source="SLURM_STEP_NUM_TASKS",
        rank=get("SLURM_PROCID", ""),
        size=size if of_mpi in ("1", size) else "",
        local=get("SLURM_LOCALID", ""),
        here=here,
        host=host,
        key="/".join(
            get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        ),
    )


def _of_mpi(prefix: str, local: str, here: str) -> Callable[[Mapping[str, str]], _Launch]:
    def find(environment: Mapping[str, str]) -> _Launch:
        get = environment.get
        try:  # mpirun's process 0 is on the first node of a job
            host = expand(get("SLURM_JOB_NODELIST", ""))[0]
        except ValueError:
            host = ""
        ids = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "SLURM_JOB_ID")
        return _Launch(
            by="mpirun",
            source=f"{prefix}_SIZE",
            rank=get(f"{prefix}_RANK", ""),
            size=get(f"{prefix}_SIZE", ""),
            local=get(local, ""),
            here=get(here, ""),
            host=host,
            key="/".join(get(name, "") for name in ids),
        )

    return find


_FINDERS = (
    _of_mpi("OMPI_COMM_WORLD", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _of_mpi("MV2_COMM_WORLD", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    _of_slurm,
    _of_mpi("PMI", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
)
