"""Copy a run's packed set to a node's own disk, once for all processes and jobs there.

A copy is named after the set's fingerprint, made under another name, checked by its hashes each
time, and locked while a job uses it. If a new set needs room, copies that no job uses are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lensdist.data.manifest import MANIFEST, Manifest
from lensdist.data.verification import check_file
from lensdist.utils.errors import UserError
from lensdist.utils.files import is_private
from lensdist.utils.launched import STAGED
from lensdist.utils.owners import temporary
from lensdist.utils.yaml_reader import read_plain
from slurm import Say
from slurm.job import Job

_SPARE = 1 << 30  # bytes that are left free for others


@contextlib.contextmanager
def staged(job: Job, say: Say) -> Iterator[dict[str, str]]:
    """Copy the set of a training phase if the cluster says so, and hold the copy.

    Without room, or if the disk fails, the run reads the set where it is; `say` gets the reason.

    Yields:
        The variable that tells the run where the copy is; empty if there is none.
    """
    if job.cluster.stage is None or "lensdist.train" not in job.argv:
        yield {}
        return
    with contextlib.ExitStack() as held:
        found: dict[str, str] = {}
        try:
            path = read_plain(Path(job.argv[-1]))["data"]["path"]
            if path is not None:  # else the run simulates its images
                found = {STAGED: str(_copy(job.cwd / path, _root(job), held))}
        except (OSError, UserError, KeyError, TypeError) as e:
            say(f"the data are read where they are, as they were not copied to this node: {e}")
        yield found


def _root(job: Job) -> Path:
    """Return this user's folder on the node's disk."""
    given = job.cluster.stage_to or os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    root = Path(os.path.expandvars(given)) / f"lensdist-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if not is_private(root):
        raise UserError(f"{root}: others can write there")
    return root


def _copy(source: Path, root: Path, held: contextlib.ExitStack) -> Path:
    """Return the copy of a set, which stays locked until `held` is closed."""
    about = Manifest.load(source)
    final = root / about.fingerprint
    lock = held.enter_context((root / f"{final.name}.lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)  # another job of this node may be copying it
    if final.exists() and not _whole(final, about):
        shutil.rmtree(final)
    if not final.exists():
        _make_room(root, sum(info.bytes for info in about.files.values()))
        beside = temporary(final)
        try:
            beside.mkdir()
            for name in (*about.files, MANIFEST):
                shutil.copyfile(source / name, beside / name)
            for name, info in about.files.items():
                check_file(beside / name, info)
            beside.rename(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    os.utime(final)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return final


def _whole(copy: Path, about: Manifest) -> bool:
    try:
        for name, info in about.files.items():
            check_file(copy / name, info)
        return (copy / MANIFEST).is_file()
    except UserError:
        return False


def _make_room(root: Path, size: int) -> None:
    """Remove copies that no job uses, the oldest first, until a set of so many bytes fits.

    Raises:
        UserError: it does not fit.
    """
    others = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")]
    for other in sorted(others, key=lambda one: one.stat().st_mtime):
        if shutil.disk_usage(root).free >= size + _SPARE:
            return
        with (root / f"{other.name}.lock").open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
    free = shutil.disk_usage(root).free
    if free < size + _SPARE:
        raise UserError(
            f"{root} has {free / 1e9:.1f} GB free, and the set needs {size / 1e9:.1f} GB and 1 GB "
            "to spare"
        )
