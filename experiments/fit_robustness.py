"""Try the classifier of lens-fit residuals on images that it was not trained on.

DIR/data                simulated packed set
DIR/runs/<name>         ordinary runs of `lensdist train`; DIR/logs, their messages
DIR/results.{md,json}   what each network calls images outside of the family, and which it flags

Images are drawn here from closed forms, not with the fit's own model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.data import simulated_set
from experiments.runs import check_presets, job, notes, run_all
from experiments.settings import PRESETS, FitTable
from lensdist.api import load
from lensdist.export.model import LoadedModel
from lensdist.metrics.report import write_results
from lensdist.sim.config import SimConfig
from lensdist.sim.deflection import unit_ellipsoid
from lensdist.sim.families import FAMILIES, FWHM_PER_SIGMA
from lensdist.sim.light import blur, sersic
from lensdist.sim.noise import COMMON_EXPOSURE, COMMON_SKY, minmax
from lensdist.sim.priors import sample
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng

_FAMILY = FAMILIES["common"]
_TOGETHER = 50  # images drawn at once


@dataclass(frozen=True)
class Stress:
    """How smooth lenses differ from those of the common family."""

    axis_ratio: float = 1.0
    off_centre: float = 0.0
    """Distance of the lens from the centre of the image and of the shear, arcsec."""
    slope: float = 2.0
    """Of the density; only for axis ratio 1."""
    lens_light: float = 0.0
    """Share of the lensed source's light: a de Vaucouleurs profile, 0.8 arcsec, axis ratio 0.8."""
    clump: float = 0.0
    """Share of the source's light: an exponential profile of 0.1 arcsec, 0.3 arcsec from it."""
    moffat: float | None = None
    """The exponent of a Moffat PSF with the family's FWHM; None: the family's Gaussian."""
    psf_scale: float = 1.0
    exposure: float = 1.0
    read_noise: float = 0.0
    """In units of the source's brightness, whose pixels have a noise of 0.03 (sky) to 0.1."""
    correlation: float = 0.0
    """Width of the Gaussian that noise is smoothed with, pixels; the scatter of pixels is kept."""


SMOOTH = {
    "as in training": Stress(),
    "axis ratio 0.95": Stress(axis_ratio=0.95),
    "axis ratio 0.9": Stress(axis_ratio=0.9),
    "axis ratio 0.8": Stress(axis_ratio=0.8),
    "centre off 0.02 arcsec": Stress(off_centre=0.02),
    "centre off 0.05 arcsec": Stress(off_centre=0.05),
    "slope 1.9": Stress(slope=1.9),
    "slope 2.05": Stress(slope=2.05),
    "slope 2.15": Stress(slope=2.15),
    "lens light 5 %": Stress(lens_light=0.05),
    "lens light 20 %": Stress(lens_light=0.2),
    "clump in the source": Stress(clump=0.02),
    "Moffat PSF": Stress(moffat=3.0),
    "PSF x 1.5": Stress(psf_scale=1.5),
    "exposure / 4": Stress(exposure=0.25),
    "exposure x 4": Stress(exposure=4.0),
    "read noise 0.05": Stress(read_noise=0.05),
    "correlated noise 0.7 px": Stress(correlation=0.7),
}
"""Variants of smooth lenses; each should be called smooth, or be flagged."""

UNITS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "x 0.1": lambda x: 0.1 * x,
    "x 10": lambda x: 10 * x,
    "/ max": lambda x: x / x.amax((1, 2, 3), keepdim=True),
    "+ 0.5": lambda x: x + 0.5,
    "moved by (1, 0) px": lambda x: x.roll(1, 3),
    "moved by (-1, 1) px": lambda x: x.roll((1, -1), (2, 3)),
    "turned by 180": lambda x: x.rot90(2, (2, 3)),
}
"""Images of the family in other units; accuracy should be the same, or they should be flagged."""


LIGHTEST = 0.25
"""The lightest substructure of the training images, in units of the family's."""
_DATA_SEED, _TEST_SEED = 3, 11


