"""Tables of predictions in CSV or Parquet, one row per file (torch-free)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import fsync, write_atomic
from lensdist.utils.owners import temporary

_TOGETHER = 8192  # rows of a Parquet row group: small groups are slow to read
Row = Sequence[str | float | None]
AddRow = Callable[[str, Row], None]
"""A function of a file's name and the values of its columns; None leaves one empty."""


@contextmanager
def open_table(dest: Path, columns: Mapping[str, type]) -> Iterator[AddRow]:
    """Open a table with the column `file` and `columns`, each of type str or float.

    Rows are written to a temporary file, which is renamed to `dest` at the end.

    Raises:
        UserError: `dest` is .parquet and pyarrow is missing.
        OSError: the table cannot be written.
    """
    named = [("file", str), *((_text(name), kind) for name, kind in columns.items())]
    kind = _csv
    if dest.suffix.lower() == ".parquet":
        _require_pyarrow()
        kind = _parquet
    dest.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(dest)
    try:
        with kind(beside, named) as put:

            def add(file: str, row: Row) -> None:
                if len(row) != len(columns):
                    raise RunError(
                        f"the model answers {len(row)} numbers, but its task names {len(columns)} "
                        "columns; let its property `columns` return a dict of name to float"
                    )
                put([_text(x) if isinstance(x, str) else x for x in (file, *row)])

            yield add
        fsync(beside)
        os.replace(beside, dest)
        fsync(dest.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_skipped(path: Path, skipped: Mapping[str, str]) -> None:
    """Write the skipped files with their reasons, in the columns `file` and `reason`."""
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(("file", "reason"))
    rows.writerows((_text(file), _text(reason)) for file, reason in skipped.items())
    write_atomic(path, stream.getvalue())


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            "a .parquet table needs pyarrow: pip install 'lensdist[parquet]', or write a .csv"
        ) from error


def _text(text: str) -> str:
    r"""Escape what is not UTF-8, as a file's name may hold it: \udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _csv(path: Path, columns: Sequence[tuple[str, type]]) -> Iterator[Callable[[Row], Any]]:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")  # writes floats with every digit
        rows.writerow([name for name, _ in columns])
        yield rows.writerow


@contextmanager
def _parquet(path: Path, columns: Sequence[tuple[str, type]]) -> Iterator[Callable[[Row], Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = [pa.string() if kind is str else pa.float32() for _, kind in columns]
    schema = pa.schema([(name, one) for (name, _), one in zip(columns, types, strict=True)])
    waiting: list[Row] = []

    with pq.ParquetWriter(path, schema) as writer:

        def put(row: Row) -> None:
            waiting.append(row)
            if len(waiting) == _TOGETHER:
                flush()

        def flush() -> None:
            values = zip(*waiting, strict=True) if waiting else [[] for _ in types]
            arrays = [pa.array(v, t) for v, t in zip(values, types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            waiting.clear()

        yield put
        flush()
