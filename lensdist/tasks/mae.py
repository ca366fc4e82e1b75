"""Pretraining of the masked autoencoder (task VI.A)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensdist import rng
from lensdist.config.schema import MaeRun
from lensdist.data.augment import augment
from lensdist.data.masks import good_pixels, image_means, pixel_weight
from lensdist.data.transforms import Preprocess
from lensdist.evaluate import metrics
from lensdist.models.config import masked_count
from lensdist.models.mae import MaskedAutoencoder, pixel_mask
from lensdist.models.masking import make_mask
from lensdist.tasks.base import Batch, Stage


class MaeTask:
    """Reconstruct images whose informative patches are hidden.

    Args:
        cfg: the run's configuration.
        labels: classes of the data; only recorded.
        preprocess: from disk to network.
    """

    name = "mae"

    def __init__(self, cfg: MaeRun, labels: tuple[str, ...], preprocess: Preprocess) -> None:
        self.cfg = cfg
        self.labels = labels
        self.preprocess = preprocess
        # What is trained is what chooses: under a loss of masked pixels nobody asked the rest to be
        # drawn, and its error says nothing.
        scored = "mse_masked" if cfg.loss == "masked" else "mse"
        self.select: tuple[str, Literal["min", "max"]] = (scored, "min")
        self._hidden = masked_count(cfg.mask, cfg.model.grid**2)
        # Evaluation hides the same patches at every step, so that scores can be compared.
        self._evaluation_key = rng.key(cfg.seed, "evaluation mask")

    def build(self) -> nn.Module:
        return MaskedAutoencoder(self.cfg.model)

    def stages(self, epochs: int) -> list[Stage]:
        return [Stage(epochs, ("",))]

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        batch = augment(self.cfg.augment, rng.key(key, "augment"), batch)
        image, mask, weight = self._masked(batch, rng.key(key, "mask"))
        error: Tensor = (model(image, mask, self._hidden) - image).square()
        if self.cfg.loss == "masked":
            hidden = pixel_mask(mask, self.cfg.model.patch_size).to(error.dtype)
            weight = hidden if weight is None else hidden * weight
        if weight is None:
            return error.mean()
        weight = weight.expand_as(error)
        return (error * weight).sum() / weight.sum().clamp_min(1e-12)

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        image, mask, weight = self._masked(batch, self._evaluation_key)
        error = (model(image, mask, self._hidden).float() - image).square()
        hidden = pixel_mask(mask, self.cfg.model.patch_size).expand_as(error).float()
        weight = torch.ones_like(error) if weight is None else weight.expand_as(error)
        return {
            "mse": image_means(error, weight),
            "mse_masked": image_means(error, weight * hidden),
            "range": image.amax((1, 2, 3)) - image.amin((1, 2, 3)),
        }

    def score(self, outputs: Batch) -> dict[str, Any]:
        scores = metrics.reconstruction(outputs["mse"], outputs["range"])
        return {**scores, "mse_masked": float(outputs["mse_masked"].double().mean())}

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.cfg.model.model_dump(mode="json"),
            "mask": self.cfg.mask.model_dump(mode="json"),
            "loss": self.cfg.loss,
        }

    def _masked(self, batch: Batch, key: int) -> tuple[Tensor, Tensor, Tensor | None]:
        weight = pixel_weight(batch)
        # What a bad pixel holds must reach neither the network nor the loss.
        image = self.preprocess(batch["image"], good_pixels(batch))
        mask = make_mask(image, self.cfg.model.patch_size, self.cfg.mask, key, batch["sample"])
        return image, mask, weight
