"""Draw figures of data, training and results, as PNG.

Each function writes a file and returns its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lensdist.metrics.bootstrap import wilson
from lensdist.metrics.drawing import COLOURS, GREY, MARKS, panels, save, style, tidy
from lensdist.metrics.report import number

Array = npt.NDArray[Any]
_NAMED = 20  # the largest number of classes whose names are drawn


def roc(
    path: Path,
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    aucs: Sequence[float],
    n: int,
    title: str = "ROC, one class against the rest",
) -> Path:
    """Draw ROC curves from `metrics.roc_curves`; enlarge good ones in an inset."""
    fig, (ax,) = panels(1, 4.6, 4.4, f"{title} (n = {n:,})")
    drawn = [auc for auc, curve in zip(aucs, curves.values(), strict=True) if curve["fpr"]]
    insets = [ax.inset_axes((0.36, 0.36, 0.58, 0.52))] if drawn and min(drawn) > 0.98 else []
    for i, ((name, curve), auc) in enumerate(zip(curves.items(), aucs, strict=True)):
        if not curve["fpr"]:
            continue
        for each in (ax, *insets):
            each.plot(curve["fpr"], curve["tpr"], label=f"{name}  AUC {_auc(auc)}", **style(i))
    ax.plot([0, 1], [0, 1], color="#cccccc", lw=0.8, zorder=0)
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    for inset in insets:
        inset.set(xlim=(-0.001, 0.1), ylim=(0.9, 1.001))
        inset.tick_params(labelsize=7)
        for connector in ax.indicate_inset_zoom(inset, edgecolor=GREY).connectors:
            connector.set_visible(False)  # they would cross the tick labels
        inset.set_title("enlarged", fontsize=7, color=GREY, pad=3)
    if 0 < len(drawn) <= _NAMED:
        ax.legend(loc="lower right", frameon=False, fontsize=8)
    return save(fig, path)


def confusion(
    path: Path, matrix: Sequence[Sequence[int]], names: Sequence[str], title: str = "Confusion"
) -> Path:
    """Draw counts and shares of each true class; `matrix` has rows of truth."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= _NAMED  # a cell is an inch wide: 1,000 classes would be a picture of 60 GB
    size = 1.6 + 0.9 * len(names) if few else 12.0
    fig, (ax,) = panels(1, size + 0.6, size, f"{title} (n = {counts.sum():,})")
    shown = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(shares) if few else ():
        colour = "white" if share > 0.6 else "black"
        text = f"{counts[i, j]:,}\n{share:.1%}"
        ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    if few:
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="predicted class", ylabel="true class")
    fig.colorbar(shown, ax=ax, label="share of the true class", shrink=0.85)
    return save(fig, path)


