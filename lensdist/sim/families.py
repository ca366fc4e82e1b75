"""Define the families of images by their constants (torch-free).

Models I to III are DeepLenseSim's (github.com/mwt5345/DeepLenseSim, drawn with lenstronomy
1.9.2); `common` and `sr` are the older PyAutoLens generator behind the common test and task VI.B.
docs/physics.md explains units and conventions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from lensdist.utils.errors import UserError

THETA_E_1E12 = 1.2814905676
"""Einstein radius of 1e12 solar masses, arcsec, by DeepLenseSim's formula (lens z 0.5, source z 1,
distances taken as luminosity distances; H0 70, Om 0.3): theta = THETA_E_1E12 * sqrt(M / 1e12)."""

_DEFLECTION_Z1_OF_Z25 = 0.6343147665739444
"""D_ls/D_s for a source at z 1 over that at z 2.5 (flat LCDM, H0 69.7, Om 0.2814, Ob 0.0464).
Models II and III state deflections for z 2.5, lenstronomy's `z_source_convention`."""

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class Family:
    """One family of images: its detector, its lens, its source and what is stored.

    Angles are in arcsec; ellipticities are e = (1-q)/(1+q) (cos 2 phi, sin 2 phi).
    """

    name: str
    labels: tuple[str, ...]
    """Class names in label order."""
    n_pix: int
    """Pixels on a side."""
    pixel_scale: float
    """Arcsec per pixel."""
    psf_fwhm: float
    """FWHM of the Gaussian point-spread function, arcsec."""
    main_lens: tuple[float, float, float, float, float]
    """theta_E, e1, e2, gamma1, gamma2 of the main lens and the external shear."""
    source_n: float
    """Sersic index."""
    source_radius: float
    """Half-light radius, arcsec (product average of the axes)."""
    source_b_n: float
    """Sersic's b_n as this family's own generator approximates it."""
    source_e: tuple[float, float]
    """e1, e2 of the source where `source_e1_e2` does not say otherwise."""
    native_noise: Literal["none", "counts", "minmax"]
    """counts: Poisson counts of the exposure; minmax: Poisson, then scaled to 0..1."""
    zero_point: float | None = None
    """Magnitude of one count per second; None: the source has an amplitude, not a magnitude."""
    source_mag: float | None = None
    """Magnitude of the unlensed source; used if `zero_point` is set."""
    source_amp: float = 1.0
    """Brightness of the source at its half-light radius; used if `zero_point` is None."""
    exposure: float = 1.0
    """Counts per unit of brightness, for `minmax` noise."""
    sky: float = 0.0
    """Brightness of the sky, for `minmax` noise."""
    deflection_scale: float = 1.0
    """Factor on every deflection (cosmology of the source plane)."""
    pixel_area: bool = True
    """Brightness is per square arcsec (lenstronomy), so a pixel collects brightness x area."""
    stored_as: float = 1.0
    """Stored image over noiseless model: DeepLenseSim stores model + model in II and III."""
    y_up: bool = False
    """The first row is the largest y (PyAutoLens) rather than the smallest (lenstronomy)."""


CIOTTI_BERTIN = (4 / 405, 46 / 25515, 131 / 1148175, -2194697 / 30690717750)
"""Coefficients of 1/n, 1/n^2, … in Sersic's b_n = 2n - 1/3 + …: Ciotti & Bertin 1999 (A&A 352,
447), eq. 18, as PyAutoLens computes it."""


def _ciotti_bertin(n: float) -> float:
    return 2 * n - 1 / 3 + sum(c / n**k for k, c in enumerate(CIOTTI_BERTIN, start=1))


def linear_b_n(n: float) -> float:
    """Compute Sersic's b_n by lenstronomy's linear fit."""
    return 1.9992 * n - 0.3271


_MODEL_II = Family(
    name="model_ii",  # Euclid VIS
    labels=("no_sub", "cdm", "axion"),
    n_pix=64,
    pixel_scale=0.101,
    psf_fwhm=0.16,
    main_lens=(THETA_E_1E12, 0.1, 0.0, 0.05, 0.0),
    source_n=1.0,
    source_radius=0.25,
    source_b_n=linear_b_n(1.0),
    source_e=(-0.1, 0.1),
    native_noise="none",
    zero_point=24.0,
    source_mag=20.0,
    deflection_scale=_DEFLECTION_Z1_OF_Z25,
    stored_as=2.0,
)
_MODEL_III = replace(
    _MODEL_II,
    name="model_iii",  # HST WFC3/F160W
    pixel_scale=0.08,
    psf_fwhm=0.08,
    zero_point=25.96,
)
_MODEL_I = replace(
    _MODEL_II,
    name="model_i",
    n_pix=150,
    pixel_scale=0.05,
    psf_fwhm=0.087,
    native_noise="counts",
    zero_point=None,
    source_mag=None,
    source_amp=20.0,  # per square arcsec
    deflection_scale=1.0,
    stored_as=1.0,
)
_COMMON = Family(
    name="common",
    labels=("no", "sphere", "vort"),
    n_pix=150,
    pixel_scale=0.05,
    psf_fwhm=0.086 * FWHM_PER_SIGMA,  # sigma fitted to published figures
    main_lens=(1.275, 0.0, 0.0, 0.0, 0.0),  # isothermal sphere; the priors vary radius and shear
    source_n=1.5,
    source_radius=0.5,
    source_b_n=_ciotti_bertin(1.5),
    source_e=(0.0, 0.0),
    # All of 15 real files are counts of a source of 100 and a sky of 10 (docs/physics.md).
    source_amp=1.0,
    exposure=100.0,
    sky=0.1,
    native_noise="minmax",
    pixel_area=False,
    y_up=True,
)
_COMMON_OF_FIGURES = replace(_COMMON, source_amp=0.8, exposure=125.0)

FAMILIES: dict[str, Family] = {
    "model_i": _MODEL_I,
    "model_ii": _MODEL_II,
    "model_iii": _MODEL_III,
    "common": _COMMON,
    "sr": _COMMON,  # a pair is a common image and its 2x2 mean
}
"""The families by the names that commands and configurations use."""


@dataclass(frozen=True)
class Survey:
    """A detector whose noise can be added to families with a zero point."""

    zero_point: float | None
    """Magnitude of one electron per second; None: the family's own zero point."""
    exposure_s: float
    """Total exposure time, s."""
    sky_mag: float
    """Brightness of the sky, mag/arcsec2."""


SURVEYS: dict[str, Survey] = {
    # As measured in flight: lenstronomy 1.14.2, after arXiv:2405.13496.
    "euclid": Survey(zero_point=25.72, exposure_s=4 * 566.0, sky_mag=22.3),
    # Before launch: lenstronomy 1.9.2, with which DeepLenseSim drew its Model II.
    "deeplense_euclid": Survey(zero_point=None, exposure_s=4 * 565.0, sky_mag=22.35),
}
"""Euclid VIS, by the names of `noise`. Both read 4.2 electrons per exposure."""


def family_of(name: str, calibration: str = "real") -> Family:
    """Return the family of this name.

    Args:
        name: a key of `FAMILIES`.
        calibration: `real`, or `figures` for `common` and `sr` as they were before.

    Raises:
        UserError: there is no such family.
    """
    if name not in FAMILIES:
        raise UserError(f"{name!r} is not a family of images; use one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    return _COMMON_OF_FIGURES if calibration == "figures" and family is _COMMON else family
