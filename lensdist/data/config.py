"""Settings of what a run eats (torch-free)."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Count, Positive, Strict
from lensdist.sim.config import SimConfig

LIGHT_KEEPING = ("minmax", "standard", "none")
"""Values of `preprocess.scale` that move and stretch all pixels of an image alike."""


class DataConfig(Strict):
    """Where images come from."""

    path: Path | None = Field(
        None, description="a packed set (see `lensdist pack`); null: simulate one into the run"
    )
    source: Literal["packed", "stream"] = Field(
        "packed", description="stream: train on images simulated as they are needed, never twice"
    )
    sim: SimConfig | None = Field(
        None, description="what to simulate, for the stream or for a set of the run's own"
    )
    n_per_class: Count = Field(200, ge=10, description="images per class of a set of the run's own")
    stream_epoch: Count = Field(30_000, description="images that count as one epoch of the stream")
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="train and validate on these classes only (null: all)"
    )
    labels_per_class: Count | None = Field(
        None, description="train on this many images per class, drawn by the seed"
    )
    train_images: Count | None = Field(
        None, description="train on this many images of any class, drawn by the seed"
    )
    resident: Literal["auto", "yes", "no"] = Field(
        "auto", description="keep the set in device memory; auto: on a GPU that has room for it"
    )

    verify: Literal["auto", "full", "off"] = Field(
        "auto",
        description="hashing of the set's large arrays: auto, once for as long as the files do not "
        "change, and more than 4 GB in the background; full, at every start; off, never",
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if len(set(self.classes or ())) != len(self.classes or ()):
            raise ValueError("classes must name each class once")
        if self.path is None and self.sim is None:
            raise ValueError("needs `path` (a packed set) or `sim` (what to simulate)")
        if self.source == "stream" and self.sim is None:
            raise ValueError("source: stream needs `sim` (what to simulate)")
        for key in ("labels_per_class", "train_images"):
            if self.source == "stream" and getattr(self, key) is not None:
                raise ValueError(f"{key} has no meaning on a stream, which never repeats")
        if self.labels_per_class is not None and self.train_images is not None:
            raise ValueError("labels_per_class and train_images: give one of them")
        return self


class PreprocessConfig(Strict):
    """From the units found on disk to what the network sees; part of the exported model."""

    scale: Literal["minmax", "standard", "asinh", "residual", "lens_fit", "none"] = Field(
        "minmax",
        description="minmax: each image to 0..1; standard: (x - mean)/std of the train split; "
        "asinh: asinh(x/std/softening), for faint features beside bright arcs; residual: what "
        "principal components of smooth images leave, as asinh(residual/rms/softening); lens_fit: "
        "what the smooth lens that fits best leaves, in units of the noise, and that lens, at half "
        "the resolution (150 px images as of the common task); none",
    )
    softening: Positive = Field(
        0.1,
        description="asinh and residual are linear below this many train-split standard deviations",
    )
    components: Count = Field(120, description="residual: principal components taken off")
    smooth_class: str | None = Field(
        None, description="residual: the class whose images are smooth; null: all images"
    )

    def seen(self, bands: int, size: int) -> tuple[int, int]:
        """Bands and pixels a side of what the network sees of an image on disk."""
        return (2, size // 2) if self.scale == "lens_fit" else (bands, size)


class AugmentConfig(Strict):
    """Applied in training only, drawn from (seed, epoch, sample)."""

    rot180: bool = Field(
        True,
        description="rotation by 180 degrees: the only one that leaves the simulated "
        "distributions exactly unchanged (one shear axis, fixed source ellipticity)",
    )
    flip: bool = Field(False, description="left-right flip; an ablation")
    rot90: bool = Field(False, description="any quarter turn; an ablation")