def make(cfg: FitTable) -> Path:
    """Run what is not finished yet, and return the path of `results.md`.

    Raises:
        UserError: the preset does not exist, or `cfg.out` holds a benchmark of other settings.
        RunError: a run failed.
        StoppedError: a run was told to stop and has saved.
    """
    preset = f"common/{PRESETS[cfg.size]}"
    check_presets(cfg, [preset])
    data = cfg.out / "data"
    sim = SimConfig(family="common", lightest=LIGHTEST)
    simulated_set(data, sim, cfg.per_class, _DATA_SEED)
    runs = {}
    for n, seed in product(cfg.trained_on, range(cfg.seeds)):
        words = (f"data.labels_per_class={n // 3}", f"seed={seed}")
        runs[n, seed] = job(cfg, preset, "", f"best n{n} s{seed}", *words, data=data)
    run_all(list(runs.values()), cfg.jobs, "fit robustness")
    rows: list[dict[str, Any]] = []
    for (n, seed), run in runs.items():
        model = load(run.run)
        facts = {"training images": n, "seed": seed}
        rows += [{**facts, **row} for row in rows_of(model, cfg.lenses)]
    return write_results(cfg.out, rows, "Outside of the family", [*_notes(), *notes(cfg)])


def rows_of(model: LoadedModel, n: int) -> list[dict[str, Any]]:
    """Return a row for each kind of images, n of each: what a model says of them."""
    rows = []
    for name, stress in SMOOTH.items():
        found = model.predict(smooth_lenses(stress, n, _TEST_SEED).numpy())
        rows.append(_row(name, found, np.zeros(n, np.int64)))
    for name, factor in (("mass of the family", 1.0), ("mass / 3", 1 / 3), ("mass / 10", 0.1)):
        images, label = _family(n, factor)
        rows.append(_row(name, model.predict(images.numpy()), label))
    images, label = _family(n, 1.0)
    for name, change in UNITS.items():
        rows.append(_row(name, model.predict(change(images).numpy()), label))
    return rows


def _family(n: int, substructure_scale: float) -> tuple[Tensor, Any]:
    """Draw n images of all classes (n, 1, H, W), and their classes (n,)."""
    sim = Simulator(SimConfig(family="common", substructure_scale=substructure_scale))
    batch = sim.batch(rng.key(_TEST_SEED, "family"), torch.arange(n))
    return batch["image"], batch["label"].numpy()


def _row(name: str, found: dict[str, Any], label: Any) -> dict[str, Any]:
    """Compare predictions with the classes; 0 is smooth."""
    called, flag = found["logits"].argmax(1), found["flag"]
    right = called == label
    return {
        "images": name,
        "n": len(label),
        "right": float(right.mean()),
        "flagged": float(flag.mean()),
        "right or flagged": float((right | flag).mean()),
        "right where not flagged": float(right[~flag].mean()) if (~flag).any() else None,
        "chi2 median": float(np.median(found["fit_chi2"])),
    }


def _notes() -> list[str]:
    return [
        "Rows from `as in training` to `correlated noise` are smooth lenses, which are right if "
        "they are called smooth; the others are of all classes.",
        f"Training images have substructure of {LIGHTEST} to 1 times the family's mass.",
        "`flagged`: the image is unlike the training images, by a column of `lensdist predict`.",
    ]


def smooth_lenses(stress: Stress, n: int, seed: int) -> Tensor:
    """Draw n smooth lenses (n, 1, H, W) in 0..1, in float32."""
    key = rng.key(seed, "fit robustness")
    parts = []
    for start in range(0, n, _TOGETHER):
        samples = torch.arange(start, min(start + _TOGETHER, n))
        generator = rng.generator(rng.key(key, "noise", start), torch.device("cpu"))
        clean = _clean(stress, key, samples)
        parts.append(minmax(_detected(stress, clean, generator)))
    return torch.cat(parts)[:, None].float()


