"""Files that hold many images, as folders: stacks in .npy and .npz, HDF5, and .zip (torch-free).

An image in one has the name of a file below it: `no.npy/17`, `a.h5/train/x/3`, `a.zip/lens/1.fits`.
Nothing is unpacked to a disk. What a container claims is compared with bounds before it is read.
"""

from __future__ import annotations

import io
import itertools
import math
import mmap
import re
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lensdist.data.reading.numpy_files import read_header
from lensdist.data.reading.raw import MAX_BYTES, Array, BadFile, check_unpacked_size
from lensdist.utils.extras import needed

HDF5 = (".h5", ".hdf5", ".hdf")
_MANY = (".zip", *HDF5)
_END = re.compile(r"(?<=\.npy|\.npz|\.zip|.\.h5|hdf5|\.hdf)/", re.IGNORECASE)
_MAX_STACK = 1 << 30  # of an array that is unpacked to memory
_MAX_MEMBERS = 1_000_000  # of a .zip
_MAX_DATASETS = 100_000
_MAX_ARRAYS = 1000  # of an .npz whose headers are read
_MAX_RATIO = 200  # of sizes, beyond 1 GiB


class Member(NamedTuple):
    """Something in a container.

    Attributes:
        name: its name in the container; "" for the array of an .npy file.
        shape: of an array; None: an image file of any kind.
        dtype: the kind of an array's numbers or texts, as NumPy's `dtype.kind`.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""


def is_container(name: str) -> bool:
    """Return whether a file of this name is always a container."""
    return name.lower().endswith(_MANY)


def holds_many(name: str) -> bool:
    """Return whether a file of this name may hold many images."""
    return is_container(name) or name.lower().endswith((".npy", ".npz"))


def inside(path: Path) -> tuple[Path, str] | None:
    """Return a container and the name in it, if a path leads into one; None: it is a file's."""
    name = path.as_posix()
    for found in _END.finditer(name):
        if (file := Path(name[: found.start()])).is_file():
            return file, name[found.end() :]
    return None


