"""Read a table of labels, splits, systems and places on the sky: a CSV file (torch-free)."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lensdist.data.reading.readers import form
from lensdist.data.splits import SPLITS
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable

_COLUMNS = {
    "name": "name file filename file_name filepath path image image_name image_id id object_id "
    "objid img cutout stamp",
    "label": "label class classification type target category is_lens lens",
    "split": "split set subset partition",
    "group": "group system system_id source_id object",
    "ra": "ra ra_deg raj2000 right_ascension alpha_j2000 ra_j2000",
    "dec": "dec dec_deg decj2000 dej2000 declination delta_j2000 dec_j2000",
    "redshift": "redshift z z_lens zlens z_l",
}
"""What columns are called, by what they mean; without regard to capitals, blanks and hyphens."""
_MAX_BYTES = 1 << 30
_SHOWN = 30
_DEV = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an image from beside it. Empty strings and None: nothing."""

    label: str = ""
    split: str | None = None
    group: str = ""
    place: tuple[float, float] | None = None
    """RA and Dec, degrees."""
    redshift: float | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a table."""

    path: Path
    columns: Mapping[str, str]
    """The column of each meaning that the table has, `name` first."""
    names: Sequence[str]
    """Columns that may name the images."""
    rows: Sequence[Mapping[str, str]]

    def match(self, files: Mapping[str, str]) -> dict[str, Facts]:
        """Return what the table says of each file that it names.

        A row names a file by its path, its name, its stem, or that of a folder above it.

        Args:
            files: files, each with one more name, or "".

        Raises:
            UserError: no column names the files, columns disagree, two rows name one file, or a
                value cannot be read.
        """
        found = {column: self._by(column, files) for column in self.names}
        found = {column: rows for column, rows in found.items() if rows}
        if not found:
            first = printable(next(iter(files)))
            raise UserError(
                f"no row of {printable(self.path)} names an image such as {first}; "
                f"columns tried: {self._listed(self.names)}; say which with --columns name=COLUMN, "
                f"from {self._listed(self.rows[0])}"
            )
        most = max(found.values(), key=len)
        if any(rows[file] != most[file] for rows in found.values() for file in rows.keys() & most):
            raise UserError(
                f"columns {self._listed([*found])} of {printable(self.path)} name images "
                "differently; say which to take with --columns name=COLUMN"
            )
        return {file: self._facts(row) for file, row in most.items()}

    def notes(self, found: Mapping[str, Facts]) -> list[str]:
        """Return lines on rows and columns that are not used."""
        notes = [
            f"{self.path.name}: {', '.join(f'{k} from {v!a}' for k, v in self.columns.items())}"
        ]
        if len(found) < len(self.rows):
            notes.append(
                f"{self.path.name}: {len(self.rows):,} rows, {len(found):,} images in them"
            )
        return notes

    def _by(self, column: str, files: Mapping[str, str]) -> dict[str, int]:
        number: dict[str, int] = {}
        for i, row in enumerate(self.rows):
            name = row[column].strip()
            if name and self.rows[number.setdefault(name, i)] != row:
                number[name] = -1  # an error, if an image has this name
        found = {}
        for file, also in files.items():
            key = next((key for key in _keys(file, also) if key in number), None)
            if key is not None and number[key] < 0:
                raise UserError(
                    f"{printable(self.path)} has several rows of {column} {printable(key)}, which "
                    "differ"
                )
            if key is not None:
                found[file] = number[key]
        return found

    def _facts(self, number: int) -> Facts:
        row = self.rows[number]
        told = {of: row[column].strip() for of, column in self.columns.items() if of != "name"}
        said = told.get("split", "").lower()
        split = _DEV.get(said, said)
        if split and split not in SPLITS:
            raise UserError(
                f"{printable(self.path)}, row {number + 2}: {printable(split)!r} is none of "
                f"{', '.join(SPLITS)}"
            )
        ra, dec, redshift = (self._number(number, told, of) for of in ("ra", "dec", "redshift"))
        return Facts(
            _whole(told.get("label", "")),
            split or None,
            told.get("group", ""),
            None if ra is None or dec is None else (ra, dec),
            redshift,
        )

    def _number(self, row: int, told: Mapping[str, str], of: str) -> float | None:
        text = told.get(of, "")
        if text.lower() in ("", "nan", "none", "null", "-"):
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (of == "dec" and abs(value) > 90):
            raise UserError(
                f"{printable(self.path)}, row {row + 2}: {of} {printable(text)!r} is not a number "
                "of degrees" if of != "redshift" else
                f"{printable(self.path)}, row {row + 2}: redshift {printable(text)!r} is not a "
                "number"
            )  # fmt: skip
        return value

    def _listed(self, columns: Sequence[str] | Mapping[str, str]) -> str:
        names = [*columns]
        return printable(", ".join(names[:_SHOWN])) + (" and more" if len(names) > _SHOWN else "")


def read_table(path: Path, given: Mapping[str, str]) -> Table:
    """Read a table with a header, of columns between commas, semicolons, tabs or bars.

    Args:
        path: the file; lines that begin with `#` are comments.
        given: columns by what they mean: `name`, `label`, `split`, `group`, `ra`, `dec`,
            `redshift`; others are found by what they are called.

    Raises:
        UserError: it cannot be read, or it is not clear what a column means.
    """
    lines = [line for line in _lines(path) if line.strip() and not line.startswith("#")]
    if len(lines) < 2:
        raise UserError(f"{printable(path)} has no rows below a header")
    sign = max(",;\t|", key=lines[0].count)
    header, *values = list(csv.reader(lines, delimiter=sign))
    header = [name.strip() for name in header]
    if len({*header}) < len(header) or not all(header):
        raise UserError(f"{printable(path)}: two columns have one name, or one has none")
    if uneven := [i for i, row in enumerate(values) if len(row) != len(header)]:
        where = f"{printable(path)}: row {uneven[0] + 2}"
        raise UserError(f"{where} has not as many values as the header")
    rows = [dict(zip(header, row, strict=False)) for row in values]
    found = {of: [c for c in header if _plain(c) in _COLUMNS[of].split()] for of in _COLUMNS}
    for of, column in given.items():
        if of not in _COLUMNS or column not in header:
            raise UserError(
                f"--columns {of}={column}: give one of {', '.join(_COLUMNS)}, and a column of "
                f"{printable(path)}: {printable(', '.join(header[:_SHOWN]))}"
            )
        found = {key: [c for c in columns if c != column] for key, columns in found.items()}
        found[of] = [column]
    for of, columns in found.items():
        if len(columns) > 1 and of != "name":
            raise UserError(
                f"{printable(path)}: {' and '.join(columns)} may both be the {of}; say which with "
                f"--columns {of}={columns[0]}"
            )
    if not found["name"]:
        raise UserError(
            f"{printable(path)}: no column is known to name the images; say which with --columns "
            f"name=COLUMN, from {printable(', '.join(header[:_SHOWN]))}"
        )
    meant = {of: names[0] for of, names in found.items() if names}
    return Table(path, meant, found["name"], rows)


def parse_columns(text: str | None) -> dict[str, str]:
    """Read `--columns label=kind,name=objid`.

    Raises:
        UserError: it is something else.
    """
    given = dict(part.partition("=")[::2] for part in text.split(",")) if text else {}
    if not all(given) or not all(given.values()) or not given.keys() <= _COLUMNS.keys():
        raise UserError(
            f"--columns {text} is not understood; give MEANING=COLUMN,… with "
            f"{', '.join(_COLUMNS)}, such as name=objid,label=kind"
        )
    return given


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{printable(path)} is too large for a table")
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"cannot read {printable(path)}: {why}") from error


def _plain(column: str) -> str:
    return column.lower().replace(" ", "_").replace("-", "_")


def _whole(label: str) -> str:
    """Write whole numbers alike: 1.0 is 1."""
    return label[:-2] if label.endswith(".0") and label[:-2].lstrip("-").isdigit() else label


def _keys(file: str, also: str) -> Iterator[str]:
    """Yield what a row may call a file: path, name, stem, and folders from the innermost."""
    path = PurePosixPath(file)
    stem = (form(path.name) or (path.name,))[0]
    yield from (file, path.name, str(path.with_name(stem)), stem, also)
    yield from reversed(path.parts[:-1])
