"""Single images on a run's page: galleries of pictures, and features as points of a plot."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.metrics.drawing import COLOURS

Array = npt.NDArray[Any]

_SIDE = 160  # pixels of the longest side of a picture
# asinh is linear up to this many median absolute deviations of the sky, or, in images without
# noise, up to this share of the brightest pixel.
_SOFT, _DEEPEST = 3.0, 0.05


@dataclass(frozen=True)
class Card:
    """A picture with what is said of it.

    Attributes:
        name: the sample, and its file if that is known.
        said: what is said, by name, such as `true`, `predicted`, `p`.
        picture: a data URL.
        looks: where the network looks, as a data URL; empty: it cannot be told.
    """

    name: str
    said: Mapping[str, str]
    picture: str
    looks: str = ""

    @property
    def size(self) -> int:
        """The bytes of its pictures."""
        return len(self.picture) + len(self.looks)


@dataclass(frozen=True)
class Gallery:
    """Some pictures under a title, with a sentence on what they are."""

    title: str
    text: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Singles:
    """What a page shows of a run's single images.

    Attributes:
        galleries: of pictures.
        plot: a Vega-Lite chart of the features; None: there are none.
        missing: why something is not shown; empty: all is.
    """

    galleries: Sequence[Gallery] = ()
    plot: dict[str, Any] | None = None
    missing: str = ""


def picture(image: Array, looks: Array | None = None) -> str:
    """Return an image (C, H, W) as a data URL: the mean of its bands, stretched by asinh.

    Args:
        image: in any unit; NaN where a pixel is bad.
        looks: (H, W), from 0 to 1; what is near 0 is darkened.
    """
    from matplotlib import colormaps
    from PIL import Image

    seen = np.isfinite(image)
    total = np.where(seen, image, 0.0).sum(0, dtype=np.float64)
    grey = np.where(seen.any(0), total / np.maximum(seen.sum(0), 1), np.nan)
    sky = np.nanmedian(grey)
    noise, most = np.nanmedian(np.abs(grey - sky)), np.nanmax(np.abs(grey - sky))
    unit = max(_SOFT * noise, _DEEPEST * most) or 1.0
    grey = np.arcsinh((grey - sky) / unit)
    low, high = np.nanmin(grey), np.nanmax(grey)
    shade = (grey - low) / ((high - low) or 1.0)
    if looks is None:
        rgb = colormaps["gray"].with_extremes(bad="#804040")(shade)[..., :3]
    else:  # the image stays visible in the brightness of the colours
        rgb = colormaps["inferno"](looks)[..., :3] * (0.35 + 0.65 * np.nan_to_num(shade)[..., None])
    drawn = Image.fromarray(
        (255 * rgb[::-1]).astype(np.uint8)
    )  # the first row is below, as in FITS
    drawn.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    drawn.save(data, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def scatter(features: Array, classes: Sequence[str], about: Sequence[str]) -> dict[str, Any]:
    """Return a Vega-Lite chart of features (N, D) on their two main axes, coloured by class.

    Args:
        features: of each image.
        classes: of each image.
        about: what the pointer shows of each image.
    """
    off = np.asarray(features, np.float64) - np.mean(features, 0)
    axes, spread, _ = np.linalg.svd(off, full_matrices=False)
    shares = spread**2 / max(float((spread**2).sum()), 1e-300)
    place = np.zeros((len(off), 2))
    place[:, : min(2, len(spread))] = (axes * spread)[:, :2]
    names = sorted(set(classes))
    values = [
        {"x": float(f"{x:.4g}"), "y": float(f"{y:.4g}"), "class": one, "image": name}
        for (x, y), one, name in zip(place, classes, about, strict=True)
    ]
    heads = [
        f"main axis {i + 1}, {share:.0%} of the variance" for i, share in enumerate(shares[:2])
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": "Features, by principal components",
        "width": "container",
        "height": 380,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": values},
        "params": [{"name": "zoom", "select": "interval", "bind": "scales"}],
        "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.75, "tooltip": True},
        "encoding": {
            **{
                axis: {
                    "field": axis,
                    "type": "quantitative",
                    "title": head,
                    "scale": {"zero": False},
                }
                for axis, head in zip("xy", heads, strict=False)
            },
            **{
                channel: {"field": "class", "type": "nominal", "legend": {"orient": "top"}} | more
                for channel, more in (
                    ("color", {"scale": {"domain": names, "range": [*COLOURS[:6]]}}),
                    ("shape", {"scale": {"domain": names}}),
                )
            },
            "tooltip": [{"field": "image"}, {"field": "class"}],
        },
    }
