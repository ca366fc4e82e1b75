"""Write and read `metrics.jsonl`, the record of a run's numbers. Trackers and figures get copies.

A row is a flat JSON object: `step` (int), `kind` (train, val, test, event, ...) and values;
`docs/metrics.md` lists them. The file survives a crash in mid-row, a full disk, and a resume from
an older step: the rows after that step are dropped, and training writes them again, bit for bit.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

from lensdist.utils.errors import UserError
from lensdist.utils.files import plain, sync, write_atomic
from lensdist.utils.sealed import parse_json, read_bytes

log = logging.getLogger(__name__)

Row = dict[str, Any]
_MOST = 1 << 28  # bytes: more than a million rows take
_HELD = 1 << 20  # bytes of rows kept while the disk refuses them: hours of training


class MetricsLog:
    """A file to which one process appends rows.

    Args:
        path: of `metrics.jsonl`; created with its folder if it does not exist. An incomplete last
            line, from a process that was killed while it wrote, is cut off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Unbuffered: the operating system has the row when `append` returns, so a killed process
        # loses none; only a machine that crashes can lose rows since the last `sync`.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._held = bytearray()
        self._refused = False
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < self._file.tell():
            self._file.truncate(whole)

    def append(self, step: int, kind: str, **values: Any) -> Row:
        """Write one row.

        Values are numbers, strings, booleans or None. A 0-d tensor or a NumPy scalar becomes a
        number; reading a tensor waits for its GPU. NaN and infinity become null, and `nonfinite`
        lists their names.

        Returns:
            The row as written, for the trackers.

        Raises:
            TypeError: a value is not one of these. A full disk raises nothing, because training
                must continue: the rows are held, and written with a later one.
        """
        row: Row = {"step": int(step), "kind": kind}
        nonfinite = []
        for name, value in values.items():
            value = value.tolist() if hasattr(value, "tolist") else value
            if isinstance(value, float) and not math.isfinite(value):
                nonfinite.append(name)
            row[name] = plain(value)
            if isinstance(row[name], (dict, list)):
                raise TypeError(f"a row of metrics is flat, but {name} is a {type(value).__name__}")
        if nonfinite:
            row["nonfinite"] = " ".join(nonfinite)
        self._held += json.dumps(row, allow_nan=False).encode() + b"\n"
        self._write()
        return row

    def sync(self) -> None:
        """Wait until the rows are on the disk; called when a checkpoint is saved."""
        self._write()
        try:
            sync(self._file.fileno())
        except OSError as error:
            self._complain(error)

    def close(self) -> None:
        """Sync, then close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _write(self) -> None:
        try:
            while self._held:  # a nearly full disk takes a part of a row: continue after it
                del self._held[: self._file.write(self._held)]
            self._refused = False
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._refused:
            log.warning("%s: %s; rows are held and tried again", self.path, error.strerror)
        self._refused = True
        if len(self._held) > _HELD:  # never cut a row, except the one that is half on the disk
            del self._held[self._held.find(b"\n") + 1 : self._held.rfind(b"\n", 0, -_HELD // 2) + 1]


def read(path: Path) -> list[Row]:
    """Return all rows, oldest first; an empty list if there is no file.

    An incomplete last line is skipped. So is a damaged line, with a warning that names it.
    """
    return [row for _, row in _lines(path)]


def rewind(path: Path, step: int) -> int:
    """Drop the rows after `step`, from which a run resumes, and return their number.

    Call it before `MetricsLog(path)`. Rows of `step` itself stay. The file is replaced as a whole.
    """
    lines = _lines(path)
    kept = [line for line, row in lines if row["step"] <= step]
    data = b"".join(line + b"\n" for line in kept)
    if path.exists() and path.read_bytes() != data:
        write_atomic(path, data)
    return len(lines) - len(kept)


def _lines(path: Path) -> list[tuple[bytes, Row]]:
    try:
        data = read_bytes(path, _MOST) if path.exists() else b""
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    whole, lines = data[: data.rfind(b"\n") + 1], []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = parse_json(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError):
            warnings.warn(f"{path}:{number} is damaged and left out", stacklevel=3)
            continue
        lines.append((line, row))
    return lines
