"""A trained model in use.

>>> m = lensdist.load("runs/demo/finetune")
>>> m.predict(images)["probs"]        # images in the units found on disk
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lensdist.described import PREPROCESS, build
from lensdist.errors import UserError
from lensdist.export import read_export
from lensdist.models.mae import pixel_mask
from lensdist.models.masking import make_mask
from lensdist.models.resample import enlarge
from lensdist.models.tiling import tiled


class LoadedModel:
    """A trained model that takes images in the units found on disk.

    Attributes:
        task: `mae`, `finetune`, `common` or `sr`.
        labels: class names in the order of the logits.
        description: all of `config.json`.
        network: the network itself, in eval mode.
    """

    def __init__(
        self, description: dict[str, Any], weights: dict[str, Tensor], device: str
    ) -> None:
        try:
            built = build(description, weights)
        except ValueError as e:
            raise UserError(f"config.json does not describe a network: {e}") from e
        # What a description from before a setting existed leaves out is told too.
        self.description = {**description, "model": built.cfg.model_dump(mode="json")}
        self.device = torch.device(device)
        self.task: str = description["task"]
        self.labels: tuple[str, ...] = tuple(description["labels"])
        self.preprocess, self.mask, self.network = built.preprocess, built.mask, built.network
        own = {k: v for k, v in weights.items() if not k.startswith(PREPROCESS)}
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
            batch: images, or tiles of frames, at a time; the result does not depend on it beyond
                rounding.
            good: bool, of the shape of `x`: false where a pixel is bad, and counts as in training.

        Returns:
            Classifier: `logits` and `probs` (N, classes). MAE: `recon` (N, C, H, W) in the units
            of `x`, and `mask` (N, patches), true = hidden from the encoder. Super-resolution of
            frames of any size, by a factor f: `image` (N, C, f H, f W) in the units of `x` and,
            where the model draws it, `sigma` of its pixels; NaN where `x` is bad.

        Raises:
            ValueError: not such images, or not of the size that the model was trained on.
        """
        masks = None
        if good is not None:
            masks = self._masks(good, np.shape(x))
            x = np.where(good, x, 0)  # what a bad pixel holds may be no number
        images = self._checked(x)
        parts = []
        for first in range(0, len(images), batch):
            some = slice(first, first + batch)
            mask = None if masks is None else masks[some].view(images[some].shape).to(self.device)
            parts.append(self._batch(images[some].to(self.device), mask, batch))
        return {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}

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
        size, bands = (self.description["model"][k] for k in ("image_size", "in_channels"))
        if self.task == "sr":
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
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite from here on
            array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            raise ValueError("images hold NaN or infinite pixels; mask or fill them first")
        blank = np.flatnonzero(array.max((1, 2, 3)) == array.min((1, 2, 3)))
        if self.preprocess.slow and len(blank):
            raise ValueError(f"image {blank[0]} is blank: there is no lens to fit in it")
        return torch.from_numpy(array)

    def _batch(self, raw: Tensor, good: Tensor | None, batch: int) -> dict[str, Tensor]:
        x = self.preprocess(raw, good)
        if self.task == "sr":
            return self._enlarged(x, raw, good, batch)
        if self.task != "mae":
            logits = self.network(x)
            return {"logits": logits, "probs": logits.softmax(1)}
        drawn, mask = self.reconstruct(x)
        return {"recon": self.preprocess.inverse(drawn, raw, good), "mask": mask}

    def _enlarged(
        self, x: Tensor, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        size, factor = (self.description["model"][k] for k in ("image_size", "factor"))
        drawn = tiled(self.network, x, size, factor, batch)
        image, *ln_sigma = torch.split(drawn, x.shape[1], 1)
        found = {"image": self.preprocess.inverse(image, raw, good)}
        if ln_sigma:
            found["sigma"] = ln_sigma[0].exp() * self.preprocess.unit(raw, good)
        if good is not None:
            found = {
                name: torch.where(enlarge(good, factor), value, torch.nan)
                for name, value in found.items()
            }
        return found

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a masked autoencoder makes of preprocessed images (N, C, H, W), and its mask.

        Trained on hidden pixels only, what it draws of the others means nothing: those are `x`'s.
        """
        patch = self.description["model"]["patch_size"]
        # One draw for all: what is hidden must not depend on an image's place among others.
        samples = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        mask = make_mask(x, patch, self.mask, 0, samples)
        drawn = self.network(x, mask)
        if self.description.get("loss") == "masked":
            drawn = torch.where(pixel_mask(mask, patch), drawn, x)
        return drawn, mask


def load(path: str | os.PathLike[str], device: str = "cpu") -> LoadedModel:
    """Load a finished run or an export.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return LoadedModel(*read_export(Path(path)), device)
