"""Report the files that cannot be used, each by name and with a reason (torch-free)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensdist.data.reading.folders import Passed
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable, to_json, write_atomic
from lensdist.utils.sealed import read_json

_MAX_BYTES = 1 << 30  # of an earlier report


@dataclass
class Report:
    """The content of `report.json`: everything that was found and did not become a sample."""

    files: int = 0
    """Number of image files found: those in the set and the quarantined ones."""

    quarantined: dict[str, str] = field(default_factory=dict)
    """File name relative to the source -> why it is not in the set."""

    skipped: Passed = field(default_factory=Passed)
    """Files that were never taken for images: `__MACOSX`, hidden names, other file types."""

    notes: list[str] = field(default_factory=list)
    """Facts about the whole set that the user should know."""

    def refuse(self, name: str, reason: str) -> None:
        """Quarantine a file; the first reason stays."""
        self.quarantined.setdefault(name, reason)

    def top_reasons(self, n: int = 3) -> str:
        """Return the commonest reasons with an example each, for an error message."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.quarantined.items():
            groups.setdefault(reason.split(": ")[0], []).append(name)  # the rest tells files apart
        said = []
        for kind, names in sorted(groups.items(), key=lambda group: -len(group[1]))[:n]:
            whole, first = self.quarantined[names[0]], printable(names[0])
            alike = all(self.quarantined[name] == whole for name in names)
            example = f"{whole} (e.g. {first})" if alike else f"{kind} (e.g. {first}: {whole})"
            said.append(f"{len(names)} x {printable(example)}")
        more = f"; {len(groups) - n} other reasons" if len(groups) > n else ""
        return "; ".join(said) + more

    def check(self, max_bad: float) -> None:
        """Check that not too many files are bad.

        Args:
            max_bad: the tolerated fraction of the files in quarantine.

        Raises:
            UserError: more than that is bad, or nothing is left.
        """
        bad = len(self.quarantined)
        if bad == self.files:
            raise UserError(f"none of the {bad} files can be used: {self.top_reasons()}")
        if bad > max_bad * self.files:
            raise UserError(
                f"{bad} of {self.files} files are bad, more than --max-bad {max_bad:g} allows: "
                f"{self.top_reasons()}. Mend or remove them, or raise --max-bad."
            )

    def lines(self, file: Path | None = None) -> list[str]:
        """Return lines for a person: every file is packed, quarantined or passed over.

        Args:
            file: where the whole report is; None: nowhere, so every reason is named.
        """
        left = len(self.quarantined)
        lines = [f"found {self.files:,} files: {self.files - left:,} used, {left:,} quarantined"]
        lines += self.skipped.lines()
        if left:
            lines.append(f"quarantined {left}: {self.top_reasons(3 if file else left)}")
            lines += [f"  all of them: {file}"] if file else []
        return lines + [f"note: {note}" for note in self.notes]

    def to_json(self) -> str:
        """Return the text of `report.json`."""
        facts: dict[str, Any] = {
            "files": self.files,
            "quarantined": [{"name": n, "reason": r} for n, r in self.quarantined.items()],
            "skipped": dict(sorted(self.skipped.items())),
            "skipped_examples": dict(sorted(self.skipped.examples.items())),
            "notes": self.notes,
        }
        return to_json(facts) + "\n"


def counts_table(counts: Mapping[Any, Mapping[str, int]]) -> list[str]:
    """Return the lines of a table of images by class and split."""
    width = max(map(len, counts["train"]), default=0)
    lines = [" " * (width + 2) + "".join(f"{split:>9}" for split in counts)]
    for name in counts["train"]:
        numbers = "".join(f"{of[name]:9d}" for of in counts.values())
        lines.append(f"  {name:<{width}}{numbers}")
    return lines


class ReportBeside:
    """`DEST.report.json`: the report of a pack that made no set."""

    def __init__(self, dest: Path) -> None:
        dest = Path(os.path.abspath(dest))
        self.path = dest.with_name(f"{dest.name}.report.json")

    def write(self, report: Report) -> str:
        """Write the report, and return the end of a sentence: its place, or why there is none."""
        if os.path.lexists(self.path) and not self._is_ours():
            return f" (no report: {printable(self.path)} is another file)"
        try:
            write_atomic(self.path, report.to_json())
        except OSError as error:
            return f" (no report: cannot write {printable(self.path)}: {error.strerror})"
        return f" All files: {printable(self.path)}"

    def remove(self) -> None:
        """Remove the report of an earlier failure, if there is one."""
        if self._is_ours():
            with suppress(OSError):
                self.path.unlink()

    def _is_ours(self) -> bool:
        try:
            return {"files", "quarantined", "skipped"} <= read_json(self.path, _MAX_BYTES).keys()
        except (OSError, ValueError):
            return False
