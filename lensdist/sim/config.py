"""Settings of the simulator (torch-free). Defaults reproduce each family exactly."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Strict
from lensdist.sim.families import FAMILIES

FamilyName = Literal["model_i", "model_ii", "model_iii", "common", "sr"]
Noise = Literal["none", "native", "euclid"]
Vortex = Literal["points", "rod"]


class LensLight(Strict):
    """Light of the lensing galaxy: an elliptical Sersic at the centre, a stress test."""

    magnitude: float = Field(
        gt=5, lt=40, description="total magnitude; a bright Euclid lens is about 18"
    )
    radius: float = Field(
        0.8, gt=0.01, lt=10, description="half-light radius, arcsec; default a massive early type"
    )
    n: float = Field(
        4.0, ge=0.5, le=8, description="Sersic index; default de Vaucouleurs, as early types have"
    )
    e1: float = Field(0.1, gt=-0.7, lt=0.7, description="ellipticity; default the lens mass's own")
    e2: float = Field(0.0, gt=-0.7, lt=0.7, description="ellipticity along the diagonal")


class SimConfig(Strict):
    """What to simulate."""

    family: FamilyName = Field(
        "model_ii", description="model_i, model_ii, model_iii: DeepLenseSim; common, sr: PyAutoLens"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="classes to draw, balanced; null: all of the family's"
    )
    noise: Noise = Field(
        "native",
        description="none: noiseless; native: what the family's own files have (Model I and "
        "common: Poisson; Models II and III: none); euclid: as a Euclid VIS exposure would",
    )
    exposure_s: float = Field(
        2260.0, gt=0, le=1e9, description="euclid noise: total exposure, s; default 4 x 565 s"
    )
    sky_mag: float = Field(
        22.35, gt=5, lt=40, description="euclid noise: sky, mag/arcsec2; default Euclid VIS"
    )
    read_noise: float = Field(
        4.2, ge=0, le=1e3, description="euclid noise: electrons per read; default Euclid VIS"
    )
    n_exposures: int = Field(
        4, ge=1, le=10_000, description="euclid noise: reads in the stack; default Euclid wide"
    )
    source_mag: float | None = Field(
        None,
        gt=5,
        lt=40,
        description="unlensed magnitude of the source, Models II and III; null: their own 20 "
        "(22 is the hard set)",
    )
    psf_scale: float = Field(
        1.0, gt=0.1, le=10, description="factor on the PSF's width; a stress test"
    )
    e1: float | None = Field(
        None, gt=-0.7, lt=0.7, description="ellipticity of the lens; null: the family's"
    )
    e2: float | None = Field(
        None, gt=-0.7, lt=0.7, description="ellipticity along the diagonal; null: the family's"
    )
    lens_light: LensLight | None = Field(
        None, description="light of the lens, Models II and III; null: none, as in the families"
    )
    substructure_scale: float = Field(
        1.0,
        gt=0,
        le=100,
        description="factor on the mass of substructure; 1/3 and 1/10 make the hard sets",
    )
    vortex: Vortex = Field(
        "points",
        description="points: the 100 masses that the families' generators sum; rod: their "
        "closed-form limit, faster",
    )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes drawn, in the family's order."""
        known = FAMILIES[self.family].labels
        return known if self.classes is None else tuple(c for c in known if c in self.classes)

    def test_images(self, n_per_class: int) -> int:
        """Return the images of each class that the family's own test split takes, if it has one."""
        return n_per_class // 5 if self.family == "common" else 0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        family = FAMILIES[self.family]
        if self.classes is not None:
            if not self.classes or len(set(self.classes)) != len(self.classes):
                raise ValueError("classes must name each class once, and at least one")
            for name in self.classes:
                if name not in family.labels:
                    known = ", ".join(family.labels)
                    raise ValueError(f"classes: {self.family} has no {name!r}; it has {known}")
        if (self.e1 or 0) ** 2 + (self.e2 or 0) ** 2 >= 0.7**2:
            raise ValueError("e1 and e2 together make e >= 0.7, an edge and no lens: be rounder")
        if family.zero_point is None:
            for key, given in (
                ("noise: euclid", self.noise == "euclid"),
                ("source_mag", self.source_mag is not None),
                ("lens_light", self.lens_light is not None),
            ):
                if given:
                    raise ValueError(
                        f"{key} needs a family with a magnitude zero point "
                        f"(model_ii or model_iii), not {self.family}"
                    )
        return self
