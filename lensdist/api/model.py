"""A trained model, ready to use, on arrays or on files.

>>> m = lensdist.load("runs/demo/finetune")
>>> m.predict(images)["probs"]        # images in the units found on disk
>>> m.predict("new-images")["file"]   # or their files
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lensdist.data.reading.folders import Passed
from lensdist.data.reading.raw import BadFile
from lensdist.data.reading.readers import ONLY
from lensdist.export.artifact import read_export
from lensdist.export.model import Images, LoadedModel
from lensdist.inference.frames import read_item
from lensdist.inference.inputs import Input, find, together
from lensdist.inference.predict import wanted_by
from lensdist.utils.errors import UserError
from lensdist.utils.files import printable
from lensdist.utils.plugins import trust as trust_modules


class Model(LoadedModel):
    """A trained model that takes images, or the paths of their files.

    In place of an array, each method takes the path of an image file, a folder or a pattern, or
    several of them. Images that are not of the trained size and pixel scale are resampled and cut,
    as by `lensdist predict`. The order is that of the paths, and in a folder that of the names.
    """

    def predict(
        self, x: Images, batch: int = 256, good: npt.ArrayLike | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Apply the model to images or files; see `LoadedModel.predict`.

        For files, the answer also has `file` (N,), their paths.

        Raises:
            UserError: a file cannot be read, or the images are not all of one shape.
            ValueError: as `LoadedModel.predict`.
        """
        found = super().predict(x, batch, good)
        if (files := _files(x)) is not None:
            found = {"file": np.array([str(one.path) for one in files]), **found}
        return found

    def read(self, x: Images) -> npt.NDArray[np.float32]:
        """Return the images of files as the model takes them: (N, C, H, W), NaN where one is bad.

        Raises:
            UserError: a file cannot be read, or the images are not all of one shape.
        """
        files = _files(x)
        if files is None:
            raise UserError("read takes the paths of image files, of folders or patterns")
        wanted = None if self.does.draws else wanted_by(self)
        images = []
        for one in files:
            try:
                item = read_item(one, False, ONLY, wanted)
            except BadFile as error:
                raise UserError(f"{printable(one.path)}: {error}") from error
            image = item.reading.image
            images.append(image if item.bad is None else np.where(item.bad, np.nan, image))
        if len({image.shape for image in images}) > 1:
            raise UserError("the files hold images of several shapes; give those of one at a time")
        return np.stack(images).astype(np.float32)

    def _given(self, x: Any, good: npt.ArrayLike | None) -> tuple[Tensor, Tensor | None]:
        if _files(x) is None:
            return super()._given(x, good)
        if good is not None:
            raise ValueError("good is for arrays; files say themselves which pixels are bad")
        images = self.read(x)
        known = np.isfinite(images)
        return super()._given(images, None if known.all() else known)


def _files(x: Any) -> list[Input] | None:
    """Return the files that are meant; None: `x` is an array."""
    words = [x] if isinstance(x, str | os.PathLike) else x
    if isinstance(words, np.ndarray) and words.dtype.kind == "U":  # as `predict` returns them
        words = words.tolist()
    if not (isinstance(words, list | tuple) and words):
        return None
    if not all(isinstance(word, str | os.PathLike) for word in words):
        return None
    found = find([os.fspath(word) for word in words], Path(os.devnull))
    return together(found, (), Passed())[0]


def load(
    path: str | os.PathLike[str], device: str = "cpu", trust: str | Sequence[str] = ()
) -> Model:
    """Load a finished run or an export.

    Args:
        path: its folder.
        device: torch's name of one.
        trust: modules of tasks and networks that are not lensdist's own, such as `mylab.masses`.
            They are code, and are run only if they are named here.

    Raises:
        UserError: there is none, it is damaged, or it needs a module that is not named.
    """
    trust_modules(*([trust] if isinstance(trust, str) else trust))
    return Model(*read_export(Path(path)), device)
