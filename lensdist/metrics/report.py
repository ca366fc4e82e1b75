"""Write tables of results: `results.md` for people, `results.json` for programs (torch-free)."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lensdist.phases import completed
from lensdist.tracking import metrics_log
from lensdist.utils.errors import UserError
from lensdist.utils.files import plain, printable, to_json, write_atomic
from lensdist.utils.sealed import read_json, unsealed
from lensdist.utils.staging import check_ours
from lensdist.utils.yaml_reader import read_plain

Row = Mapping[str, Any]
_NONE = "–"
# Characters with a meaning in HTML or Markdown, except those of an interval, `[0.90, 0.92]`.
_MARKUP = re.compile(r"[&<>|\\`*]|\](?=[(\[:])|(?<!\w)_|_(?!\w)")

_ENLARGED = ("psnr", "psnr_gain", "ssim", "gap", "coverage_68", "coverage_95")

HARD = (
    "On simulated images with less mass in substructure, and with a PSF 30 % wider or narrower; "
    "the lenses are the same throughout (`lensdist evaluate RUN --data PACKED --hard`)."
)
"""Explains the table of `hard_rows` to its reader."""


def check_results(folder: Path) -> None:
    """Refuse a folder with a user's own results, report or figures of those names.

    Raises:
        UserError: see `check_ours`.
    """
    beside = (
        folder / "results.md",
        folder / "report.html",
        *folder.glob("figures/few-labels-*.p[nd][gf]"),
    )
    check_ours(folder / "results.json", "title", "rows", beside=beside)


def write_results(
    folder: Path,
    rows: Sequence[Row],
    title: str,
    notes: Sequence[str] = (),
    figures: Sequence[Path] = (),
    hard: Sequence[Row] = (),
) -> Path:
    """Write `results.json` with everything, and `results.md` with what fits a table.

    Args:
        folder: created if it does not exist.
        rows: one model or setting each; the columns are their keys, in order of appearance. An
            interval `x_ci` [low, high] is shown with its `x`, whose digits follow its width.
        title: the heading.
        notes: what a reader needs to judge the numbers, one bullet each.
        figures: PNGs, linked relative to `folder`.
        hard: rows of a second table (see `hard_rows`); if empty, there is no table.

    Returns:
        The path of `results.md`.

    Raises:
        OSError: as `files.write_atomic`; older results stay complete.
    """
    links = [_relative(figure, folder) for figure in figures]
    everything = {"title": title, "notes": list(notes), "rows": list(rows), "figures": links}
    everything |= {"hard": list(hard)} if hard else {}
    parts = [f"# {title}", tables(rows)]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    if hard:
        parts += ["## Harder images", table(hard), HARD]
    parts += [f"![{escape(Path(link).stem.replace('_', ' '))}]({quote(link)})" for link in links]
    write_atomic(folder / "results.json", to_json(everything) + "\n")
    return write_atomic(folder / "results.md", "\n\n".join(parts) + "\n")


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, aligned so that it is readable as plain text too.

    See `columns` for what is left out.
    """
    names = columns(rows)
    if not names:
        return "No results."
    cells = [[escape(cell(row, name)) for name in names] for row in rows]
    heads = [escape(name.replace("_", " ")) for name in names]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [not any(isinstance(row.get(name), str) for row in rows) for name in names]

    def line(texts: Iterable[str]) -> str:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rules = (
        "-" * (width + 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(heads), f"|{'|'.join(rules)}|", *map(line, cells)])


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the keys that a table shows: not nested, and not empty in all rows."""
    return [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if not _is_interval_of_another(name, rows)
        and any(row.get(name) is not None for row in rows)
        and not any(isinstance(row.get(name), (Mapping, list, tuple)) for row in rows)
    ]


def tables(rows: Sequence[Row]) -> str:
    """Return one table per task, in order of appearance: tasks share no scores."""
    tasks = dict.fromkeys(row.get("task") for row in rows) or [None]
    return "\n\n".join(table([row for row in rows if row.get("task") == one]) for one in tasks)


def number(value: float, interval: Sequence[float | None] | None = None) -> str:
    """Format a number with the digits that are significant.

    With an interval: to two digits of half its width, `0.9132 [0.9075, 0.9189]`. Alone: to four
    digits, or more if rounding would turn another number into 1.
    """
    if not math.isfinite(value):
        return _NONE
    ends = [end for end in interval or () if isinstance(end, int | float) and math.isfinite(end)]
    if len(ends) == 2:
        low, high = ends
        half = (high - low) / 2
        most = 6 if high > 1e-2 else 9  # squared errors of images are small
        digits = min(max(1 - math.floor(math.log10(half)), 0), most) if half > 0 else 4
        return f"{value:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    for digits in (4, 6, 8):
        text = f"{value:#.{digits}g}"
        if value == 1 or float(text) != 1:
            break
    return text.rstrip(".")


def lines(scores: Row) -> list[str]:
    """Return scores as text, one line each: `accuracy  0.9132 [0.9075, 0.9189]`.

    AUCs of classes show their names. Of other nested values only `tta` is shown, which holds
    scores.
    """
    pairs = _named(scores)
    if isinstance(tta := scores.get("tta"), Mapping):
        pairs += [(f"tta {name}", text) for name, text in _named(tta) if name != "n"]
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:>{width}}  {text}" for name, text in pairs]


def _named(scores: Row) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in scores.items():
        if name == "auc_per_class":
            every = zip(scores["labels"], value, scores.get(f"{name}_ci") or value, strict=True)
            for label, auc, ci in every:
                interval = ci if isinstance(ci, (list, tuple)) else None
                pairs.append(
                    (f"auc {printable(label)}", cell({"auc": auc, "auc_ci": interval}, "auc"))
                )
        elif isinstance(value, (int, float)) or name == "views":
            pairs.append((name.replace("_", " "), cell(scores, name)))
    return pairs


def hard_table(variants: Mapping[str, Row]) -> str:
    """Return a table of one run's scores on harder images, one line per variant."""
    rows = []
    shown = ("accuracy", "accuracy_change", "auc_macro", *_ENLARGED)
    for name, scores in variants.items():
        row = {"variant": name.replace("_", " "), "n": scores["n"]}
        for key in shown:
            row |= {key: scores.get(key), f"{key}_ci": scores.get(f"{key}_ci")}
        classes = (scores.get(k, ()) for k in ("labels", "auc_per_class", "auc_per_class_ci"))
        each = zip(*classes, strict=True)
        for label, auc, ci in each:
            row |= {f"auc_{label}": auc, f"auc_{label}_ci": ci}
        rows.append(row)
    return table(rows)


