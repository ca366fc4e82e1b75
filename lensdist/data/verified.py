"""The files of a packed set, opened and verified (torch-free).

Tables (labels, splits, masses, names) are hashed at every opening, and their values checked. Large
arrays are hashed at the first: an empty file in the user's cache, named after the array's inode,
size and times, says that it was. A change of a file changes its times, which nobody can set back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lensdist.data.manifest import FILES, FileInfo, Manifest
from lensdist.data.splits import SPLITS, count_classes
from lensdist.errors import RunError, UserError
from lensdist.files import is_private, sha256

log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]
Verify = Literal["auto", "full", "off"]
"""auto: a large array that has not changed since it was last hashed is believed; full: none is;
off: large arrays are not hashed."""

TABLES = ("labels.npy", "split.npy", "mass.npy", FILES)
_REMEMBERED = 64 << 20  # bytes; smaller arrays take less than 0.1 s, and are hashed every time
_AT_ONCE = 4 << 30  # bytes that a run waits for, about 3 s; the rest is hashed while it trains


def check_file(path: Path, info: FileInfo, *, content: bool = True) -> None:
    """Make sure that a file is the one that was packed.

    Args:
        path: of the file; a link is followed.
        info: what the manifest says of it.
        content: whether to hash it too.

    Raises:
        UserError: it is missing, no regular file, of another size, or was altered.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for ever
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
    """The arrays of a set, memory-mapped; shapes, types and the values of tables are checked.

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
    except Exception as e:  # whatever NumPy raises on a header that it has not written
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
    """Hashes a set's large arrays: at once, or the larger ones while work goes on.

    Args:
        folder: the set.
        files: what its manifest says of its files.
        how: see `Verify`.
        background: whether more than a few seconds' worth may be hashed in a thread.

    Raises:
        UserError: an array was altered, and that was found at once.
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
        # A daemon: a run that ends for another reason need not wait.
        self._thread = threading.Thread(target=self._try, name="set verifier", daemon=True)
        self._thread.start()

    def check(self, *, wait: bool = False) -> None:
        """Refuse to go on with a set that was found damaged by now.

        Args:
            wait: for the whole set to be hashed.

        Raises:
            RunError: an array is not what was packed.
        """
        if wait and self._thread is not None:
            self._thread.join()
        if self._damage is not None:
            raise RunError(f"{self._damage}; what this run has learned from it is worth nothing")

    def _try(self) -> None:
        try:
            self._hash()
        except UserError as e:
            self._damage = str(e)
        except BaseException as e:  # raised where nobody would hear of it
            self._damage = f"{self._folder} cannot be verified: {e!r}"
            raise

    def _hash(self) -> None:
        for name, info in self._left.items():
            path = self._folder / name
            before = _marker(path, info)
            check_file(path, info)
            if before is not None and before == _marker(path, info):
                with contextlib.suppress(OSError):  # a full disk: it is hashed again
                    before.touch()


def _known(path: Path, info: FileInfo) -> bool:
    marker = _marker(path, info)
    return marker is not None and marker.exists()


def _marker(path: Path, info: FileInfo) -> Path | None:
    """The file whose being there says that `path` was verified; None where none can be kept."""
    if info.bytes < _REMEMBERED:
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "lensdist"
    try:
        if not folder.is_absolute():
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not is_private(folder):  # what others can write there must not pass for verified
            return None
        file = path.stat()
    except OSError:
        return None
    facts = (file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns, info.sha256)
    return folder / f"verified-{hashlib.sha256(repr(facts).encode()).hexdigest()}"
