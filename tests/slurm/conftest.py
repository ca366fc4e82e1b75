"""The cluster that these tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.minislurm import MiniSlurm, missing


def need_slurm() -> None:
    """Skip a test that needs a SLURM where none can run; in CI it fails."""
    lacking = missing()
    if not lacking and not os.geteuid():
        return
    what = f"no {', '.join(lacking)} here" if lacking else "only root can run a SLURM"
    why = f"{what}: `make slurm-deps` (Debian, root) installs one for the tests"
    if os.environ.get("CI") == "true":  # a gate that skips what it is for lets all through
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def cluster() -> Iterator[MiniSlurm]:
    """Four nodes of four cores; of each process of pytest-xdist its own."""
    need_slurm()
    # Not under pytest's own folder, which other users cannot enter: munged refuses that.
    base = Path(tempfile.mkdtemp(prefix="minislurm-"))
    with MiniSlurm(base, nodes=4, cpus=4) as running:
        yield running
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(autouse=True)
def _as_it_was(cluster: MiniSlurm) -> Iterator[None]:
    """A test that leaves jobs, or nodes that are down, does so to itself alone."""
    yield
    cluster.clear()
