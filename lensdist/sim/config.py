"""Settings of the simulator (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lensdist.sim.families import FAMILIES, SURVEYS
from lensdist.utils.settings import Strict

FamilyName = Literal["model_i", "model_ii", "model_iii", "common", "sr"]
Noise = Literal["none", "native", "euclid", "deeplense_euclid"]
Calibration = Literal["real", "figures"]
Vortex = Literal["points", "rod"]
_CALIBRATED = ("common", "sr")
Magnitude = Annotated[float, Field(gt=5, lt=40)]
Ellipticity = Annotated[float, Field(gt=-0.7, lt=0.7)]


class LensLight(Strict):
    """The light of the lensing galaxy, a central elliptical Sersic profile; a stress test."""

    magnitude: Magnitude = Field(
        description="The total magnitude. A bright lens of Euclid has about 18."
    )
    radius: float = Field(
        0.8,
        gt=0.01,
        lt=10,
        description="The half-light radius, arcsec. The default is that of a massive early type.",
    )
    n: float = Field(
        4.0,
        ge=0.5,
        le=8,
        description="The Sersic index. The default is de Vaucouleurs's, which early types have.",
    )
    e1: Ellipticity = Field(
        0.1,
        description="The ellipticity along the axes. The default is that of the lens's mass.",
    )
    e2: Ellipticity = Field(0.0, description="The ellipticity along the diagonals.")


class SimConfig(Strict):
    """Settings of the simulator. The defaults reproduce the files of each family."""

    family: FamilyName = Field(
        "model_ii",
        description="The family of images. model_i, model_ii, model_iii: DeepLenseSim's; "
        "common, sr: PyAutoLens's, sr as pairs of low and high resolution.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        description="The classes to draw, equally many of each. null: all of the family's.",
    )
    noise: Noise = Field(
        "native",
        description="The noise of the detector. none: no noise; native: the noise of the family's "
        "own files (Poisson for Model I and common, none for Models II and III); euclid: the noise "
        "of Euclid VIS as measured in flight; deeplense_euclid: as DeepLenseSim assumed it before "
        "launch, with a background 2.6 times as noisy beside the source.",
    )
    exposure_s: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="The total exposure time for Euclid noise, s. null: 2264 (4 x 566), for "
        "deeplense_euclid 2260.",
    )
    sky_mag: Magnitude | None = Field(
        None,
        description="The sky brightness for Euclid noise, mag/arcsec2. null: 22.3, for "
        "deeplense_euclid 22.35.",
    )
    zero_point: Magnitude | None = Field(
        None,
        description="The magnitude of one electron per second for Euclid noise; images keep the "
        "family's units. null: 25.72, for deeplense_euclid the family's own (Model II: 24).",
    )
    read_noise: float = Field(
        4.2,
        ge=0,
        le=1e3,
        description="The read noise for Euclid noise, electrons per read. The default is Euclid "
        "VIS's.",
    )
    n_exposures: int = Field(
        4,
        ge=1,
        le=10_000,
        description="The number of reads in the stack for Euclid noise. The default is the Euclid "
        "Wide Survey's.",
    )
    calibration: Calibration = Field(
        "real",
        description="The brightness and substructure of common and sr. real: as measured on real "
        "files of the common task; figures: as estimated from published figures, for sets like "
        "those made before this setting existed.",
    )
    supersample: Literal[1, 2, 4] = Field(
        1,
        description="The points on a side of each pixel whose light is averaged, before the PSF. "
        "The default, the pixel's centre alone, is that of the families' own generators.",
    )
    source_mag: Magnitude | None = Field(
        None,
        description="The magnitude of the source before lensing, in Models II and III. null: the "
        "family's own 20; 22 makes a hard set.",
    )
    psf_scale: float = Field(
        1.0, gt=0.1, le=10, description="A factor on the width of the PSF; a stress test."
    )
    e1: Ellipticity | None = Field(
        None, description="The ellipticity of the lens along the axes. null: the family's."
    )
    e2: Ellipticity | None = Field(
        None, description="The ellipticity of the lens along the diagonals. null: the family's."
    )
    lens_light: LensLight | None = Field(
        None,
        description="Light of the lensing galaxy, in Models II and III. null: none, as in the "
        "families' files.",
    )
    substructure_scale: float = Field(
        1.0,
        gt=0,
        le=100,
        description="A factor on the mass of substructure; 1/3 and 1/10 make hard sets.",
    )
    vortex: Vortex = Field(
        "points",
        description="How a vortex is computed. points: as 100 point masses, as the families' own "
        "generators do; rod: as their closed-form limit, which is faster.",
    )

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """Read the settings that a set recorded when it was made.

        A set that names no calibration is older than it: its words mean what they meant then.
        """
        if "calibration" in values:
            return cls(**values)
        defaults = {"exposure_s": 2260.0, "sky_mag": 22.35}
        kept = {name: value for name, value in values.items() if defaults.get(name) != value}
        if kept.get("noise") == "euclid":
            kept["noise"] = "deeplense_euclid"
        if kept.get("family") in _CALIBRATED:
            kept["calibration"] = "figures"
        return cls(**kept)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes drawn, in the family's order."""
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
        if self.calibration == "figures" and self.family not in _CALIBRATED:
            raise ValueError(f"calibration: figures is for common and sr, not {self.family}")
        if (self.e1 or 0) ** 2 + (self.e2 or 0) ** 2 >= 0.7**2:
            raise ValueError(
                "e1 and e2 together make an ellipticity of 0.7 or more: make the lens rounder"
            )
        if family.zero_point is None:
            for key, given in (
                (f"noise: {self.noise}", self.noise in SURVEYS),
                ("source_mag", self.source_mag is not None),
                ("lens_light", self.lens_light is not None),
            ):
                if given:
                    raise ValueError(
                        f"{key} needs a family with a magnitude zero point "
                        f"(model_ii or model_iii), not {self.family}"
                    )
        return self
