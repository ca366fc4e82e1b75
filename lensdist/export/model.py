"""A trained model, ready to use.

>>> m = lensdist.load("runs/demo/finetune")
>>> m.predict(images)["probs"]        # images in the units found on disk
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lensdist.export.artifact import read_export
from lensdist.export.description import build, network_weights
from lensdist.export.likeness import image_numbers, watched
from lensdist.export.several import restored
from lensdist.utils.errors import UserError
from lensdist.utils.plugins import trust as trust_modules


class LoadedModel:
    """A trained model that takes images in the units found on disk.

    Attributes:
        task: the name of its task, such as `finetune`.
        does: the task itself (`lensdist.tasks.base.Task`).
        labels: class names in the order of the logits.
        description: all of `config.json`.
        network: the network itself, in eval mode.
        likeness: tells images that are unlike the training images; None: the export does not know.
    """

    def __init__(
        self,
        description: dict[str, Any],
        weights: dict[str, Tensor],
        device: str,
        *,
        thorough: bool = False,
    ) -> None:
        try:
            self.does, self.network = build(description, weights, thorough=thorough)
            self.likeness = restored(description.get("likeness"), weights)
        except ValueError as e:
            raise UserError(f"config.json does not describe a network: {e}") from e
        # An older description lacks newer settings; they have their defaults here.
        model = self.does.cfg.model.model_dump(mode="json")
        self.description = {**description, "model": model}
        self.device = torch.device(device)
        self.task: str = description["task"]
        self.labels: tuple[str, ...] = self.does.labels
        self.preprocess = self.does.preprocess
        own = network_weights(weights)
        floats = {k: v.float() if v.is_floating_point() else v for k, v in own.items()}
        self.network.load_state_dict(floats, assign=True)
        self.network.to(self.device).eval()

    @torch.no_grad()
    def predict(
        self, x: npt.ArrayLike, batch: int = 256, good: npt.ArrayLike | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Apply the model.

        Args:
            x: (N, H, W) or (N, C, H, W), in the units found on disk.
            batch: images, or tiles of frames, at a time; it changes the result only by rounding.
            good: bool, of the shape of `x`; false where a pixel is bad, which is treated as in
                training.

        Returns:
            The task's answer. Classifier: `logits` and `probs` (N, classes). MAE: `recon`
            (N, C, H, W) in the units of `x`, and `mask` (N, patches), true = hidden from the
            encoder. Super-resolution of frames of any size, by a factor f: `image`
            (N, C, f H, f W) in the units of `x` and, if the model predicts it, `sigma` of its
            pixels; NaN where `x` is bad. Where the preprocessing measures the images
            (`scale: lens_fit`, `residual`), there are also its columns, (N,) each. `unlike` (N,) is
            above 1 for images unlike the training images, and `flag` (N,) bool true for these, and
            for those with a column beyond its limits; both only if the export can tell.

        Raises:
            ValueError: `x` is not images, or not of the size that the model was trained on.
        """
        masks = None
        if good is not None:
            masks = self._masks(good, np.shape(x))
            x = np.where(good, x, 0)  # bad pixels may hold NaN
        images = self._checked(x)
        parts = []
        for first in range(0, len(images), batch):
            some = slice(first, first + batch)
            mask = None if masks is None else masks[some].view(images[some].shape).to(self.device)
            raw = images[some].to(self.device)
            parts.append(self._predict(raw, mask, batch))
        return {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}

    def _predict(self, raw: Tensor, good: Tensor | None, batch: int) -> dict[str, Tensor]:
        """Return the task's answer, and how unlike the training images these images are."""
        layers = None if self.likeness is None else self.does.compared(self.network)
        if self.likeness is None or layers is None:
            return self.does.predict(self.network, raw, good, batch)
        with watched(self.network, layers) as record:
            found = self.does.predict(self.network, raw, good, batch)
        vectors = record.vectors(len(raw))
        if vectors is None:
            return found
        vectors["image"] = image_numbers(raw, good)
        unlike = self.likeness.unlike(vectors).to(raw.device)
        flag = found.get("flag", torch.zeros_like(unlike, dtype=torch.bool))
        return {**found, "unlike": unlike, "flag": flag | (unlike > 1)}

    def _masks(self, good: npt.ArrayLike, shape: tuple[int, ...]) -> Tensor:
        if self.preprocess.slow:
            raise ValueError("this model fits a lens to the whole image: no pixel may be bad")
        array = np.asarray(good)
        if array.dtype.kind != "b" or array.shape != shape:
            raise ValueError(
                f"good must be bool of shape {shape}, not {array.dtype} of {array.shape}"
            )
        return torch.from_numpy(np.ascontiguousarray(array))

    def _checked(self, x: npt.ArrayLike) -> Tensor:
        array = np.asarray(x)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"images must be real numbers, not {array.dtype}")
        if array.ndim == 3:
            array = array[:, None]
        bands, size, _ = self.does.cfg.image_shape
        if self.does.any_size:
            least = min(8, size)
            if (
                array.ndim != 4
                or array.shape[1] != bands
                or min(array.shape) < 1
                or (min(array.shape[2:]) < least)
            ):
                raise ValueError(
                    f"frames of shape {np.shape(x)} do not fit a model of {bands} band(s); give "
                    f"(N, H, W) or (N, {bands}, H, W), H and W at least {least}"
                )
        elif array.ndim != 4 or array.shape[1:] != (bands, size, size) or not len(array):
            raise ValueError(
                f"images of shape {np.shape(x)} do not fit a model of {bands} band(s) and "
                f"{size}x{size} pixels; give (N, {size}, {size}) or (N, {bands}, {size}, {size})"
            )
        with np.errstate(over="ignore"):  # infinite values are refused below
            array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            raise ValueError("images hold NaN or infinite pixels; mask or fill them first")
        blank = np.flatnonzero(array.max((1, 2, 3)) == array.min((1, 2, 3)))
        if self.preprocess.slow and len(blank):
            raise ValueError(f"image {blank[0]} is blank (all pixels are equal): no lens fits it")
        return torch.from_numpy(array)


def load(
    path: str | os.PathLike[str], device: str = "cpu", trust: str | Sequence[str] = ()
) -> LoadedModel:
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
    return LoadedModel(*read_export(Path(path)), device)
