"""The base of every task's settings (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lensdist.data.config import PreprocessConfig
from lensdist.utils.settings import Strict

if TYPE_CHECKING:
    from lensdist.config.schema import BaseRun
    from lensdist.tasks.types import ReadExport

Shape = tuple[int, int, int]
"""Bands, height and width of an image."""
Choice = tuple[str, Literal["min", "max"]]
"""The name of a score, and which way is better."""


class TaskSettings(Strict):
    """The settings that a task adds to those of every run.

    A field `model` with the network's settings is expected; its `in_channels` and `image_size` say
    which images the network takes.
    """

    described: ClassVar[tuple[str, ...]] = ("model",)
    """The settings that an export keeps, for its scores and answers need them."""

    @property
    def selects(self) -> Choice:
        """The validation score that selects the best checkpoint, and which way is better."""
        raise NotImplementedError

    @property
    def image_shape(self) -> Shape:
        """The images on disk that the network takes."""
        model: Any = getattr(self, "model")  # noqa: B009, a field of the subclass
        return (model.in_channels, model.image_size, model.image_size)

    @property
    def pools_into_batchnorm(self) -> bool:
        """Whether BatchNorm sees one value an image, so that a micro-batch needs two images."""
        return False

    def starts_from(self) -> dict[str, Path | tuple[Path, ...]]:
        """The finished runs that training starts from, by the setting that names them."""
        return {}

    def named_weights(self) -> dict[str, Path]:
        """The weight files that training starts from, by the setting that names them."""
        return {}

    def check_preprocess(self, how: PreprocessConfig) -> None:
        """Refuse preprocessing that the task cannot use.

        Raises:
            ValueError: it cannot.
        """
        if how.scale == "lens_fit":
            raise ValueError("preprocess.scale: lens_fit is for task common")

    def check_run(self, run: BaseRun) -> None:
        """Refuse settings of the run that contradict the task's.

        Raises:
            ValueError: they do.
        """

    def remedy(self, shape: Shape, read: ReadExport) -> str | None:
        """Return what to change so that the network takes images of `shape`; None: it does.

        `read` reads the exports of finished runs that the settings name.
        """
        return None if shape == self.image_shape else self.fitting(shape)

    def fitting(self, shape: Shape, *more: str) -> str:
        """The sentence that names the settings for images of another shape.

        Args:
            shape: of the images on disk.
            more: settings to name besides, as `key=value`.
        """
        bands, height, width = shape
        if height != width or height < 8:
            return (
                "no network here takes them: cut the images to squares of 8 pixels a side or more, "
                "and pack them again"
            )
        words = [f"model.in_channels={bands}", f"model.image_size={height}", *more]
        patch = getattr(getattr(self, "model", None), "patch_size", None)
        if patch and height % patch and not any("patch_size" in word for word in more):
            sizes = [p for p in range(2, height // 2 + 1) if height % p == 0]
            if not sizes:
                return (
                    f"no patch size divides {height}: cut or pad the images to another size, and "
                    "pack them again"
                )
            words.append(f"model.patch_size={min(sizes, key=lambda p: abs(p - patch))}")
        return f"set {' '.join(words)}"