def members(file: Path) -> list[Member]:
    """Return what a container holds, from its headers.

    Raises:
        BadFile: it is damaged, or too large in some way.
        UserError: it is HDF5, and h5py is not installed.
    """
    try:
        if not file.is_file():  # to open a pipe would wait for a writer
            raise BadFile("it is not a regular file")
        if file.suffix.lower() in HDF5:
            with _hdf5(file) as whole:
                return [
                    Member(name, tuple(data.shape), data.dtype.kind.replace("O", "U"))
                    for name, data in _datasets(whole).items()
                ]
        if file.suffix.lower() == ".npy":
            with file.open("rb") as stream:
                shape, _, dtype = read_header(stream)
            return [Member("", shape, dtype.kind)]
        if file.suffix.lower() == ".npz":
            with _open_zip(file) as archive:
                return [_header(archive, info) for info in archive.infolist()[:_MAX_ARRAYS]]
        with _open_zip(file) as archive:
            return [Member(info.filename) for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise BadFile(f"it cannot be read ({type(error).__name__})") from error


def array_in_zip(file: Path, name: str) -> Member:
    """Return the shape of an .npy file in a .zip; one that cannot be read counts as an image."""
    try:
        with _open_zip(file) as archive, archive.open(name) as stream:
            shape, _, dtype = read_header(stream)
    except (BadFile, OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
        return Member(name, (1, 1), "f")  # its reader says why it cannot be used
    return Member(name, (1, 1) if dtype.kind == "O" else shape, dtype.kind.replace("O", "f"))


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    with archive.open(info) as stream:
        shape, _, dtype = read_header(stream)
    return Member(info.filename.removesuffix(".npy"), shape, dtype.kind)


def read_inside(file: Path, name: str) -> tuple[bytes, str]:
    """Return the bytes of an image in a container, and the name of the image file that they make.

    An image of an array is given as the .npy file of it.

    Raises:
        BadFile: it is not there, is damaged, or is too large.
    """
    try:
        key = _key(file)
        if file.suffix.lower() != ".zip":
            return _npy(_row(key, name)), ".npy"
        archive = _zip(key)
        if name in archive.NameToInfo:
            info = archive.getinfo(name)
            check_unpacked_size(info.file_size)
            return archive.read(info), name
        whole, _, number = name.rpartition("/")
        return _npy(_at(_unzipped(key, whole), number)), ".npy"
    except BadFile:
        raise
    except Exception as error:  # parsers raise any exception on damaged bytes
        raise BadFile(f"it is damaged ({type(error).__name__})") from error


def texts(file: Path, name: str) -> list[str]:
    """Return the labels of an array: whole numbers, texts, or rows with one 1 among 0.

    Raises:
        BadFile: it is something else.
    """
    if file.suffix.lower() in HDF5:
        with _hdf5(file) as whole:
            array = np.asarray(whole[name][()])
    else:
        array = np.asarray(_array(_key(file), name)[()])
    if array.dtype.kind in "SO":
        array = np.array([x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel()])
    if array.ndim == 2 and array.shape[1] > 1:
        if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
            raise BadFile("its labels are neither one for each image nor rows with one 1")
        array = array.argmax(axis=1)
    array = array.ravel()
    if array.dtype.kind == "f" and (array == np.round(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iubU":
        raise BadFile("its labels are not whole numbers or texts")
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    return [str(value) for value in array.tolist()]


Key = tuple[str, int, int]
"""Path, time of change and size of a file: what was read before holds while they stay."""


def _key(file: Path) -> Key:
    stamp = file.stat()
    return str(file), stamp.st_mtime_ns, stamp.st_size


def _row(key: Key, name: str) -> Array:
    if Path(key[0]).suffix.lower() == ".npy":
        return _at(_array(key, ""), name)
    whole, _, number = name.rpartition("/")
    try:
        array = _array(key, name)
    except KeyError:
        return _at(_array(key, whole), number)
    return _at(array, None)


def _at(array: Any, number: str | None) -> Array:
    shape = array.shape if number is None else array.shape[1:]
    check_unpacked_size(math.prod(shape) * array.dtype.itemsize)
    return np.asarray(array[()] if number is None else array[int(number)])


@lru_cache(maxsize=4)  # LR and HR, or images, weights, masks and PSFs; unpacked they may be large
def _array(key: Key, name: str) -> Any:
    """Return an array of an .npy, .npz or HDF5 file, mapped or opened where that is possible."""
    file = Path(key[0])
    if file.suffix.lower() == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    if file.suffix.lower() in HDF5:
        return _open_hdf5(key)[name]
    with zipfile.ZipFile(file) as archive:
        whole = name if name in archive.NameToInfo else f"{name}.npy"
        return _unpacked(archive, archive.getinfo(whole))


@lru_cache(maxsize=4)
def _unzipped(key: Key, name: str) -> Array:
    archive = _zip(key)
    return _unpacked(archive, archive.getinfo(name))


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    if info.file_size > _MAX_STACK:
        raise BadFile(f"it unpacks to more than {_MAX_STACK >> 20} MiB; save the stack as .npy")
    data = archive.read(info)
    shape, fortran, dtype = read_header(stream := io.BytesIO(data))
    at = stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - at:
        raise BadFile("it is cut short, or not made of numbers or texts")
    return np.frombuffer(data, dtype, offset=at).reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=2)
def _zip(key: Key) -> zipfile.ZipFile:
    return _open_zip(Path(key[0]))


def _open_zip(file: Path) -> zipfile.ZipFile:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
        at = found = 0  # before zipfile makes an object of each
        while (at := data.find(b"PK\x01\x02", at) + 1) and found <= _MAX_MEMBERS:
            found += 1
    if found > _MAX_MEMBERS:
        raise BadFile(f"it holds more than {_MAX_MEMBERS:,} files")
    archive = zipfile.ZipFile(file)
    size = sum(info.file_size for info in archive.infolist())
    if size > _MAX_STACK and size > _MAX_RATIO * file.stat().st_size:
        raise BadFile(f"it unpacks to more than {_MAX_RATIO} times its size")
    return archive


def _hdf5(file: Path) -> Any:
    return needed("h5py", "reading .h5", "'lensdist[hdf5]'").File(file, "r")


@lru_cache(maxsize=2)
def _open_hdf5(key: Key) -> Any:
    return _hdf5(Path(key[0]))


def _datasets(whole: Any) -> dict[str, Any]:
    """Return the datasets of an HDF5 file by name; those in other files are not followed."""
    found = dict(itertools.islice(_below(whole, ""), _MAX_DATASETS + 1))
    if len(found) > _MAX_DATASETS:
        raise BadFile(f"it holds more than {_MAX_DATASETS:,} datasets")
    return found


def _below(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    import h5py

    for name in sorted(group):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue  # a link may lead to another file, or in a circle
        item = group[name]
        if isinstance(item, h5py.Group):
            if above.count("/") < 8:
                yield from _below(item, f"{above}{name}/")
        elif isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
            yield f"{above}{name}", item


def _npy(array: Array) -> bytes:
    if array.nbytes > MAX_BYTES:
        raise BadFile(f"it is larger than {MAX_BYTES >> 20} MiB")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