def reliability(
    path: Path, bins: Mapping[str, Sequence[float]], ece: float, title: str = "Reliability"
) -> Path:
    """Draw how often the top label is right, by confidence; `bins` from `metrics.reliability`."""
    count = np.nan_to_num(np.asarray(bins["count"], float))
    fig = Figure(figsize=(4.4, 4.8), layout="constrained")
    fig.suptitle(f"{title} (n = {count.sum():,.0f}, ECE = {ece:.4f})", fontsize=10)
    ax, low = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, len(count) + 1)
    used = count > 0
    mean, right = (np.asarray(bins[key], float)[used] for key in ("confidence", "accuracy"))
    pairs = zip((right * count[used]).round(), count[used], strict=True)
    error = np.abs(np.array([wilson(int(hits), int(all_)) for hits, all_ in pairs]).T - right)
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.8, label="perfectly calibrated")
    ax.errorbar(
        mean,
        right,
        yerr=error,
        fmt="o",
        ms=4,
        capsize=2,
        color=COLOURS[0],
        label="bins, 95 % interval",
    )
    ax.set(ylabel="accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    ax.legend(loc="upper left", frameon=False, fontsize=8)
    low.bar(edges[:-1], count, width=np.diff(edges), align="edge", color=COLOURS[5], ec="white")
    low.set(xlabel="confidence (probability of the top label)", ylabel="samples", yscale="log")
    low.set_ylim(bottom=0.7)
    tidy(ax, low)
    return save(fig, path)


def learning_curves(
    path: Path, rows: Sequence[Mapping[str, Any]], title: str = "Learning curves"
) -> Path:
    """Draw loss, validation scores and learning rate by step, from rows of metrics.jsonl."""
    kinds: dict[str, list[tuple[str, Array, bool]]] = {}
    for panel, kind, names in (
        ("loss", "train", ("loss",)),
        ("loss", "val", ("loss", "nll", "mse", "mse_masked")),
        ("validation score", "val", ("accuracy", "auc_macro")),
        ("PSNR [dB]", "val", ("psnr",)),
        ("learning rate", "train", ("lr",)),
    ):
        for name in names:
            series = _series(rows, kind, name)
            if len(series):
                kinds.setdefault(panel, []).append((f"{kind} {name}", series, kind == "val"))
    fig, axes = panels(max(len(kinds), 1), 3.7, 3.3, title if kinds else "no rows yet")
    resumed = [row["step"] for row in rows if str(row.get("what", "")).startswith("resumed")]
    for ax, (panel, lines) in zip(axes, kinds.items(), strict=False):
        for i, (name, series, marked) in enumerate(lines):
            mark = {"marker": MARKS[i], "ms": 3} if marked else {}
            ax.plot(*series.T, label=name, **style(i), **mark)
        for step in resumed:
            ax.axvline(step, color=GREY, lw=0.6, ls=":")
        values = np.concatenate([series[:, 1] for _, series, _ in lines])
        if panel == "loss" and values.min() > 0 and values.max() > 20 * values.min():
            ax.set_yscale("log")
        ax.set(xlabel="step" + (" (dotted: resumed)" if resumed else ""), ylabel=panel)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if panel == "learning rate":
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        ax.legend(frameon=False, fontsize=8)
    return save(fig, path)


def few_label(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    n: int,
    title: str = "Accuracy with few labels",
    chance: float | None = None,
) -> Path:
    """Draw accuracy against labels per class.

    Args:
        path: of the PNG.
        rows: `method`, `labels_per_class`, `accuracy` and, for a band, `accuracy_ci` [low, high].
        n: test images.
        title: of the figure.
        chance: accuracy of guessing, drawn as a line.
    """
    fig, (ax,) = panels(1, 5.6, 4.0, f"{title} (test n = {n:,}; bands: 95 %)")
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = sorted((r for r in rows if r["method"] == method), key=_labels)
        x, y = [_labels(row) for row in mine], [row["accuracy"] for row in mine]
        ax.plot(x, y, label=method, marker=MARKS[i % 7], ms=4, **style(i))
        bands = np.array([r.get("accuracy_ci") or [r["accuracy"]] * 2 for r in mine], float)
        ax.fill_between(x, *bands.T, color=COLOURS[i % 7], alpha=0.18, lw=0)
    if chance is not None:
        ax.axhline(chance, color=GREY, lw=0.8, ls=":", label="chance")
    ticks = sorted({_labels(row) for row in rows})
    ax.set(xscale="log", xlabel="labels per class", ylabel="test accuracy")
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
    return save(fig, path)


def variants(
    path: Path, scores: Mapping[str, Mapping[str, Any]], chance: float, title: str = "Harder images"
) -> Path:
    """Draw accuracy and macro AUC with 95 % intervals, one line per variant of a test set.

    Args:
        path: of the PNG.
        scores: by the variant's title, the plain one first: `n`, `accuracy`, `auc_macro`, `…_ci`.
        chance: accuracy of guessing.
        title: of the figure.
    """
    n = next(iter(scores.values()))["n"]
    fig, axes = panels(2, 4.2, 1.2 + 0.3 * len(scores), f"{title} (n = {n:,} each)")
    for ax, key, guess in zip(axes, ("accuracy", "auc_macro"), (chance, 0.5), strict=True):
        for row, each in enumerate(scores.values()):
            value = np.array(each[key], float)
            low, high = np.array(each[f"{key}_ci"], float)
            ax.plot([low, high], [row, row], color=COLOURS[0], lw=2)
            ax.plot(value, row, "o", ms=5, color=COLOURS[0])
            text = number(float(value), (low, high))
            ax.text(1.03, row, text, fontsize=8, va="center", transform=ax.get_yaxis_transform())
        ax.axvline(guess, color=GREY, lw=1, ls=":")
        name = key.replace("auc_macro", "macro AUC")
        ax.set_xlabel(f"{name}, 95 % interval (dotted: chance)", fontsize=9)
        ax.set_ylim(len(scores) - 0.5, -0.5)
        ax.set_yticks(range(len(scores)), scores if ax is axes[0] else [""] * len(scores))
        ax.margins(x=0.06)
    return save(fig, path)


def _auc(value: float) -> str:
    """Format an AUC with enough digits that only a perfect one reads 1."""
    return f"{value:.4f}" if value < 0.9999 or value == 1 else f"{value:.6f}"


def _labels(row: Mapping[str, Any]) -> int:
    return int(row["labels_per_class"])


def _series(rows: Sequence[Mapping[str, Any]], kind: str, name: str) -> Array:
    """Return (T, 2) of step and value, without the rows that lack it."""
    found = [
        (r["step"], r[name]) for r in rows if r.get("kind") == kind and r.get(name) is not None
    ]
    return np.asarray(found, float).reshape(-1, 2)
