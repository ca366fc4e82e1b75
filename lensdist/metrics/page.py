"""The results of runs as one page of HTML that needs nothing else: `report.html` (torch-free).

Curves can be zoomed where vl-convert is installed, which brings Vega-Lite's JavaScript; without it
the page has the PNGs alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from lensdist.metrics.cards import Gallery, Singles
from lensdist.metrics.drawing import COLOURS
from lensdist.metrics.report import cell, columns
from lensdist.tracking import metrics_log
from lensdist.utils.files import write_atomic

_MOST = 4_000_000  # bytes of figures: a page can be sent by mail
_POINTS = 500  # of a curve: more than a screen shows
_SHOWN = {
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "images_per_s": "images a second",
    "data_wait": "share of time spent waiting for data",
    "memory_gb": "memory of the device, GB",
    "mfu": "share of the device's peak",
}
_NOT_A_SCORE = {"step", "kind", "n", "best", "seconds", "loss"}


@dataclass(frozen=True)
class Run:
    """A run as the page shows it.

    Attributes:
        name: its folder's name.
        row: its row of the table.
        figures: PNGs.
        changed: its settings that differ from its preset's, by key: (preset's, run's).
        facts: versions, machine and data, by name.
        singles: its single images.
    """

    name: str
    row: Mapping[str, Any]
    rows: Sequence[metrics_log.Row]
    figures: Sequence[Path] = ()
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    singles: Singles = field(default_factory=Singles)


def write_page(
    path: Path,
    title: str,
    runs: Sequence[Run],
    notes: Sequence[str] = (),
    compared: Sequence[Mapping[str, Any]] = (),
    hard: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page; of figures and pictures beyond 4 MB in all, only names are shown.

    Args:
        path: of the page.
        title: its heading.
        runs: at least one.
        notes: what a reader needs to judge the numbers.
        compared: rows of paired comparisons.
        hard: rows of scores on harder images.

    Raises:
        OSError: as `files.write_atomic`.
    """
    tasks = dict.fromkeys(run.row.get("task") for run in runs)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    library = _library()
    pictures, galleries = _embedded(runs)
    plots = [(f"plot-{i}", run.singles.plot) for i, run in enumerate(runs, 1) if run.singles.plot]
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    text = template.render(
        title=title,
        notes=notes,
        tables=[_table([run.row for run in runs if run.row.get("task") == one]) for one in tasks],
        compared=_table(compared) if compared else None,
        hard=_table(hard) if hard else None,
        runs=runs,
        drawn="learning_curves.png" if library else "",  # the charts show the same
        pictures=pictures,
        galleries=galleries,
        charts=json.dumps([*(("charts", one) for one in charts(runs)), *plots]).replace(
            "<", "\\u003c"
        ),
        library=library,
        text=lambda value: json.dumps(value, default=str) if not isinstance(value, str) else value,
    )
    return write_atomic(path, text)


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a Vega-Lite chart for each quantity of `metrics.jsonl`, with a line for each run."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for kind in ("train", "val"):
            rows = [row for row in run.rows if row.get("kind") == kind]
            every = -(-len(rows) // _POINTS)
            for row in rows[:: max(every, 1)]:
                for name, value in row.items():
                    score = kind == "val" and name not in _NOT_A_SCORE
                    if not (name in _SHOWN or score) or not isinstance(value, int | float):
                        continue
                    what = _SHOWN.get(name, name.replace("_", " "))
                    point = {"step": row["step"], "value": value, "run": run.name, "on": kind}
                    lines.setdefault(what, []).append(point)
    names = [run.name for run in runs]
    return [_chart(what, points, names) for what, points in lines.items()]


def _chart(what: str, points: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    colour = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": names, "range": [COLOURS[i % 6] for i in range(len(names))]},
        "legend": {"orient": "top", "title": None} if len(names) > 1 else None,
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": what,
        "width": "container",
        "height": 200,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": points},
        "params": [{"name": "zoom", "select": "interval", "bind": "scales"}],
        "mark": {"type": "line", "point": len(points) < 60 * len(names), "tooltip": True},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step"},
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": None,
                "axis": {"format": "~e"} if what == "learning rate" else {},
                "scale": {"zero": False},
            },
            "color": colour,
        },
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = columns(rows)
    return {
        "heads": [name.replace("_", " ") for name in names],
        "rows": [[cell(row, name) for name in names] for row in rows],
    }


def _embedded(runs: Sequence[Run]) -> tuple[dict[Path, str], list[list[Gallery]]]:
    """Return figures as data URLs, and galleries, as many as the page may hold."""
    left, found = _MOST, {}
    for path in (path for run in runs for path in run.figures):
        data = base64.b64encode(path.read_bytes()).decode()
        if len(data) <= left:
            left -= len(data)
            found[path] = f"data:image/png;base64,{data}"
    kept: list[list[Gallery]] = []
    for run in runs:
        kept.append([])
        for gallery in run.singles.galleries:
            size = sum(card.size for card in gallery.cards)
            if size <= left:
                left -= size
                kept[-1].append(gallery)
    return found, kept


def _library() -> str:
    """Return the JavaScript that draws the charts; empty where it is not installed."""
    try:
        import vl_convert
    except ImportError:
        return ""
    code: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub is wrong
    return code.replace("</script", "<\\/script")
