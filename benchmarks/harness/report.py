"""Report a benchmark: print tables and sentences as they come, then write JSON and Markdown."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import hardware
from lensdist.metrics.report import table
from lensdist.utils.files import to_json, write_atomic

Facts = dict[str, Any]


class Report:
    """The results of a benchmark, for people and for programs.

    Args:
        title: the page's heading.
        facts: for the JSON file.
    """

    def __init__(self, title: str, facts: Mapping[str, Any]) -> None:
        self.facts: Facts = dict(facts)
        self._parts: list[str] = []
        self.say(f"# {title}")

    def say(self, text: str) -> None:
        """Print a paragraph and keep it for the page, unless it is empty."""
        if text:
            self._parts.append(text)
            print(f"{text}\n", flush=True)

    def table(self, rows: Sequence[Mapping[str, Any]], name: str = "rows") -> None:
        """Add a table, and its rows to the facts under a name."""
        self.facts[name] = list(rows)
        self.say(table([shown(row) for row in rows]))

    def gated(self, differences: Mapping[str, float]) -> None:
        """Report the gate's result: the largest relative difference of each way's losses."""
        self.facts["loss_differences"] = dict(differences)
        found = ", ".join(f"{name} {apart:.0e}" for name, apart in differences.items())
        self.say(f"Same batches, same losses; largest relative difference: {found}.")

    def reasons(self, left_out: Mapping[str, str]) -> None:
        """Report what was left out, and why."""
        self.say("\n".join(f"- {name} was left out: {why}." for name, why in left_out.items()))

    def write(self, path: Path) -> Path:
        """Write the facts to a JSON file and the page next to it; return the page's path."""
        write_atomic(path, to_json(self.facts) + "\n")
        return write_atomic(path.with_suffix(".md"), "\n\n".join(self._parts) + "\n")


def shown(row: Mapping[str, Any]) -> Facts:
    """Return a row for a table, in which the range `x_spread` is shown with its `x`."""
    return {name.replace("_spread", "_ci"): value for name, value in row.items()}


def compared(
    row: Mapping[str, Any], ratio: str = "first_over", name: str = "lensdist over"
) -> Facts:
    """Return the columns that a table shows of a row of `turns.compare`.

    Args:
        row: from `turns.compare`.
        ratio: the key of the main ratio.
        name: the ratio's name in the table.
    """
    keys = {"way": "way", "images_per_s": "images_per_s", ratio: name}
    keys |= {f"cpu_{ratio}": f"{name}, on a core", "peak_gb": "peak_gb"}
    found: Facts = {}
    for key, title in keys.items():
        if key in row:
            found[title] = row[key]
        if f"{key}_spread" in row:
            found[f"{title}_ci"] = row[f"{key}_spread"]
    difference = row.get("loss_difference")
    return found | {"loss difference": None if difference is None else f"{difference:.0e}"}


def options(doc: str | None, *, rounds: int, sizes: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the command line that all benchmarks share.

    Args:
        doc: of the benchmark's module; its first line is the description.
        rounds: the default.
        sizes: to choose from, if there are several: the last is for a GPU.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write, with a Markdown page")
    if sizes:
        default = sizes[-1] if torch.cuda.is_available() else sizes[0]
        parser.add_argument("--size", choices=sizes, default=default, help=f"(here: {default})")
    return parser


@contextmanager
def reporting(
    args: argparse.Namespace, title: str, device: torch.device | None = None, **facts: Any
) -> Iterator[tuple[Report, Path]]:
    """Yield a report and a temporary folder; at the end, name the machine and write the report.

    Args:
        args: of a parser from `options`.
        title: of the report.
        device: of the measurement; None: a GPU if there is one.
        facts: also for the JSON file.
    """
    torch.set_num_threads(args.threads)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(title, {**hardware.machine(device), "rounds": args.rounds, **facts})
    with tempfile.TemporaryDirectory(prefix="lensdist-") as scratch:
        yield report, Path(scratch)
    report.facts["load"] = loads = (report.facts["load"][0], hardware.load())
    shown_loads = " .. ".join(f"{load:.1f}" for load in loads if load is not None)
    report.say(
        f"Medians of {args.rounds} rounds and their range; ratios are taken within a round. "
        f"{report.facts['device']}, torch {torch.__version__}, load {shown_loads}."
    )
    if args.out:
        report.write(args.out)
