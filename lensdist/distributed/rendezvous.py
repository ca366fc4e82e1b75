"""Connect the processes of a run: where they listen, and how long they wait for each other.

torch's own `env://` listens on all interfaces of the first node, and waits for ten minutes or more
without a message. If torchrun keeps the store, it is the launcher that listens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import (  # type: ignore[attr-defined]  # its list of names lacks them
    DistStoreError,
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.rendezvous import register_rendezvous_handler

from lensdist.utils import launched
from lensdist.utils.errors import UserError
from lensdist.utils.logs import ANY_RANK

log = logging.getLogger(__name__)

METHOD = "lensdist://"  # for `init_process_group`
PATIENCE = 300.0
"""Seconds within which all processes must have come: some load torch from a slow disk."""
_LOOPBACK = "127.0.0.1"
_SOON = 20.0  # s after which waiting processes name the missing ones
_HINT = (
    "; if none was started, `unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT` to train "
    "in one process; if one was, check that its node reaches the others"
)


def stay_on_this_machine() -> None:
    """Let gloo and NCCL listen on the loopback if all processes are on this machine."""
    if _one_machine() and "lo" in (name for _, name in socket.if_nameindex()):
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")


def meet() -> tuple[Store, int, int]:
    """Wait for all processes; return their shared store, this one's rank, and their number.

    Raises:
        UserError: process 0 cannot listen at its address, or only some processes have a GPU.
        DistStoreError: some did not come, or the first cannot be reached.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size == 1:
        return HashStore(), 0, 1
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Store | None = None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        host = _LOOPBACK if _one_machine() else host
        if rank == 0:
            number = _socket(host, port).detach()
            store = TCPStore(
                host, port, size, True, wait_for_workers=False, master_listen_fd=number
            )
    store = store or _reach(host, port, rank, size)
    # A launcher that restarts its processes may keep the store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"lensdist/{attempt}", store)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    store.add("gpus", int(torch.accelerator.is_available() and not on_cpu))
    _wait_for_all(store, rank, size)
    with_gpu = store.add("gpus", 0)
    if 0 < with_gpu < size:
        raise UserError(
            f"{with_gpu} of {size} processes have a GPU; ask for one for each, or hide all of them "
            "(CUDA_VISIBLE_DEVICES= )"
        )
    return store, rank, size


def _wait_for_all(store: Store, rank: int, size: int) -> None:
    store.set(f"here/{rank}", "")
    if store.add("count", 1) == size:
        store.set("all", "")
    patience = _patience()
    for seconds in (_SOON, patience):
        try:
            store.wait(["all"], timedelta(seconds=seconds))
            break
        except DistStoreError as e:
            missing = [str(r) for r in range(size) if not store.check([f"here/{r}"])]
            names = f"process {', '.join(missing)} of {size}"
            if seconds == patience:
                raise DistStoreError(f"{names} did not come in {seconds:.0f} s{_HINT}") from e
            log.warning("waiting for %s", names)


def _patience() -> float:
    return float(os.environ.get(launched.PATIENCE) or PATIENCE)


def _one_machine() -> bool:
    size = os.environ.get("WORLD_SIZE", "1")
    if size in ("1", os.environ.get("LOCAL_WORLD_SIZE")):
        return True
    return os.environ["MASTER_ADDR"] == "localhost" or os.environ["MASTER_ADDR"].startswith("127.")


def _socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this machine's address, or at all if it is not its own.

    Raises:
        UserError: the port is taken.
    """
    try:
        if _is_ours(host):
            return socket.create_server((host, port), backlog=1024)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as e:
        raise UserError(
            f"process 0 cannot listen at {host}, port {port} (MASTER_ADDR, MASTER_PORT): "
            f"{e.strerror}; give another port"
        ) from e


def _is_ours(host: str) -> bool:
    """Return whether this machine has that IPv4 address; in a container it may be the host's."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((host, 0))
        return host == _LOOPBACK or not probe.getsockname()[0].startswith("127.")
    return False


def _reach(host: str, port: int, rank: int, size: int) -> Store:
    """Return the store of process 0, or of its launcher."""
    patience = _patience()
    for seconds in (_SOON, patience):
        try:
            wait = timedelta(seconds=seconds)
            return TCPStore(host, port, size, timeout=wait, wait_for_workers=False)
        except RuntimeError as e:
            where = f"process 0 of {size} at {host}, port {port}"
            if seconds == patience:
                raise DistStoreError(f"{where} did not answer in {seconds:.0f} s{_HINT}") from e
            log.warning("waiting for %s", where, extra=ANY_RANK)
    raise AssertionError


def _handle(url: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
    yield meet()
    raise RuntimeError("processes meet once")


with contextlib.suppress(RuntimeError):  # already registered
    register_rendezvous_handler("lensdist", _handle)  # type: ignore[no-untyped-call]
