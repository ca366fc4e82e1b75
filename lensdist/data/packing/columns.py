"""Arrays that grow on disk (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Column:
    """An `.npy` file that grows row by row; NumPy leaves room in the header for the final count."""

    def __init__(self, path: Path, dtype: str, row: tuple[int, ...], fill: int, rows: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self.dtype = np.dtype(dtype)
        self.row = row
        self._fill = fill
        self.rows = 0
        self._write_header()
        for _ in range(rows):  # samples that came before the first that has this column
            self.append(None, 1)

    def _write_header(self) -> None:
        shape = (self.rows, *self.row)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Array | None, n: int) -> None:
        if values is None:
            values = np.full((n, *self.row), self._fill, self.dtype)
        self._file.write(np.ascontiguousarray(values, self.dtype).data.cast("B"))
        self.rows += n

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()
