"""Files that cannot be used: named one by one with a reason, never silently dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lensdist.errors import UserError


class BadFile(Exception):
    """One file cannot be used; the message is one sentence that says why."""


@dataclass
class Report:
    """What `report.json` holds: everything that was found and did not become a sample."""

    quarantined: dict[str, str] = field(default_factory=dict)
    """File name relative to the source -> why it is not in the set."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Why a file was never taken for an image (`__MACOSX`, hidden, other extension) -> how many."""

    notes: list[str] = field(default_factory=list)
    """Facts about the whole set that a person should know."""

    def refuse(self, name: str, reason: str) -> None:
        self.quarantined.setdefault(name, reason)

    def top_reasons(self, n: int = 3) -> str:
        """The commonest reasons with an example each, for an error message."""
        # What follows a colon is about one file only.
        reasons = {name: reason.split(": ")[0] for name, reason in self.quarantined.items()}
        by_reason = Counter(reasons.values())
        example = {reason: name for name, reason in reversed(reasons.items())}
        return "; ".join(
            f"{count} x {reason} (e.g. {_printable(example[reason])})"
            for reason, count in by_reason.most_common(n)
        )

    def check(self, files: int, max_bad: float) -> None:
        """Stop when too much is bad: a set with a hole in it is worse than no set.

        Args:
            files: image files found.
            max_bad: the tolerated fraction of them in quarantine.

        Raises:
            UserError: more than that is bad, or nothing is left.
        """
        bad = len(self.quarantined)
        if bad == files:
            raise UserError(f"none of the {files} files can be used: {self.top_reasons()}")
        if bad > max_bad * files:
            raise UserError(
                f"{bad} of {files} files are bad, more than --max-bad {max_bad:g} allows: "
                f"{self.top_reasons()}. Mend or remove them, or raise --max-bad."
            )

    def as_json(self) -> dict[str, Any]:
        return {
            "quarantined": [{"name": n, "reason": r} for n, r in self.quarantined.items()],
            "skipped": dict(sorted(self.skipped.items())),
            "notes": self.notes,
        }


def _printable(name: str) -> str:
    """A file's name may hold anything, also what a terminal obeys or cannot encode."""
    return name if name.isprintable() else ascii(name)
