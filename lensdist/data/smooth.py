"""Model smooth lenses by principal components; an image without its smooth part shows substructure.

Images of one family differ mostly by the position of the source. A mean and some principal
components hold all of that, and almost nothing of substructure, which is a hundredth of an arc's
light. A network that sees the difference need not find that hundredth first, and an autoencoder
whose loss is computed on the difference has nothing else to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lensdist.utils.errors import UserError

if TYPE_CHECKING:
    from lensdist.data.dataset import PackedSet

IMAGES = 1500
"""Most images that the basis is made of: more would change little, and take longer."""


@dataclass
class Smooth:
    """A basis of smooth images.

    Attributes:
        mean: (P,) float32, P = C * H * W.
        rows: (K, P) float32, orthonormal.
        scale: root mean square of the residual of training images of all classes.
    """

    mean: Tensor
    rows: Tensor
    scale: float = 1.0

    def of(self, x: Tensor) -> Tensor:
        """Return the smooth part of images (B, C, H, W), each independently of the others."""
        # In float64: under autocast or TF32 rounding would be larger than the residual.
        mean, rows = (t.to(x.device, torch.float64) for t in (self.mean, self.rows))
        centred = x.flatten(1).double() - mean
        return (mean + centred @ rows.T @ rows).view_as(x).to(x.dtype)


def principal(images: Tensor, components: int) -> Smooth:
    """Return the mean and the first principal components of images (N, C, H, W)."""
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    # By the N x N products, which is far cheaper than decomposing an N x P matrix.
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    k = min(components, int((values > values[-1] * 1e-12).sum()))
    rows = torch.linalg.qr((vectors[:, -k:].T @ centred).T).Q.T
    return Smooth(mean.float(), rows.float().contiguous())


def fit_smooth(packed: PackedSet, name: str | None, components: int) -> Smooth:
    """Fit the basis to a packed set's training images of one class (None: of all).

    Raises:
        UserError: the set has no such class, or no training image of it.
    """
    rows = packed.indices("train")
    chosen = rows
    if name is not None:
        if name not in packed.manifest.labels:
            raise UserError(
                f"preprocess.smooth_class: {packed.path} has no class {name!r}; it has "
                f"{', '.join(packed.manifest.labels) or 'no labels'} (null: use all images)"
            )
        chosen = rows[packed.labels[rows] == packed.manifest.labels.index(name)]
    if not len(chosen):
        raise UserError(f"{packed.path} has no train images of {name or 'any class'}")
    smooth = principal(_finite(packed, _some(chosen)), components)
    images = _finite(packed, _some(rows))
    smooth.scale = float((images - smooth.of(images)).square().mean().sqrt())
    return smooth


def _finite(packed: PackedSet, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    images = packed.gather(rows)["image"]
    odd = ~images.isfinite().flatten(1).all(1)
    if odd.any():
        name = packed.name_of(int(rows[odd.numpy()][0]))
        raise UserError(
            f"{packed.path}: {name}: its image holds NaN or infinity; mend or remove it "
            "and pack the set again"
        )
    return images


def _some(
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Take at most `IMAGES` of them, at equal distances."""
    return rows[:: -(-len(rows) // IMAGES)]