def collect(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return a row for each run, from `config.yaml`, `eval/test.json` and `COMPLETE.json`.

    A row has only what its run has. A file that cannot be read, or was altered, is named under
    `problem`, and the row of a finished run then holds nothing else of it. Speed is the median of
    the images per second in `metrics.jsonl`.
    """
    return [_collect(run) for run in runs]


def hours_of(file: Path) -> dict[Path, dict[str, float]]:
    """Return `gpu_hours`, or on CPUs `node_hours`, of each run in a file of `report --used`.

    All attempts of its training and evaluation count, those that failed too.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        used = {
            Path(run): (float(one["gpus"]), float(one["nodes"]))
            for run, one in read_json(file).items()
        }
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UserError(f"--used {file} is not a file of hours: {e}") from e
    return {
        run: {"gpu_hours": gpus} if gpus else {"node_hours": nodes}
        for run, (gpus, nodes) in used.items()
    }


def hard_rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return two rows, with a column per variant, for each run that has an `eval/hard.json`.

    They hold accuracy and macro AUC or, for super-resolution, the gain over bicubic in dB and the
    gap to the oracle.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        problems: list[str] = []
        try:
            done = completed(run, "export/") or {}
        except UserError:
            continue  # `collect` names it
        variants = _scores(run, "hard", done, problems).get("variants")
        if problems:
            rows.append({"run": run.name, "problem": "; ".join(problems)})
        if not isinstance(variants, dict):
            continue
        variants = {name: scores for name, scores in variants.items() if isinstance(scores, dict)}
        enlarged = any("psnr_gain" in scores for scores in variants.values())
        for key in ("psnr_gain", "gap") if enlarged else ("accuracy", "auc_macro"):
            row: dict[str, Any] = {"run": run.name, "score": key.replace("_", " ")}
            for name, scores in variants.items():
                row |= {name: scores.get(key), f"{name}_ci": scores.get(f"{key}_ci")}
            rows.append(row)
    return rows


def _collect(run: Path) -> dict[str, Any]:
    problems: list[str] = []
    try:
        done = completed(run) or {}
    except UserError as error:
        return {"run": run.name, "complete": False, "problem": str(error)}
    config = _load(run / "config.yaml", problems)
    test = _scores(run, "test", done, problems)
    export = _load(run / "export" / "config.json", problems)
    data = config.get("data")
    row: dict[str, Any] = {
        "run": run.name,
        "task": config.get("task"),
        "preset": config.get("preset"),
        "init": export.get("init") or config.get("init"),
        "labels_per_class": data.get("labels_per_class") if isinstance(data, dict) else None,
        "chosen_on": (export.get("images") or {}).get("choose"),
        "seed": config.get("seed"),
    }
    row = {name: value for name, value in row.items() if not isinstance(value, (dict, list))}
    scores = test.get("metrics", test)
    for name, value in scores.items() if isinstance(scores, dict) else ():
        if name.endswith("_ci") or not isinstance(value, (dict, list)):
            row.setdefault(name, value)
    row["steps"] = done.get("steps")
    row["images_per_s"] = _speed(run / "metrics.jsonl")
    row["seconds"] = done.get("seconds")
    row["complete"] = bool(done)
    row["problem"] = "; ".join(problems) or None
    return {name: value for name, value in row.items() if value is not None}


def _scores(run: Path, name: str, done: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return `eval/<name>.json`, if it is of the weights that the run has now."""
    found = _load(run / "eval" / f"{name}.json", problems)
    weights, own = found.get("weights"), done.get("files", {}).get("export/model.safetensors")
    if own and isinstance(weights, dict) and weights.get("model.safetensors") != own:
        problems.append(f"{run}/eval/{name}.json: the scores are not of the run's weights")
        return {}
    return found


def _load(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a YAML or JSON file; return an empty mapping if the file does not exist."""
    if not path.exists():
        return {}
    try:
        return read_plain(path) if path.suffix == ".yaml" else unsealed(read_json(path))
    except UserError as error:  # the message names the file
        problems.append(str(error))
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}")
    return {}


def _speed(path: Path) -> float | None:
    speeds = [
        row.get("images_per_s") for row in metrics_log.read(path) if row.get("kind") == "train"
    ]
    known = [speed for speed in speeds if isinstance(speed, int | float) and speed]
    return statistics.median(known) if known else None


def _is_interval_of_another(name: str, rows: Sequence[Row]) -> bool:
    return name.endswith("_ci") and any(name.removesuffix("_ci") in row for row in rows)


def cell(row: Row, name: str) -> str:
    """Return a value of a row as text, with its interval if the row has one."""
    value = plain(row.get(name))
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        interval = row.get(f"{name}_ci")
        return number(value, plain(interval) if isinstance(interval, list | tuple) else None)
    return f"{value:,}" if isinstance(value, int) else str(value)


def escape(text: str) -> str:
    """Escape a cell's text: on one line, without Markdown or HTML."""
    return _MARKUP.sub(_literal, printable(" ".join(text.split())))


def _literal(found: re.Match[str]) -> str:
    return {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.get(found[0], f"\\{found[0]}")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
