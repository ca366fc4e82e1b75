"""`lensdist report`: collect finished runs in tables, and on a page for a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE, UserError, begun

EXAMPLES = """example:
  lensdist report runs/a runs/b --out runs/comparison --note "64 px, noiseless"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="finished runs")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the folder for report.html, results.md and results.json",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="list runs that are missing or damaged in the table, in place of an error",
    )
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="leave out what needs the networks and the data: mistakes, flagged images, features",
    )
    parser.add_argument("--title", default="Results", help="the heading (default: %(default)s)")
    parser.add_argument(
        "--used",
        type=Path,
        metavar="FILE",
        help="the hours of nodes and GPUs by run, as the launcher of jobs writes them",
    )
    parser.add_argument(
        "--note", action="append", default=[], help="a sentence below the table; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    """Collect the runs' scores and figures into `results.md`, `results.json` and `report.html`."""
    from lensdist.evaluate.side_by_side import compare, shown
    from lensdist.metrics.page import write_page
    from lensdist.metrics.report import (
        check_results,
        collect,
        hard_rows,
        hours_of,
        table,
        tables,
        write_results,
    )

    for folder in args.runs:
        if not (args.partial or (folder / "config.yaml").is_file()):
            raise UserError(f"{folder} is not a run: it has no config.yaml")
    check_results(args.out)
    rows = collect(args.runs)
    hours = hours_of(args.used) if args.used else {}
    rows = [row | hours.get(run.absolute(), {}) for run, row in zip(args.runs, rows, strict=True)]
    hard = hard_rows(args.runs)
    bad = [row["problem"] for row in [*rows, *hard] if "problem" in row]
    if bad and not args.partial:
        raise UserError(
            f"{'; '.join(dict.fromkeys(bad))} (--partial lists it in the table instead)"
        )
    figures = [p for folder in args.runs for p in sorted((folder / "figures").glob("*.png"))]
    with begun(args.out):
        path = write_results(args.out, rows, args.title, args.note, figures, hard)
        pairs = compare(args.runs)
        runs = [
            shown(folder, row, images=not args.no_images)
            for folder, row in zip(args.runs, rows, strict=True)
        ]
        page = write_page(args.out / "report.html", args.title, runs, args.note, pairs, hard)
    print(tables(rows))
    if hard:
        print(f"\nHarder images:\n\n{table(hard)}")
    if pairs:
        print(f"\nCompared image by image:\n\n{table(pairs)}")
    print(f"\nwrote {path} and {page}")
    return EXIT_DONE
