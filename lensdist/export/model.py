"""A trained model, ready to use.

>>> m = lensdist.load("runs/demo/finetune")
>>> m.predict(images)["probs"]        # images in the units found on disk
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensdist.export.description import build, network_weights
from lensdist.export.likeness import image_numbers, watched
from lensdist.export.several import restored
from lensdist.utils.errors import UserError

Images = npt.ArrayLike | os.PathLike[str] | Sequence[os.PathLike[str]]
"""Images as an array; `lensdist.api.Model` takes the paths of their files, too."""


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

    def __repr__(self) -> str:
        bands, height, width = self.does.cfg.image_shape
        how = self.description.get("metrics") or {}
        chosen = str(how.get("selected_by", "not known"))
        if isinstance(value := how.get("val"), int | float):
            chosen += f" {value:.4g}, step {how.get('step')}"
        lines = [
            f"lensdist model of task {self.task}, preset {self.description.get('preset')}",
            f"  classes     {', '.join(self.labels) or 'none'}",
            f"  images      {bands} x {height} x {width}, scale {self.preprocess.cfg.scale}",
            f"  chosen by   {chosen}",
            f"  parameters  {sum(p.numel() for p in self.network.parameters()):,}",
        ]
        return "\n".join(lines)

    @torch.no_grad()
    def predict(
        self, x: Images, batch: int = 256, good: npt.ArrayLike | None = None
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
        given = self._given(x, good)
        parts = [self._predict(raw, mask, batch) for raw, mask in self._batches(*given, batch)]
        return {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}

    @torch.no_grad()
    def embed(
        self, x: Images, batch: int = 256, good: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.float32]:
        """Compute what the network knows of images before it answers: (N, D).

        Classifiers and `mass`: what enters the head, for an ensemble the members' side by side.
        MAE and super-resolution: the mean of the encoder's tokens, with nothing hidden. A task of
        your own: what enters the last linear layer, unless it has a method `embed`.

        Args:
            x, batch, good: as for `predict`; all images are of the trained size.

        Raises:
            UserError: the task has no features.
            ValueError: as `predict`.
        """
        return self._each(self.does.embed, x, batch, good, "features").numpy()

    def attention(
        self, x: Images, batch: int = 64, good: npt.ArrayLike | None = None
    ) -> npt.NDArray[np.float32]:
        """Compute where the network looks in images: (N, H, W), from 0 to 1, which is the most.

        Vision transformers: attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928).
        Convolutional networks: Grad-CAM of the largest output, a classifier's most probable class
        (Selvaraju et al. 2017, arXiv:1610.02391). An ensemble: the mean of its members. The map is
        of the network's input: where the preprocessing shifts images, it is shifted as they are.

        Args:
            x, batch, good: as for `embed`.

        Raises:
            UserError: the network is neither, and the task does not say (`Task.attention`).
            ValueError: as `predict`.
        """
        found = self._each(self.does.attention, x, batch, good, "map of where it looks")
        size = self.does.cfg.image_shape[1:]
        return F.interpolate(found[:, None], size, mode="bilinear")[:, 0].numpy()

    def _each(
        self,
        work: Callable[[nn.Module, Tensor], Tensor | None],
        x: Images,
        batch: int,
        good: npt.ArrayLike | None,
        what: str,
    ) -> Tensor:
        """Return what a method of the task computes of preprocessed images, for all of them."""
        images, masks = self._given(x, good)
        if images.shape[1:] != self.does.cfg.image_shape:
            raise ValueError(f"give images of the trained size, {self.does.cfg.image_shape[1:]}")
        parts = []
        for raw, mask in self._batches(images, masks, batch):
            with torch.no_grad():
                seen = self.does.examined(raw, mask)[0]
            found = work(self.network, seen)
            if found is None:
                raise UserError(
                    f"task {self.task} has no {what} for this network; its class can define one "
                    "(docs/add-a-task.md)"
                )
            parts.append(found.float().cpu())
        return torch.cat(parts)

    def _given(self, x: Any, good: npt.ArrayLike | None) -> tuple[Tensor, Tensor | None]:
        """Return checked images (N, C, H, W), and which of their pixels are good."""
        masks = None
        if good is not None:
            masks = self._masks(good, np.shape(x))
            x = np.where(good, x, 0)  # bad pixels may hold NaN
        images = self._checked(x)
        return images, None if masks is None else masks.view(images.shape)

    def _batches(
        self, images: Tensor, masks: Tensor | None, batch: int
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        for first in range(0, len(images), batch):
            some = slice(first, first + batch)
            yield (
                images[some].to(self.device),
                None if masks is None else masks[some].to(self.device),
            )

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

    def _checked(self, x: Any) -> Tensor:
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