def _clean(stress: Stress, key: int, samples: Tensor) -> Tensor:
    """Draw lenses without noise, (n, H, W)."""
    p = sample("common", key, samples, classes=("no",))
    theta, _, _, g1, g2 = p["kwargs_main"][:, :, None, None].unbind(1)
    n, scale = _FAMILY.n_pix, _FAMILY.pixel_scale
    x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * scale
    y = x.flip(0)
    turn = 2 * math.pi * rng.uniform(rng.key(key, "stress"), samples, 3)
    cx, cy = stress.off_centre * turn[:, 0].cos(), stress.off_centre * turn[:, 0].sin()
    e = (1 - stress.axis_ratio) / (1 + stress.axis_ratio)
    lens_e1, lens_e2 = e * turn[:, 1].cos(), e * turn[:, 1].sin()
    rows = []
    for k in range(len(samples)):  # each has a centre of its own
        own = slice(k, k + 1)
        ux, uy = unit_ellipsoid(x - cx[k], y - cy[k], lens_e1[own], lens_e2[own])
        r = torch.hypot(x - cx[k], (y - cy[k])[:, None])
        steeper = (r / theta[own]).pow(2 - stress.slope)
        bx = x - theta[own] * ux * steeper - g1[own] * x - g2[own] * y[:, None]
        by = y[:, None] - theta[own] * uy * steeper - g2[own] * x + g1[own] * y[:, None]
        rows.append(torch.stack([bx, by], 1))
    bx, by = torch.cat(rows).unbind(1)
    sx, sy = p["source_xy"][:, :, None, None].unbind(1)
    shape = {"radius": _FAMILY.source_radius, "n": _FAMILY.source_n, "b_n": _FAMILY.source_b_n}
    e1, e2 = p["source_e1_e2"].unbind(1)
    light = sersic(bx - sx, by - sy, p["source_amp"], e1, e2, **shape)
    if stress.clump:
        away = 0.3 * torch.stack([turn[:, 2].cos(), turn[:, 2].sin()], 1)[:, :, None, None]
        round_ = torch.zeros_like(theta[:, 0, 0])
        b_n = 1.678347  # of an exponential profile
        # Total fluxes are n R^2 e^b b^(-2n) Gamma(2n) times the brightness at the radius R.
        unit = 1.5 * 0.5**2 * math.exp(shape["b_n"]) * shape["b_n"] ** -3 * math.gamma(3.0)
        small = 0.1**2 * math.exp(b_n) * b_n**-2
        amp = stress.clump * p["source_amp"] * (unit / small)
        dx, dy = bx - sx - away[:, 0], by - sy - away[:, 1]
        light = light + sersic(dx, dy, amp, round_, round_, radius=0.1, n=1.0, b_n=b_n)
    if stress.lens_light:
        dx = (x - cx[:, None])[:, None, :].expand_as(light).clone()
        dy = (y - cy[:, None])[:, :, None].expand_as(light).clone()
        ones = torch.ones_like(cx)
        e = (1 - 0.8) / (1 + 0.8)
        galaxy = sersic(
            dx, dy, ones, e * turn[:, 2].cos(), e * turn[:, 2].sin(), radius=0.8, n=4.0, b_n=7.669
        )  # fmt: skip
        share = stress.lens_light * light.sum((1, 2)) / galaxy.sum((1, 2))
        light = light + share[:, None, None] * galaxy
    fwhm = _FAMILY.psf_fwhm / scale * stress.psf_scale
    if stress.moffat is None:
        return blur(light, fwhm)
    width = 0.5 * fwhm / math.sqrt(2 ** (1 / stress.moffat) - 1)
    offset = torch.arange(-20, 21, dtype=torch.float64)
    r2 = offset.square() + offset[:, None].square()
    kernel = (1 + r2 / width**2).pow(-stress.moffat)
    padded = F.pad(light[:, None], [20] * 4, mode="replicate")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def _detected(stress: Stress, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise, as the common family's detector does."""
    t = COMMON_EXPOSURE * stress.exposure
    noise = torch.poisson((clean + COMMON_SKY) * t, generator=generator) / t - COMMON_SKY - clean
    if stress.read_noise:
        noise += stress.read_noise * torch.randn(noise.shape, generator=generator).double()
    if stress.correlation:
        smoothed = blur(noise, stress.correlation * FWHM_PER_SIGMA)
        noise = smoothed * (noise.std((1, 2)) / smoothed.std((1, 2)))[:, None, None]
    return clean + noise
