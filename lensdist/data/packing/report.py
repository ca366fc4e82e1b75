"""Files that cannot be used: named one by one with a reason, never silently dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from lensdist.errors import UserError
from lensdist.files import printable

_EXAMPLES = 3  # names that are kept of each kind
_KINDS = 20  # kinds of other files that are told apart: a folder may hold as many as files


class BadFile(Exception):
    """One file cannot be used; the message is one sentence that says why."""


class Passed(Counter[str]):
    """Why files were never taken for images -> how many; and the first names of each."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, list[str]] = {}

    def add(self, why: str, name: str, n: int = 1) -> None:
        """Count `n` files, and keep `name`, relative to the folder that was searched."""
        self[why] += n
        if len(names := self.examples.setdefault(why, [])) < _EXAMPLES:
            names.append(name)

    def other(self, name: str) -> None:
        """Count a file that is not an image, by how its name ends."""
        ending = PurePosixPath(name).suffix.lower()
        why = f"other file type ({ending if ending[1:].isalnum() else 'no suffix'})"
        if why not in self and (len(self) >= _KINDS or len(ending) > 10):
            why = "other file type"
        self.add(why, name)

    def lines(self) -> list[str]:
        """A line for each kind: `passed over 2: hidden, e.g. a/.x, b/.y`."""
        return [
            f"passed over {n:,}: {why}, e.g. {printable(', '.join(self.examples[why]))}"
            for why, n in sorted(self.items())
        ]


@dataclass
class Report:
    """What `report.json` holds: everything that was found and did not become a sample."""

    files: int = 0
    """Image files that were found: those in the set, and the quarantined ones."""

    quarantined: dict[str, str] = field(default_factory=dict)
    """File name relative to the source -> why it is not in the set."""

    skipped: Passed = field(default_factory=Passed)
    """What was never taken for an image: `__MACOSX`, hidden names, other kinds of files."""

    notes: list[str] = field(default_factory=list)
    """Facts about the whole set that a person should know."""

    def refuse(self, name: str, reason: str) -> None:
        self.quarantined.setdefault(name, reason)

    def top_reasons(self, n: int = 3) -> str:
        """The commonest reasons with an example each, for an error message."""
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
        """Stop when too much is bad: a set with a hole in it is worse than no set.

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

    def as_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "quarantined": [{"name": n, "reason": r} for n, r in self.quarantined.items()],
            "skipped": dict(sorted(self.skipped.items())),
            "skipped_examples": dict(sorted(self.skipped.examples.items())),
            "notes": self.notes,
        }
