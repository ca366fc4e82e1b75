"""Colours, axes and output, as PNG and PDF, shared by all figures.

Figures are drawn without pyplot, so they need no display, keep no global state and can be drawn
from any thread. Colours are Okabe & Ito's, which people with any colour vision can distinguish;
lines also differ in their dashes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lensdist.utils.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#767676"


def panels(n: int, width: float, height: float, title: str) -> tuple[Figure, list[Any]]:
    """Return a figure of n panels side by side, each of that size in inches, and their axes."""
    fig = Figure(figsize=(width * n, height), layout="constrained")
    fig.suptitle(title, fontsize=10)
    axes = list(fig.subplots(1, n, squeeze=False)[0])
    tidy(*axes)
    return fig, axes


def tidy(*axes: Any) -> None:
    """Remove the upper and right frame lines."""
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)


def style(i: int) -> dict[str, Any]:
    """Return the line style of the i-th line."""
    return {"color": COLOURS[i % 7], "ls": DASHES[i % 7], "lw": 1.5}


def files(path: Path) -> tuple[Path, Path]:
    """Return the paths that a figure is written to: the PNG's, and the PDF's beside it."""
    return path, path.with_suffix(".pdf")


def save(fig: Figure, path: Path) -> Path:
    """Write a figure as PNG, and beside it as PDF for papers; it always gives the same bytes.

    Returns:
        The path of the PNG.
    """
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        if (
            axis.get_scale() == "log"
        ):  # whose labels are formulas, which the next lines print as text
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    for text in fig.findobj(Text):
        text.set_parse_math(False)  # a `$` in the name of a label or a folder is a dollar sign
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    for file in files(path):
        form, data = file.suffix[1:], io.BytesIO()
        with rc_context({"pdf.fonttype": 42}):  # journals refuse matplotlib's default, Type 3
            FigureCanvasAgg(fig).print_figure(data, format=form, dpi=150, metadata=undated[form])
        write_atomic(file, data.getvalue())
    return path
