"""Model smooth lenses by principal components; an image without its smooth part shows substructure.

Images of one family differ mostly by the position of the source. A mean and some principal
components hold all of that, and almost nothing of substructure, which is a hundredth of an arc's
light. A network that sees the difference need not find that hundredth first, and an autoencoder
whose loss is computed on the difference has nothing else to learn.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lensdist.data.registered import Registered, registered
from lensdist.sim.config import FamilyName, SimConfig
from lensdist.sim.families import FAMILIES
from lensdist.sim.simulator import BLOCK, Simulator
from lensdist.utils import rng
from lensdist.utils.errors import UserError

if TYPE_CHECKING:
    from lensdist.data.config import PreprocessConfig
    from lensdist.data.dataset import PackedSet
    from lensdist.data.manifest import Manifest

log = logging.getLogger(__name__)

IMAGES = 1500
"""Most images that the basis is made of: more would change little, and take longer."""
_SIMULATED = 1000  # more would make a denser net of typical lenses, and take longer
_FOR_SCALE = 300  # images that the scale of fitted residuals is known from to some percent
_SAME_SCALE = 0.02  # relative difference of pixel scales that only rounding explains


@dataclass
class Smooth:
    """A basis of smooth images in the unit and at the place of the training images.

    Attributes:
        mean: (P,) float32, P = C * H * W.
        rows: (K, P) float32, orthonormal.
        scale: root mean square of the residual of training images of all classes.
    """

    mean: Tensor
    rows: Tensor
    scale: float = 1.0

    def fits(self, shape: tuple[int, int, int]) -> bool:
        """Return whether the basis is of images of this shape (C, H, W)."""
        pixels = math.prod(shape)
        return self.mean.shape == (pixels,) and self.rows.shape[1:] == (pixels,)

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


def fit_smooth(packed: PackedSet, cfg: PreprocessConfig) -> Smooth | Registered:
    """Make the basis of `scale: residual` for a packed set, and its scale.

    Raises:
        UserError: no image to make it of, or no simulator of such images.
    """
    rows = packed.indices("train")
    basis: Smooth | Registered
    if cfg.shift is None:
        basis = principal(_finite(packed, _some(_chosen(packed, cfg.smooth_class))), cfg.components)
        images = _finite(packed, _some(rows))
        basis.scale = _rms(images - basis.of(images))
        return basis
    settings = smooth_settings(packed.manifest, cfg.family)
    if settings is None:
        chosen = _chosen(packed, cfg.smooth_class)
        made = (
            f"{min(len(chosen), IMAGES):,} training images of {cfg.smooth_class or 'all classes'}"
        )
        log.warning(
            "the smooth part is learned from %s, as %s does not name a simulated family "
            "(preprocess.family)", made, packed.path,
        )  # fmt: skip
        basis = registered(_finite(packed, _some(chosen)), cfg.shift, cfg.components, made)
    else:
        basis = replace(_of_family(settings.model_dump_json(), cfg.shift, cfg.components))
    parts = torch.split(_finite(packed, _some(rows, _FOR_SCALE)), 100)
    basis.scale = _rms(torch.cat([basis.fit(part).residual for part in parts]))
    return basis


def smooth_settings(manifest: Manifest, family: FamilyName | None) -> SimConfig | None:
    """Return the simulator's settings for smooth lenses like those of a set; None: not known.

    A set that was simulated keeps its own settings. To images of a family that `family` names the
    simulator gives the set's point-spread function.

    Raises:
        UserError: the set's images have another size or pixel scale than the family's.
    """
    own = manifest.source.get("simulated")
    if isinstance(own, dict) and family in (None, own.get("family")):
        plain = SimConfig.model_validate(own)
    elif family is None:
        return None
    else:
        known = FAMILIES[family]
        psf = (manifest.psf_fwhm_arcsec or known.psf_fwhm) / known.psf_fwhm
        plain = SimConfig(family=family, psf_scale=psf)
    labels = FAMILIES[plain.family].labels[:1]
    cfg = SimConfig(**{**plain.model_dump(), "classes": labels, "noise": "none"})
    simulator, scale = Simulator(cfg), manifest.pixel_scale_arcsec
    fits = scale is None or abs(scale / simulator.pixel_scale - 1) < _SAME_SCALE
    if simulator.image_shape != manifest.image_shape or not fits:
        size = "x".join(map(str, manifest.image_shape))
        raise UserError(
            f"preprocess.family: {plain.family}'s images have {simulator.image_shape[-1]} pixels "
            f"a side of {simulator.pixel_scale:g} arcsec, the set's are {size} of {scale} arcsec; "
            "set preprocess.family=null to use the training images"
        )
    return cfg


@lru_cache(maxsize=4)
def _of_family(settings: str, reach: int, components: int) -> Registered:
    """Make the basis of simulated smooth lenses, of a simulator's settings in JSON."""
    cfg = SimConfig.model_validate_json(settings)
    made = f"{_SIMULATED:,} simulated smooth lenses of {cfg.family}"
    return registered(_simulated(cfg), reach, components, made, turned=True)


def _simulated(cfg: SimConfig) -> Tensor:
    """Return smooth lenses (N, 1, H, W) of all kinds of places, in random order.

    A half are at the place of the family's. A quarter are drawn with their centre at a corner of a
    pixel, where pixels see other parts of thin arcs; a quarter are means of two neighbours, as
    interpolation makes them. Without the latter, images moved by half a pixel look substructured.
    """
    key, n = rng.key(0, "smooth lenses"), _SIMULATED // 4
    simulator, between = Simulator(cfg), Simulator(cfg)
    between.family = replace(between.family, n_pix=between.family.n_pix + 1)
    _, height, width = simulator.image_shape

    def draw(by: Simulator, start: int, stop: int) -> Tensor:
        blocks = torch.split(torch.arange(start, stop), BLOCK)
        return torch.cat([by.batch(key, samples)["image"] for samples in blocks])

    plain, mixed = draw(simulator, 0, 2 * n), draw(simulator, 2 * n, 3 * n).chunk(2)
    wide = draw(between, 3 * n, 4 * n)
    corners = [wide[k::4, :, k % 2 :, k // 2 :][..., :height, :width] for k in range(4)]
    means = [(part + part.roll(1, axis)) / 2 for axis, part in zip((2, 3), mixed, strict=True)]
    images = torch.cat([plain, *corners, *means])
    return images[torch.from_numpy(rng.permutation(rng.key(key, "order"), len(images)))]


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _chosen(packed: PackedSet, name: str | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the training images of one class (None: of all).

    Raises:
        UserError: the set has no such class, or no training image of it.
    """
    rows = packed.indices("train")
    if name is not None:
        if name not in packed.manifest.labels:
            raise UserError(
                f"preprocess.smooth_class: {packed.path} has no class {name!r}; it has "
                f"{', '.join(packed.manifest.labels) or 'no labels'} (for all images: "
                "preprocess.smooth_class=null)"
            )
        rows = rows[packed.labels[rows] == packed.manifest.labels.index(name)]
    if not len(rows):
        raise UserError(f"{packed.path} has no train images of {name or 'any class'}")
    return rows


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
    rows: np.ndarray[tuple[int], np.dtype[np.int64]], most: int = IMAGES
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Take at most so many of them, at equal distances."""
    return rows[:: -(-len(rows) // most)]
