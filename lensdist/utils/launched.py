"""Environment variables through which a launcher controls a run (torch-free).

Users never set them. `lensdist.utils.outcome` is the way back, from the run to the launcher.
"""

from collections.abc import MutableMapping

from lensdist.utils.errors import UserError

DEADLINE = "LENSDIST_DEADLINE"
"""The time at which this job will be killed, in seconds since 1970."""
PREFLIGHT = "LENSDIST_PREFLIGHT"
"""1 to check the device of every process, and the communication between processes."""
DEVICE = "LENSDIST_DEVICE"
"""`cuda` if the launcher has requested a GPU for each process."""
PATIENCE = "LENSDIST_PATIENCE"
"""The time within which all processes must have come, in seconds."""
STAGED = "LENSDIST_STAGED"
"""The copy of the run's packed set on this node's own disk."""
MIN_TFLOPS = "LENSDIST_MIN_TFLOPS"
"""The speed below which a GPU fails the check, in 1e12 operations a second in bfloat16."""

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
RENDEZVOUS = (*_RANKS, "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and accelerate set in each process that they start."""


def rank_of(environment: MutableMapping[str, str]) -> int:
    """Return the rank of this process, from the variables that a launcher sets.

    An incomplete set that means one process, as a shell inside a job may leave, is removed.

    Raises:
        UserError: the variables contradict each other, or some are missing.
    """
    numbers = {name: environment[name] for name in _RANKS if environment.get(name)}
    wrong = [f"{name}={text}" for name, text in numbers.items() if not _is_number(text)]
    if wrong:
        raise _left_over(environment, f"{wrong[0]} is not a number")
    rank, size, local = (int(numbers.get(n, d)) for n, d in zip(_RANKS, "010", strict=True))
    missing = [name for name in RENDEZVOUS if not environment.get(name)]
    if not numbers:
        return 0
    if missing:
        if (rank, size, local) != (0, 1, 0):
            raise _left_over(environment, f"{' and '.join(missing)} missing")
        for name in numbers:
            del environment[name]
        return 0
    if not (rank < size and local <= rank):
        raise _left_over(environment, "they contradict each other")
    port = environment["MASTER_PORT"]
    if not (_is_number(port) and 0 < int(port) < 2**16):
        raise _left_over(environment, f"MASTER_PORT={port} is not a port")
    return rank


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _left_over(environment: MutableMapping[str, str], why: str) -> UserError:
    names = [name for name in RENDEZVOUS if environment.get(name)]
    told = " ".join(f"{name}={environment[name]}" for name in names)
    return UserError(
        f"a launcher's environment variables are set, but are incomplete or wrong ({told}: {why}); "
        f"to train in one process, `unset {' '.join(names)}`; to train in several, use torchrun or "
        "accelerate launch, which set all of them"
    )
