"""Write arrays that grow on disk (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Column:
    """An `.npy` file that grows row by row; NumPy leaves room in the header for the final count.

    Args:
        path: the file to create.
        dtype: the type of its numbers.
        row: the shape of a row.
        fill: the value of rows that are not given.
        rows: rows to fill at once, for samples that came before the first with this array.
    """

    def __init__(self, path: Path, dtype: str, row: tuple[int, ...], fill: int, rows: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self.dtype = np.dtype(dtype)
        self.row = row
        self._fill = fill
        self.rows = 0
        self._write_header()
        for _ in range(rows):
            self.append(None)

    def _write_header(self) -> None:
        shape = (self.rows, *self.row)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: Array | None) -> None:
        """Add a row; None adds the fill value."""
        if values is None:
            values = np.full(self.row, self._fill)
        self._file.write(np.ascontiguousarray(values, self.dtype).data.cast("B"))
        self.rows += 1

    def close(self) -> None:
        """Write the final count into the header."""
        self._file.seek(0)
        self._write_header()
        self._file.close()
