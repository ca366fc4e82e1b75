"""Settings of data, scaling and augmentation (torch-free)."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lensdist.sim.config import FamilyName, SimConfig
from lensdist.utils.settings import Count, Positive, Strict

PREPROCESS = "preprocess."
"""Prefix of the preprocessing's own tensors among the weights of an export."""
LIGHT_KEEPING = ("minmax", "standard", "none")
"""Values of `preprocess.scale` that shift and stretch all pixels of an image alike."""


class DataConfig(Strict):
    """Settings of the images that a run trains on."""

    path: Path | None = Field(
        None,
        description="The folder of a packed set, which `lensdist pack` makes. null: the run "
        "simulates a set of its own with `sim`.",
    )
    source: Literal["packed", "stream"] = Field(
        "packed",
        description="Where training images come from. packed: a packed set; stream: images that "
        "are simulated while training and never repeat.",
    )
    sim: SimConfig | None = Field(
        None,
        description="The settings of the simulator, for a stream or for a set of the run's own.",
    )
    n_per_class: Count = Field(
        200,
        ge=10,
        description="The number of images of each class in a set of the run's own. The default "
        "takes about a minute on a CPU core.",
    )
    stream_epoch: Count = Field(
        30_000,
        description="The number of images that count as one epoch of a stream. The default is "
        "about the size of one class of the public sets.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="The classes to train and validate on, in label order. null: all classes.",
    )
    labels_per_class: Count | None = Field(
        None,
        description="The number of labelled images of each class; the seed draws them. null: all.",
    )
    train_images: Count | None = Field(
        None,
        description="The number of images of any class; the seed draws them. null: all.",
    )
    balance: Literal["none", "classes"] = Field(
        "none",
        description="How often an epoch shows each class. none: as often as it has images; "
        "classes: all equally often, so that images of a rare class repeat within an epoch and "
        "those of a common one take turns over epochs. Validation and test are not changed.",
    )
    choose_with: Annotated[int, Field(ge=0, le=10**12)] | Literal["split"] = Field(
        0,
        description="How many of `labels_per_class` (of each class) or of `train_images` choose "
        "among weights, as validation images, rather than train. 0: none, so the last weights "
        "count; split: the whole validation split chooses, beyond that number.",
    )
    resident: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Keep the set in device memory, which saves a copy per batch. auto: on a GPU "
        "whose free memory holds it.",
    )
    verify: Literal["auto", "full", "off"] = Field(
        "auto",
        description="When to check the hashes of the set's large arrays. auto: once for as long as "
        "the files do not change, and more than 4 GB in the background; full: at every start; "
        "off: never.",
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
        if self.source == "stream" and self.balance != "none":
            raise ValueError("balance has no meaning on a stream, whose classes are equally common")
        if self.labels_per_class is not None and self.train_images is not None:
            raise ValueError("labels_per_class and train_images: give one of them")
        if self.held_back and self.held_back >= (self.labels_per_class or self.train_images or 0):
            key = self.limited or "labels_per_class or train_images, which it is a part of"
            raise ValueError(f"choose_with: {self.held_back} needs more images in {key}")
        return self

    @property
    def limited(self) -> str:
        """The setting that limits the images, or ''."""
        if self.labels_per_class is not None:
            return "labels_per_class"
        return "" if self.train_images is None else "train_images"

    @property
    def held_back(self) -> int:
        """The images of the limited number (of each class) that choose rather than train."""
        return 0 if self.choose_with == "split" else self.choose_with


class PreprocessConfig(Strict):
    """Settings of the scaling of pixels, which are part of the exported model."""

    scale: Literal["minmax", "standard", "asinh", "residual", "lens_fit", "none"] = Field(
        "minmax",
        description="How pixels are scaled. minmax: each image to 0..1; standard: (x - mean)/std, "
        "both of the train split; asinh: asinh(x/std/softening), for faint features beside bright "
        "arcs; residual: asinh(r/rms/softening), where r is the image without its smooth part, the "
        "principal components of smooth images (in units of its flux, if `shift` is set); "
        "lens_fit: what the best-fitting smooth lens leaves, in units of the noise, and that lens, "
        "both at half the resolution (only for the common task's images of 150 pixels); none: not "
        "at all.",
    )
    softening: Positive = Field(
        0.1,
        description="The width of the linear part of asinh and residual, in standard deviations of "
        "the train split. Smaller values compress bright pixels more.",
    )
    components: Count = Field(
        120,
        description="The number of principal components that residual takes off.",
    )
    smooth_class: str | None = Field(
        None,
        description="The class whose images define the smooth part of residual, where no simulated "
        "family does. null: all images.",
    )
    shift: int | None = Field(
        None,
        ge=0,
        le=16,
        description="The largest shift of an image, in pixels, that residual fits together with "
        "the image's flux and offset. Fractions of a pixel are fitted too; a shift may be 1 less. "
        "null: it fits none of the three, so that images must have the unit and the place of the "
        "training images.",
    )
    family: FamilyName | None = Field(
        None,
        description="The family whose simulated smooth lenses define the smooth part of residual, "
        "where `shift` is set. null: the one that the packed set was simulated as; for other sets, "
        "their own training images of `smooth_class` define it.",
    )

    def seen(self, bands: int, size: int) -> tuple[int, int]:
        """Return the bands and the pixels per side that the network sees of an image on disk."""
        return (2, size // 2) if self.scale == "lens_fit" else (bands, size)


class AugmentConfig(Strict):
    """Settings of the turns of training images, drawn from (seed, epoch, sample)."""

    rot180: bool = Field(
        True,
        description="Rotate images by 180 degrees, at random. No other turn leaves the simulated "
        "distributions unchanged, which have one shear axis and a fixed source ellipticity.",
    )
    flip: bool = Field(
        False,
        description="Mirror images left to right, at random. Off, as it changes the distributions.",
    )
    rot90: bool = Field(
        False,
        description="Rotate images by quarter turns, at random. Off, as it changes the "
        "distributions.",
    )
