"""The simulator against lenstronomy 1.14.2, on random lenses of every family."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than these images

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Data.pixel_grid import PixelGrid
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.SimulationAPI.ObservationConfig.Euclid import Euclid

from lensdist.sim import Family, render, sample
from lensdist.sim.families import SURVEYS, family_of, linear_b_n
from lensdist.utils import rng

pytestmark = pytest.mark.unit

DEEPLENSE = ("model_i", "model_ii", "model_iii")
# Of DeepLenseSim's Models II and III (lenstronomy's default in 1.9.2).
COSMOLOGY = FlatLambdaCDM(H0=69.7, Om0=0.2814, Ob0=0.0464)


def drawn(family: Family, p: dict[str, torch.Tensor], i: int, supersample: int = 1) -> Any:
    """Draw lens i of `p` with lenstronomy, in our stored units and with our first row."""
    theta, e1, e2, g1, g2 = p["kwargs_main"][i].tolist()
    masses = p["point_mass_thetaE_x_y"][i, : int(p["n_point_masses"][i])].tolist()
    planes = {}
    if family.deflection_scale != 1:
        planes = {"z_lens": 0.5, "z_source": 1.0, "z_source_convention": 2.5, "cosmo": COSMOLOGY}
    lens = LensModel(["SIE", "SHEAR"] + ["POINT_MASS"] * len(masses), **planes)
    kwargs_lens = [
        {"theta_E": theta, "e1": e1, "e2": e2, "center_x": 0, "center_y": 0},
        {"gamma1": g1, "gamma2": g2, "ra_0": 0, "dec_0": 0},
        *({"theta_E": t, "center_x": x, "center_y": y} for t, x, y in masses),
    ]
    x, y = p["source_xy"][i].tolist()
    e = p["source_e1_e2"][i].tolist() if "source_e1_e2" in p else family.source_e
    shape = {
        "R_sersic": family.source_radius, "n_sersic": family.source_n,
        "e1": e[0], "e2": e[1], "center_x": x, "center_y": y,
    }  # fmt: skip
    light = LightModel(["SERSIC_ELLIPSE"])
    amp = float(p["source_amp"][i]) if "source_amp" in p else family.source_amp
    if family.zero_point is not None and family.source_mag is not None:
        total = 10 ** (-0.4 * (family.source_mag - family.zero_point))
        amp = total / light.total_flux([{**shape, "amp": 1}])[0]
    half = (family.n_pix - 1) / 2 * family.pixel_scale
    step = family.pixel_scale * np.eye(2)
    grid = PixelGrid(family.n_pix, family.n_pix, step, ra_at_xy_0=-half, dec_at_xy_0=-half)
    psf = PSF("GAUSSIAN", fwhm=family.psf_fwhm, pixel_size=family.pixel_scale, truncation=4)
    numerics = {"supersampling_factor": supersample, "supersampling_convolution": False}
    model = ImageModel(grid, psf, lens, light, kwargs_numerics=numerics)
    image = model.image(kwargs_lens, [{**shape, "amp": amp}])
    # lenstronomy sums light over a pixel's area; PyAutoLens states it per pixel.
    image *= family.stored_as if family.pixel_area else 1 / family.pixel_scale**2
    return image[::-1] if family.y_up else image


def difference(family: Family, ours: Family, supersample: int = 1) -> float:
    """Return the largest difference over the peak, of one lens of each class."""
    p = sample(family.name, rng.key(20, "lenstronomy"), torch.arange(3) + 30)
    images = render(ours, p, supersample=supersample).numpy()
    theirs = [drawn(family, p, i, supersample) for i in range(3)]
    return max(float(np.abs(a - b).max() / b.max()) for a, b in zip(images, theirs, strict=True))


@pytest.mark.parametrize("name", DEEPLENSE)
def test_models_i_to_iii_are_lenstronomys(name: str) -> None:
    family = family_of(name)
    assert difference(family, family) < 1e-8


def test_common_is_lenstronomys_but_for_b_n() -> None:
    """PyAutoLens, which made the files, has another b_n; with lenstronomy's the rest is equal."""
    family = family_of("common")
    assert difference(family, replace(family, source_b_n=linear_b_n(family.source_n))) < 1e-6
    assert 1e-4 < difference(family, family) < 3e-3


@pytest.mark.parametrize("supersample", [2, 4])
@pytest.mark.parametrize("name", ["model_i", "model_iii", "common"])
def test_supersampling_is_lenstronomys(name: str, supersample: int) -> None:
    family = family_of(name)
    ours = replace(family, source_b_n=linear_b_n(family.source_n))
    assert difference(family, ours, supersample) < 1e-6


def test_supersampling_matters() -> None:
    """One point a pixel is a few per cent of the peak off."""
    family = family_of("model_ii")
    p = sample("model_ii", rng.key(20, "lenstronomy"), torch.arange(6))
    once, often = (render(family, p, supersample=s) for s in (1, 4))
    error = (once - often).abs().amax((1, 2)) / often.amax((1, 2))
    assert 0.005 < error.min() < error.max() < 0.2


def test_euclids_noise_is_todays() -> None:
    """The zero point, the sky and the exposure that lenstronomy has for VIS."""
    kwargs = Euclid(band="VIS").kwargs_single_band()
    euclid = SURVEYS["euclid"]
    assert euclid.zero_point == kwargs["magnitude_zero_point"]
    assert euclid.sky_mag == kwargs["sky_brightness"]
    assert euclid.exposure_s == kwargs["exposure_time"] * kwargs["num_exposures"]
