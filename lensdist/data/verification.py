"""Open the files of a packed set and verify them (torch-free).

Tables (labels, splits, masses, names) are hashed at every opening, and their values checked. Large
arrays are hashed at the first opening; then an empty file in the user's cache, named after the
array's inode, size and times, records that. Any change of a file changes its ctime, which cannot
be set back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lensdist.data.manifest import FILES, FileInfo, Manifest
from lensdist.data.splits import SPLITS, count_classes
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import cache_folder, sha256

log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]
Verify = Literal["auto", "full", "off"]
"""auto: hash a large array unless it has not changed since it was last hashed; full: hash all;
off: hash none."""

TABLES = ("labels.npy", "split.npy", "mass.npy", FILES)
_REMEMBERED = 64 << 20  # bytes; smaller arrays take less than 0.1 s, and are hashed every time
_AT_ONCE = 4 << 30  # bytes that a run waits for, about 3 s; more are hashed while it trains


def check_file(path: Path, info: FileInfo, *, content: bool = True) -> None:
    """Check that a file is the one that was packed.

    Args:
        path: the file; a link is followed.
        info: its size and hash in the manifest.
        content: whether to hash it too.

    Raises:
        UserError: it is missing, not a regular file, of another size, or altered.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would block
            raise UserError(f"{path} is not a regular file; {_REMEDY}")
        if found.st_size != info.bytes:
            raise UserError(
                f"{path} has {found.st_size} bytes, its manifest says {info.bytes}; {_REMEDY}"
            )
        if content and sha256(path) != info.sha256:
            raise UserError(f"{path} was changed or damaged after packing; {_REMEDY}")
    except OSError as e:
        raise UserError(f"{path} cannot be opened: {e.strerror}; {_REMEDY}") from e


_REMEDY = "copy the set again from where it is whole, or pack it again"


def open_arrays(folder: Path, about: Manifest) -> Arrays:
    """Memory-map the arrays of a set; check shapes, types and the values of tables.

    Raises:
        UserError: a file is missing, of another size or shape, or a table was altered.
    """
    needed = {"images.npy", "labels.npy", "split.npy", FILES}
    needed |= {"targets.npy"} if about.kind == "pairs" else set()
    for name in sorted(needed - set(about.files)):
        raise UserError(f"{folder} has no {name}")
    for name, info in about.files.items():
        check_file(folder / name, info, content=name in TABLES)
    arrays: Arrays = {name: _mapped(folder / name) for name in about.files if name != FILES}
    _check_shapes(folder, about, arrays)
    _check_values(folder, about, arrays)
    return arrays


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        with np.errstate(all="ignore"):
            return np.lib.format.open_memmap(path, mode="r")
    except Exception as e:  # NumPy raises any exception on a damaged header
        raise UserError(f"{path} cannot be opened: {' '.join(str(e).split())[:200]}") from e


def _check_shapes(folder: Path, about: Manifest, arrays: Arrays) -> None:
    n = about.count
    image, target = (n, *about.image_shape), (n, *(about.target_shape or ()))
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "images.npy": (image, about.dtype),
        "targets.npy": (target, about.dtype),
        "truths.npy": (target, about.dtype),
        "badpix.npy": (image, "bool"),
        "weights.npy": (image, "float32"),
        "labels.npy": ((n,), "int16"),
        "mass.npy": ((n,), "float64"),
        "split.npy": ((n,), "uint8"),
    }
    if "psf.npy" in arrays:  # the manifest does not say how large PSFs are
        shape = arrays["psf.npy"].shape
        bands = about.image_shape[0] if shape[1:2] != (1,) else 1
        expected["psf.npy"] = ((n, bands, *(shape[2:4] or (1, 1))), "float32")
    for name, array in arrays.items():
        shape, dtype = expected[name]
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise UserError(
                f"{folder / name} holds {array.dtype} {array.shape}, "
                f"its manifest says {dtype} {shape}"
            )


def _check_values(folder: Path, about: Manifest, arrays: Arrays) -> None:
    labels, split = arrays["labels.npy"], arrays["split.npy"]
    if labels.min() < -1 or labels.max() >= len(about.labels):
        raise UserError(f"{folder / 'labels.npy'} holds labels outside -1..{len(about.labels) - 1}")
    if split.max() >= len(SPLITS):
        raise UserError(f"{folder / 'split.npy'} holds splits outside 0..{len(SPLITS) - 1}")
    if count_classes(labels, split, about.labels) != about.counts:
        raise UserError(
            f"{folder}: labels.npy and split.npy do not add up to the manifest's counts"
        )
    if "mass.npy" in arrays and np.isinf(arrays["mass.npy"]).any():
        raise UserError(f"{folder / 'mass.npy'} holds infinite masses")


class Verification:
    """The hashes of a set's large arrays, checked immediately or in a thread.

    Args:
        folder: the set.
        files: the files in its manifest.
        how: see `Verify`.
        background: whether a thread may hash what takes more than a few seconds.

    Raises:
        UserError: an array that was hashed immediately was altered.
    """

    def __init__(
        self, folder: Path, files: Mapping[Any, FileInfo], how: Verify, *, background: bool
    ) -> None:
        self._folder = folder
        self._damage: str | None = None
        self._thread: threading.Thread | None = None
        large = {name: info for name, info in files.items() if name not in TABLES}
        self._left = {
            name: info
            for name, info in large.items()
            if how == "full" or (how == "auto" and not _known(folder / name, info))
        }
        size = sum(info.bytes for info in self._left.values())
        later = background and how == "auto" and size > _AT_ONCE
        if size > _AT_ONCE:
            when = "while training goes on" if later else "first"
            log.info("verifying %.1f GB of %s %s", size / 1e9, folder, when)
        if not later:
            self._hash()
            return
        # A daemon, so that a run that ends for another reason need not wait.
        self._thread = threading.Thread(target=self._try, name="set verifier", daemon=True)
        self._thread.start()

    def check(self, *, wait: bool = False) -> None:
        """Check that no damage has been found so far.

        Args:
            wait: wait until the whole set is hashed.

        Raises:
            RunError: an array is not the one that was packed.
        """
        if wait and self._thread is not None:
            self._thread.join()
        if self._damage is not None:
            raise RunError(f"{self._damage}; do not use the results of this run")

    def _try(self) -> None:
        try:
            self._hash()
        except UserError as e:
            self._damage = str(e)
        except BaseException as e:  # an exception in a thread would be lost
            self._damage = f"{self._folder} cannot be verified: {e!r}"
            raise

    def _hash(self) -> None:
        for name, info in self._left.items():
            path = self._folder / name
            before = _marker(path, info)
            check_file(path, info)
            if before is not None and before == _marker(path, info):
                with contextlib.suppress(OSError):  # on a full disk it is hashed again next time
                    before.touch()


def _known(path: Path, info: FileInfo) -> bool:
    marker = _marker(path, info)
    return marker is not None and marker.exists()


def _marker(path: Path, info: FileInfo) -> Path | None:
    """Return the file that records that `path` was verified; None if it cannot be stored."""
    if info.bytes < _REMEMBERED:
        return None
    folder = cache_folder()
    if folder is None:  # a folder that others can write cannot prove that a file was verified
        return None
    try:
        file = path.stat()
    except OSError:
        return None
    facts = (file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns, info.sha256)
    return folder / f"verified-{hashlib.sha256(repr(facts).encode()).hexdigest()}"
