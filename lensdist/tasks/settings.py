"""The base of every task's settings (torch-free)."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from lensdist.data.config import PreprocessConfig
from lensdist.utils.settings import Strict

if TYPE_CHECKING:
    from lensdist.config.schema import BaseRun
    from lensdist.tasks.types import ReadExport

Shape = tuple[int, int, int]
"""The bands, height and width of an image."""
Choice = tuple[str, Literal["min", "max"]]
"""The name of a score, and whether its minimum or maximum is best."""


class Remedy(NamedTuple):
    """How a network can take images of another shape: by `settings`, or not, for a `reason`."""

    settings: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        """Return what to do, as the end of a sentence."""
        return self.reason or f"set {' '.join(self.settings)}"


class TaskSettings(Strict):
    """The settings that a task adds to those of every run.

    A subclass has a field `model` with the network's settings, whose `in_channels` and
    `image_size` decide which images the network takes.
    """

    described: ClassVar[tuple[str, ...]] = ("model",)
    """The settings that an export keeps because scores and predictions need them."""

    @property
    @abstractmethod
    def selects(self) -> Choice:
        """The validation score that selects the best checkpoint."""

    @property
    def image_shape(self) -> Shape:
        """The shape of the images on disk that the network takes."""
        model: Any = getattr(self, "model")  # noqa: B009, a field of the subclass
        return (model.in_channels, model.image_size, model.image_size)

    @property
    def pools_into_batchnorm(self) -> bool:
        """Whether BatchNorm sees one value per image, so that a micro-batch needs two images."""
        return False

    def starts_from(self) -> dict[str, Path | tuple[Path, ...]]:
        """Return the finished runs that training starts from, by the setting that names them."""
        return {}

    def named_weights(self) -> dict[str, Path]:
        """Return the weight files that training starts from, by the setting that names them."""
        return {}

    def check_preprocess(self, how: PreprocessConfig) -> None:
        """Check that the task can use the preprocessing.

        Raises:
            ValueError: it cannot.
        """
        if how.scale == "lens_fit":
            raise ValueError("preprocess.scale: lens_fit is for task common")

    def check_run(self, run: BaseRun) -> None:
        """Check the settings of the run against the task's.

        Raises:
            ValueError: they contradict each other.
        """

    def remedy(self, shape: Shape, read: ReadExport) -> Remedy | None:
        """Return how to make the network take images of `shape`; None if it does.

        `read` reads the exports of finished runs that the settings name.
        """
        return None if shape == self.image_shape else self.fitting(shape)

    def fitting(self, shape: Shape, *more: str) -> Remedy:
        """Return the settings for images of another shape.

        Args:
            shape: the shape of the images on disk.
            more: further settings to name, as `key=value`.
        """
        bands, height, width = shape
        if height != width or height < 8:
            return Remedy(
                reason="no network of lensdist takes them: pack them again as squares of 8 or more "
                "pixels a side (`lensdist pack --crop N`, or --pad N)"
            )
        words = [f"model.in_channels={bands}", f"model.image_size={height}", *more]
        patch = getattr(getattr(self, "model", None), "patch_size", None)
        if patch and height % patch and not any("patch_size" in word for word in more):
            sizes = [p for p in range(2, height // 2 + 1) if height % p == 0]
            if not sizes:
                return Remedy(
                    reason=f"no patch size divides {height}: pack them again with another size "
                    "(`lensdist pack --crop N`, or --pad N)"
                )
            words.append(f"model.patch_size={min(sizes, key=lambda p: abs(p - patch))}")
        return Remedy(tuple(words))
