"""Super-resolution with the MAE's encoder (task VI.B)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lensdist import rng
from lensdist.config.schema import SuperResolutionRun
from lensdist.data.augment import augment
from lensdist.data.masks import good_pixels, image_means, pixel_weight
from lensdist.data.transforms import Preprocess
from lensdist.evaluate import super_resolution
from lensdist.models.resample import enlarge
from lensdist.models.super_resolution import SuperResolver
from lensdist.tasks.base import Batch, Stage


class SuperResolutionTask:
    """Draw the large image from the small one.

    HR is measured by LR's scale: scaled by its own range it would lose the flux that both share.

    Args:
        cfg: the run's configuration.
        labels: classes of the data; only recorded.
        preprocess: from disk to network; the pretraining's own where there is an encoder.
        encoder: the pretrained encoder's weights, by name; None: random ones.
        thorough: also score SSIM, which takes longer than the network does.
    """

    name = "sr"
    select: tuple[str, Literal["min", "max"]] = ("error", "min")

    def __init__(
        self,
        cfg: SuperResolutionRun,
        labels: tuple[str, ...],
        preprocess: Preprocess,
        encoder: dict[str, Tensor] | None,
        *,
        thorough: bool = False,
    ) -> None:
        self.cfg = cfg
        self.labels = labels
        self.preprocess = preprocess
        self._encoder = encoder
        self._thorough = thorough

    def build(self) -> nn.Module:
        model = SuperResolver(self.cfg.model)
        if self._encoder is not None:
            model.encoder.load_state_dict(self._encoder)
        return model

    def stages(self, epochs: int) -> list[Stage]:
        # Freezing a random encoder would only waste epochs: from scratch everything trains.
        frozen = min(self.cfg.frozen_epochs, epochs) if self._encoder is not None else 0
        stages = [Stage(frozen, ("decoder.",)), Stage(epochs - frozen, ("",))]
        return [s for s in stages if s.epochs]

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        batch = augment(self.cfg.augment, rng.key(key, "augment"), batch)
        drawn, wanted, seen, weight = self._drawn(model, batch)
        loss = image_means(self._error(drawn, wanted, seen), weight)
        if self.cfg.model.sigma:
            loss = loss + image_means(_surprise(drawn, wanted), weight)
        return loss.mean()

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        raw, good, bands = batch["image"], good_pixels(batch), batch["image"].shape[1]
        drawn, wanted, seen, weight = self._drawn(model, batch)
        scores = super_resolution.of_images(
            self.preprocess.inverse(drawn[:, :bands], raw, good),
            raw if good is None else self.preprocess.inverse(seen, raw, good),
            batch["target"],
            truth=batch.get("truth"),
            weight=weight,
            data_range=self.cfg.data_range,
            ssim=self._thorough,
        )
        if self.cfg.learn == "truth" and "truth" not in batch:
            return scores  # what follows is of what was learned, which is not there
        scores["error"] = image_means(self._error(drawn, wanted, seen), weight)
        if self.cfg.model.sigma:
            pull = (drawn[:, :bands] - wanted).abs() * (-drawn[:, bands:]).exp()
            scores |= super_resolution.coverage(pull, weight)
            scores["nll"] = image_means(_surprise(drawn, wanted), weight)
        return scores

    def score(self, outputs: Batch) -> dict[str, Any]:
        return super_resolution.summary(outputs)

    def describe(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "model": cfg.model.model_dump(mode="json"),
            "init": "random" if self._encoder is None else "mae",
            "learn": cfg.learn,
            "loss": cfg.loss,
            "floor": cfg.floor,
            "data_range": cfg.data_range,
        }

    def _drawn(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What the network draws, what it should, what it saw, and how much each pixel counts."""
        raw, weight, good = batch["image"], pixel_weight(batch), good_pixels(batch)
        seen = self.preprocess(raw, good)
        # To be scored, what learned the truth does without it; a run has made sure of it.
        wanted = batch["target"] if self.cfg.learn == "hr" else batch.get("truth", batch["target"])
        wanted = self.preprocess.alike(wanted, raw, good)
        if weight is not None:
            weight = enlarge(weight, self.cfg.model.factor).expand_as(wanted)
        return model(seen), wanted, seen, weight

    def _error(self, drawn: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
        """Of each pixel: what the loss of the image is the mean of."""
        error = (drawn[:, : wanted.shape[1]] - wanted).square()
        if self.cfg.loss == "mse":
            return error
        # A noisy pixel is no measure of its own variance: bright by chance, it would count less.
        around = F.avg_pool2d(seen, 3, 1, 1, count_include_pad=False).clamp_min(0)
        # In thousandths: about 1 where the brightest pixel counts a thousand photons.
        return 1e3 * error / (enlarge(around, self.cfg.model.factor) + self.cfg.floor)


def _surprise(drawn: Tensor, wanted: Tensor) -> Tensor:
    """-ln p of each pixel under a normal distribution with the drawn sigma, which alone learns."""
    bands = wanted.shape[1]
    ln_sigma = drawn[:, bands:]
    error = (drawn[:, :bands].detach() - wanted).square()
    return 0.5 * (error * (-2 * ln_sigma).exp() + math.log(2 * math.pi)) + ln_sigma
