"""Simulate batches of images, of an endless set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from lensdist.sim.config import SimConfig
from lensdist.sim.families import Family, family_of
from lensdist.sim.noise import detect
from lensdist.sim.priors import sample
from lensdist.sim.raytrace import render
from lensdist.utils import rng

BLOCK = 128
"""The number of images that share a noise generator; changing it changes every simulated set."""


class Simulator:
    """A simulator of the samples of an endless set, as a pure function of (key, samples).

    The parameters of a lens depend on its own sample number. Pixel noise is drawn for the whole
    block of samples, keyed by the first of them, so only the same blocks have the same noise.

    Args:
        cfg: the settings of the simulator.
        device: the device of batches.
        dtype: the type of images; the public sets are float64.
    """

    def __init__(
        self,
        cfg: SimConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.cfg = cfg
        self.device = torch.device(device)
        self.dtype = dtype
        self.family = _instrument(cfg)
        self._pairs = cfg.family == "sr"

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names in label order."""
        return self.cfg.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (channels, H, W) of `image`."""
        n = self.family.n_pix // (2 if self._pairs else 1)
        return (1, n, n)

    @property
    def target_shape(self) -> tuple[int, int, int] | None:
        """The shape (channels, H, W) of `target`; None: no pairs."""
        return (1, self.family.n_pix, self.family.n_pix) if self._pairs else None

    @property
    def pixel_scale(self) -> float:
        """The pixel scale of `image`, arcsec."""
        return self.family.pixel_scale * (2 if self._pairs else 1)

    @property
    def psf_fwhm(self) -> float:
        """The FWHM of the point-spread function, arcsec."""
        return self.family.psf_fwhm

    @property
    def zero_point(self) -> float | None:
        """The magnitude of one count per second; None if fluxes have no magnitudes."""
        return self.family.zero_point

    def params(self, key: int, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        """Draw the lenses of `samples` (N,) int64, as `render` takes them (see `sample`)."""
        cfg = self.cfg
        p = sample(
            cfg.family,
            key,
            samples.to(self.device),
            classes=cfg.labels,
            substructure_scale=cfg.substructure_scale,
            vortex=cfg.vortex,
            calibration=cfg.calibration,
        )
        if cfg.e1 is not None or cfg.e2 is not None:
            main = p["kwargs_main"].clone()
            for column, value in ((1, cfg.e1), (2, cfg.e2)):
                if value is not None:
                    main[:, column] = value
            p["kwargs_main"] = main
        return p

    def batch(self, key: int, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        """Simulate samples.

        Args:
            key: a key from `rng.key`; another key gives another endless set.
            samples: (N,) int64 sample numbers, N at least 1.

        Returns:
            `image` (N, 1, H, W), `label` (N,) int64, `mass` (N,) float64 axion mass in eV (NaN
            where there is none), `sample` (N,) int64; `sr` adds `target` (N, 1, 2H, 2W), of
            which `image` is the 2x2 mean, and `truth` (N, 1, 2H, 2W), `target` without its noise.
        """
        return self.images(key, samples, self.params(key, samples))

    def images(
        self, key: int, samples: torch.Tensor, params: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Make the `batch` of lenses that `params` has drawn."""
        clean = render(
            self.family,
            params,
            self.dtype,
            lens_light=self.cfg.lens_light,
            supersample=self.cfg.supersample,
        )
        generator = rng.generator(rng.key(key, "noise", int(samples[0])), self.device)
        seen, truth = detect(clean, self.family, self.cfg, params.get("exposure"), generator)
        image = seen[:, None]
        label = params["label"]
        none = torch.full(label.shape, math.nan, dtype=torch.float64, device=self.device)
        out = {
            "image": image,
            "label": label,
            "mass": params.get("axion_mass_ev", none),
            "sample": samples.to(self.device).long(),
        }
        if self._pairs:
            out["target"], out["truth"] = image, truth[:, None]
            out["image"] = torch.nn.functional.avg_pool2d(image, 2)
        return out

    def blocks(
        self, seed: int, total: int
    ) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        """Yield the batches of the set of `total` images with this seed, and their lenses."""
        key = rng.key(seed, "simulate")
        for start in range(0, total, BLOCK):
            samples = torch.arange(start, min(start + BLOCK, total))
            lenses = self.params(key, samples)
            yield self.images(key, samples, lenses), lenses


def _instrument(cfg: SimConfig) -> Family:
    """Return the configured family, with the stress tests that change its optics or source."""
    family = family_of(cfg.family, cfg.calibration)
    return replace(
        family,
        psf_fwhm=family.psf_fwhm * cfg.psf_scale,
        source_mag=family.source_mag if cfg.source_mag is None else cfg.source_mag,
    )
