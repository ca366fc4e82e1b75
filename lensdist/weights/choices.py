"""Options of `import` for facts that a weight file does not hold (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lensdist.utils.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The mean and standard deviation of ImageNet's images, with values from 0 to 1."""

RECIPE_SIZE = 150  # pixels a side of the common task's images
RECIPE_RESIZE = 224


@dataclass(frozen=True)
class Choices:
    """The options of `import`. None: the recipe's value is assumed and reported.

    Attributes:
        labels: the classes in the order of the outputs.
        size: the pixels a side of the images on disk.
        resize: the pixels a side that torchvision's networks see; 0: as on disk.
        bands: the bands of the images on disk.
        preprocess: the scaling of the numbers on disk.
        mean, std: subtracted and divided by after that; one number, or one per band of the network.
    """

    labels: tuple[str, ...] | None = None
    size: int | None = None
    resize: int | None = None
    bands: int | None = None
    preprocess: Literal["none", "minmax", "imagenet"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def normalisation(self, seen: int) -> tuple[list[float], list[float]] | None:
        """Return the mean and standard deviation of the network's `seen` bands; None: neither.

        Raises:
            UserError: the options contradict each other or the network.
        """
        mean, std = self.mean, self.std
        if (mean is None) != (std is None):
            raise UserError("--mean and --std need each other; give both or neither")
        if self.preprocess == "imagenet":
            if mean is not None:
                raise UserError(
                    "--preprocess imagenet has its own mean; leave out --mean and --std"
                )
            if seen != 3:
                raise UserError(
                    f"--preprocess imagenet is for 3 bands, but the network sees {seen}; give "
                    "--mean and --std"
                )
            mean, std = IMAGENET
        if mean is None or std is None:
            return None
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, seen):
                raise UserError(
                    f"--{name} holds {len(values)} numbers, but the network sees {seen} bands; "
                    f"give one number or {seen}"
                )
        wide = [[*values] * seen if len(values) == 1 else [*values] for values in (mean, std)]
        return wide[0], wide[1]

    def scale(self, recipe: Literal["none", "minmax"]) -> Literal["none", "minmax"]:
        """Return the `scale` of `PreprocessConfig`; `recipe` is that of the recipe's networks."""
        return "none" if self.preprocess == "imagenet" else self.preprocess or recipe

    def assumed(self, seen: int, bands: int, recipe: str, labels: tuple[str, ...]) -> list[str]:
        """Return a line for each option that was not given, with the assumed value."""
        found = []
        if self.labels is None and labels:
            found.append(f"--labels {','.join(labels)}: the recipe's, in this order")
        if self.preprocess is None:
            does = "each image scaled to 0..1" if recipe == "minmax" else "the numbers on disk"
            found.append(f"--preprocess {recipe}: {does}, as in the recipe")
        if self.mean is None and self.preprocess != "imagenet":
            found.append("no --mean and --std: images are not normalised")
        if self.preprocess == "imagenet":
            found.append("numbers on disk from 0 to 1, as for ImageNet's mean and deviation")
        if self.bands is None:
            more = ", repeated three times" if bands < seen else ""
            found.append(f"--bands {bands}: bands of the images on disk{more}")
        return found
