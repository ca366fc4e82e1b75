"""Add the detector noise and the scaling of each family."""

from __future__ import annotations

import torch

from lensdist.sim.config import SimConfig
from lensdist.sim.families import FAMILIES, SURVEYS, Family

# The common task's exposure and sky. Scaling removes the sky's mean with the minimum, but not its
# noise.
COMMON_EXPOSURE = FAMILIES["common"].exposure
COMMON_SKY = FAMILIES["common"].sky

_MODEL_I_BACKGROUND = 0.01  # standard deviation, counts per unit of exposure


def detect(
    image: torch.Tensor,
    family: Family,
    cfg: SimConfig,
    exposure: torch.Tensor | None,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn noiseless images from `render` into images of the configured detector.

    Args:
        image: (N, H, W) from `render`.
        family: the family of the images.
        cfg: settings of the noise.
        exposure: (N,) exposures of Model I; None elsewhere.
        generator: on the images' device; one call uses it for a whole block of images.

    Returns:
        (N, H, W) Model I in counts, common in 0..1, Models II and III in their stored units; and
        the noiseless images in those units, with the noisy ones' own scale.
    """
    if family.native_noise == "counts":
        if exposure is None:
            raise ValueError("Model I needs the exposure of each image")
        t = exposure.to(image.dtype)[:, None, None]
        truth = t * image
        return truth if cfg.noise == "none" else _model_i(image, t, generator), truth
    if family.native_noise == "minmax":
        seen = image
        if cfg.noise == "native":
            counts = torch.poisson((image + family.sky) * family.exposure, generator=generator)
            seen = counts / family.exposure - family.sky
        return minmax(seen), minmax(image, of=seen)
    return _survey(image, family, cfg, generator) if cfg.noise in SURVEYS else image, image


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.empty_like(like).normal_(generator=generator)


def _model_i(image: torch.Tensor, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw Poisson(max(0, t (I + N(0, sqrt(I/t)) + N(0, 0.01)))): DeepLenseSim adds noise twice."""
    # The sum of two normal numbers is one of their quadratic sum, which needs half the draws.
    sigma = (image / t).add_(_MODEL_I_BACKGROUND**2).sqrt_()
    rate = sigma.mul_(_normal(image, generator)).add_(image).mul_(t)
    return torch.poisson(rate.clamp_min_(0), generator=generator)


def _survey(
    image: torch.Tensor, family: Family, cfg: SimConfig, generator: torch.Generator
) -> torch.Tensor:
    """Add Poisson noise of source and sky, and read noise; subtract the mean sky.

    Electrons come from the true counts per second, not from the doubled image that Models II and
    III store. The result is in stored units, so its mean is the noiseless image.
    """
    assert family.zero_point is not None  # the configuration refuses other families
    survey = SURVEYS[cfg.noise]
    exposure_s = survey.exposure_s if cfg.exposure_s is None else cfg.exposure_s
    sky_mag = survey.sky_mag if cfg.sky_mag is None else cfg.sky_mag
    zero_point = survey.zero_point if cfg.zero_point is None else cfg.zero_point
    zero_point = family.zero_point if zero_point is None else zero_point
    # Electrons a second of the survey for one count a second of the family.
    gain = 10 ** (0.4 * (zero_point - family.zero_point))
    electrons_per_unit = gain * exposure_s / family.stored_as
    # Electrons a pixel.
    sky = 10 ** (-0.4 * (sky_mag - zero_point)) * family.pixel_scale**2 * exposure_s
    electrons = torch.poisson(image * electrons_per_unit + sky, generator=generator)
    if cfg.read_noise:
        sigma = cfg.read_noise * cfg.n_exposures**0.5
        electrons.add_(_normal(image, generator), alpha=sigma)
    return electrons.sub_(sky).mul_(1 / electrons_per_unit)


def minmax(image: torch.Tensor, of: torch.Tensor | None = None) -> torch.Tensor:
    """Scale each image (N, H, W) to 0..1 by its range, or by `of`'s; a flat range gives zeros."""
    of = image if of is None else of
    low, high = of.amin((1, 2), keepdim=True), of.amax((1, 2), keepdim=True)
    span = high - low
    return (image - low) / torch.where(span > 0, span, torch.ones_like(span))
