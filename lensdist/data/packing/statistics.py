"""Pixel statistics of a set, gathered image by image (torch-free)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.data.manifest import Statistics

Array = npt.NDArray[Any]


def image_moments(image: Array, badpix: Array | None) -> Array:
    """Return good pixels, minimum, maximum, mean and squared deviations of an image (C, H, W).

    They are kept for each image until it is known which images are in the train split.

    Returns:
        (C, 5) float64.
    """
    image = image.astype(np.float64)
    where = np.ones_like(image, bool) if badpix is None else ~badpix
    n = where.sum(axis=(1, 2))
    mean = np.sum(image, axis=(1, 2), where=where) / np.maximum(n, 1)
    deviation = image - mean[:, None, None]
    return np.stack(
        [
            n,
            np.min(image, axis=(1, 2), where=where, initial=np.inf),
            np.max(image, axis=(1, 2), where=where, initial=-np.inf),
            mean,
            np.sum(deviation * deviation, axis=(1, 2), where=where),
        ],
        axis=-1,
    )


def join_moments(moments: Array) -> Statistics:
    """Join moments (N, C, 5) of N images.

    Chan, Golub & LeVeque 1979: nothing cancels in the variance.
    """
    n, low, high, mean, squares = np.moveaxis(moments, -1, 0)
    total = n.sum(axis=0)
    centre = (n * mean).sum(axis=0) / np.maximum(total, 1)
    variance = (squares + n * (mean - centre) ** 2).sum(axis=0) / np.maximum(total, 1)
    return Statistics(
        # A band without one good pixel has no extremes; JSON has no infinity.
        min=np.where(total > 0, low.min(axis=0), 0).tolist(),
        max=np.where(total > 0, high.max(axis=0), 0).tolist(),
        mean=centre.tolist(),
        std=np.sqrt(variance).tolist(),
    )
