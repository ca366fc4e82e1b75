"""Draw figures of images: a network's outputs next to its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from lensdist.metrics.drawing import save

Array = npt.NDArray[Any]


def reconstructions(
    path: Path,
    image: Array,
    hidden: Array,
    recon: Array,
    *,
    unit: str = "scaled 0 to 1",
    pixel_scale: float | None = None,
    title: str = "Masked autoencoder",
) -> Path:
    """Draw original, masked image, reconstruction and residual, one row per image.

    Args:
        path: of the PNG.
        image: (M, H, W) the originals.
        hidden: (M, H, W) bool, True where pixels were masked.
        recon: (M, H, W) the reconstructions.
        unit: of the pixel values.
        pixel_scale: arcsec; draws a bar of 1″.
        title: of the figure.
    """
    m = len(image)
    fig = Figure(figsize=(7.4, 0.6 + 1.62 * m), layout="constrained")
    fig.suptitle(f"{title} (n = {m}, pixel values {unit})", fontsize=10)
    axes = fig.subplots(m, 4, squeeze=False)
    for row, each, mask, made in zip(axes, image, hidden, recon, strict=True):
        panels = (each, np.where(mask, np.nan, each), made, made - each)
        span = {"vmin": float(np.nanmin(panels[0])), "vmax": float(np.nanmax(panels[0]))}
        reach = float(np.nanmax(np.abs(panels[3]))) or 1.0
        for ax, panel in zip(row[:3], panels[:3], strict=True):
            shown = _picture(ax, panel, "inferno", **span)
        fig.colorbar(shown, ax=row[:3], shrink=0.9, pad=0.01).ax.tick_params(labelsize=7)
        shown = _picture(row[3], panels[3], "RdBu_r", vmin=-reach, vmax=reach)
        fig.colorbar(shown, ax=row[3], shrink=0.9, pad=0.02).ax.tick_params(labelsize=7)
    for ax, head in zip(axes[0], ("original", "masked", "reconstruction", "residual"), strict=True):
        ax.set_title(head, fontsize=9)
    _scale_bar(axes[0][0], image.shape[-1], pixel_scale)
    return save(fig, path)


def super_resolved(
    path: Path,
    images: Mapping[str, Array],
    best: Array | None = None,
    *,
    sigma: Array | None = None,
    pixel_scale: float | None = None,
    title: str = "Super-resolution",
) -> Path:
    """Draw the small image, its enlargements and the targets, and below each its difference.

    Args:
        path: of the PNG.
        images: (M, H, W) each, two rows per image in this order: `LR`; enlargements by name; `HR`;
            `truth`, HR without its noise, if known. An image's residuals share one scale.
        best: (M, H, W) reference of the residuals: the truth moved to LR's means, so that they show
            what could be better and, for HR, the noise within blocks; by default HR.
        sigma: (M, H, W) standard deviations that the model predicts; shown below LR.
        pixel_scale: of LR, arcsec; draws a bar of 1″.
        title: of the figure.
    """
    names, m = list(images), len(images["HR"])
    wanted, against = (images["HR"], "HR") if best is None else (best, "the truth at LR's means")
    fig = Figure(figsize=(0.6 + 1.6 * len(names), 0.7 + 3.2 * m), layout="constrained")
    fig.suptitle(f"{title} (n = {m}; second rows: difference from {against})", fontsize=10)
    axes = fig.subplots(2 * m, len(names), squeeze=False)
    for k in range(m):
        span = {"vmin": float(np.nanmin(wanted[k])), "vmax": float(np.nanmax(wanted[k]))}
        off = {n: images[n][k] - wanted[k] for n in names if n not in ("LR", "truth", against)}
        # The noise of HR would hide all else; larger values are clipped to the scale.
        drawn = [each for name, each in off.items() if name != "HR"]
        reach = float(np.nanquantile(np.abs(drawn), 0.999)) or 1.0
        for column, name in enumerate(names):
            above, below = axes[2 * k][column], axes[2 * k + 1][column]
            shown = _picture(above, images[name][k], "inferno", **span)
            if name in off:
                residual = _picture(below, off[name], "RdBu_r", vmin=-reach, vmax=reach)
            elif name == "LR" and sigma is not None:
                _picture(below, sigma[k], "viridis")
                least, most = float(np.nanmin(sigma[k])), float(np.nanmax(sigma[k]))
                below.set_xlabel(f"sigma, {least:.2g} to {most:.2g}", fontsize=8)
            else:
                below.set_axis_off()
        fig.colorbar(shown, ax=axes[2 * k], shrink=0.9, pad=0.01).ax.tick_params(labelsize=7)
        fig.colorbar(residual, ax=axes[2 * k + 1], shrink=0.9, pad=0.01).ax.tick_params(labelsize=7)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name, fontsize=9)
    _scale_bar(axes[0][0], images["LR"].shape[-1], pixel_scale)
    return save(fig, path)


def _picture(ax: Any, image: Array, colours: str, **span: float) -> Any:
    ax.set(xticks=[], yticks=[])
    cmap = colormaps[colours].with_extremes(bad="#9a9a9a")  # masked pixels
    return ax.imshow(image, cmap=cmap, origin="lower", interpolation="nearest", **span)


def _scale_bar(ax: Any, width: int, pixel_scale: float | None) -> None:
    if pixel_scale:
        left, up = 0.06 * width, 0.08 * width
        ax.plot([left, left + 1 / pixel_scale], [up, up], color="white", lw=2)
        ax.text(left, up * 1.4, "1″", color="white", fontsize=8, va="bottom")
