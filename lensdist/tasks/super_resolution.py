"""Task `sr`: super-resolution with the MAE's encoder (task VI.B), or from scratch."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from lensdist.data.config import LIGHT_KEEPING, DataConfig, PreprocessConfig
from lensdist.models.config import EncoderConfig, SuperResolverConfig
from lensdist.tasks.encoder import EncoderSettings, EncoderTask
from lensdist.tasks.settings import Choice, Remedy, Shape
from lensdist.tasks.types import Batch, Drawing
from lensdist.utils.errors import UserError
from lensdist.utils.lazy import F, torch
from lensdist.utils.settings import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lensdist.data.dataset import PackedSet
    from lensdist.models.super_resolution import SuperResolver

log = logging.getLogger(__name__)

_LOOKED_AT = 16  # training pairs that are checked
_UNLIKE = 0.3  # in units of HR's contrast; an LR that is a separate noisy exposure is below it
_SHOWN = 2  # pairs of a figure, in two rows each


class SuperResolutionSettings(EncoderSettings):
    """Super-resolution, trained on pairs of images."""

    described: ClassVar[tuple[str, ...]] = ("model", "learn", "loss", "floor", "data_range")

    model: SuperResolverConfig = SuperResolverConfig()
    frozen_epochs: int = Field(
        5,
        ge=0,
        le=10**12,
        description="The number of epochs at the start in which a pretrained encoder is frozen.",
    )
    loss: Literal["mse", "poisson"] = Field(
        "mse",
        description="The loss of a pixel. mse: the squared error; poisson: the squared error "
        "divided by the variance of photon noise, which is brightness plus `floor`.",
    )
    floor: Positive = Field(
        0.02,
        description="The brightness at which the sky's noise equals the source's, for loss: "
        "poisson, after preprocessing.",
    )
    learn: Literal["hr", "truth"] = Field(
        "hr",
        description="The target. hr: HR with its noise; truth: HR without noise, which only "
        "simulated pairs have; it needs model.exact_means=false, because LR's means contain noise.",
    )
    data_range: Positive = Field(
        1.0, description="The largest minus the smallest value on disk, for PSNR and SSIM."
    )

    @property
    def selects(self) -> Choice:
        return ("error", "min")

    @property
    def encoder_settings(self) -> tuple[EncoderConfig, str]:
        return self.model.encoder, "model.encoder"

    def fitting(self, shape: Shape, *more: str) -> Remedy:
        return super().fitting(shape, *more, f"model.encoder.in_channels={shape[0]}")

    @model_validator(mode="after")
    def _truth_has_no_noise(self) -> Self:
        if self.learn == "truth" and self.model.decoder == "residual" and self.model.exact_means:
            raise ValueError("learn: truth needs model.exact_means: false, or LR's noise stays")
        return self

    def check_preprocess(self, how: PreprocessConfig) -> None:
        if how.scale not in LIGHT_KEEPING:
            raise ValueError(
                f"preprocess.scale: {how.scale} would not keep sums of light; use minmax, standard "
                "or none"
            )
        if how.scale == "standard" and (self.model.decoder == "residual" or self.loss == "poisson"):
            raise ValueError(
                "preprocess.scale: standard needs decoder: upconv and loss: mse; others need "
                "minmax or none, where noise grows with brightness"
            )


class SuperResolutionTask(EncoderTask[SuperResolutionSettings]):
    """Super-resolution: the large image (HR) from the small one (LR).

    HR is scaled as LR is. Scaled by its own range it would not keep LR's flux.
    """

    name = "sr"
    settings = SuperResolutionSettings
    answer = "image"
    output = "enlarged"
    draws = ("image", "sigma")
    head = "decoder."
    pairs = True
    wants_truth = True
    any_size = True
    figures = ("super_resolution.png",)
    harder = ("plain", "psf_wide", "psf_narrow")

    @classmethod
    def check_data(cls, cfg: SuperResolutionSettings, packed: PackedSet, data: DataConfig) -> None:
        """Check shapes, and that LR is HR's block means; warn of an odd `data_range`."""
        packed.require_pairs(cfg.model.factor, truth=cfg.learn == "truth")
        if data.source == "stream":
            from lensdist.sim.simulator import Simulator

            assert data.sim is not None  # checked by the configuration
            simulated, about = Simulator(data.sim), packed.manifest
            shapes = (simulated.image_shape, simulated.target_shape)
            if shapes != (about.image_shape, about.target_shape):
                raise UserError(
                    f"data.sim: family {data.sim.family} does not simulate pairs like those of "
                    f"{packed.path}; use family sr, and a set of 75 and 150 pixels to validate on"
                )
        _check_means(cfg, packed)
        low, high = min(packed.manifest.statistics.min), max(packed.manifest.statistics.max)
        if high - low > 2 * cfg.data_range:
            log.warning(
                f"{packed.path} has values from {low:g} to {high:g}; PSNR and SSIM use data_range "
                f"{cfg.data_range:g}"
            )

    @classmethod
    def check_scored(cls, cfg: SuperResolutionSettings, packed: PackedSet) -> None:
        packed.require_pairs(cfg.model.factor)

    def network(self) -> nn.Module:
        from lensdist.models.super_resolution import SuperResolver

        return SuperResolver(self.cfg.model)

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        from lensdist.data.masks import image_means

        drawn, wanted, seen, weight = self._drawn(model, self.augmented(batch, key))
        loss = image_means(self._error(drawn, wanted, seen), weight)
        if self.cfg.model.sigma:
            loss = loss + image_means(_surprise(drawn, wanted), weight)
        return loss.mean()

    # ---- scores

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        from lensdist.data.masks import good_pixels, image_means
        from lensdist.metrics import super_resolution

        raw, good, bands = batch["image"], good_pixels(batch), batch["image"].shape[1]
        drawn, wanted, seen, weight = self._drawn(model, batch)
        scores = super_resolution.of_images(
            self.preprocess.inverse(drawn[:, :bands], raw, good),
            raw if good is None else self.preprocess.inverse(seen, raw, good),
            batch["target"],
            truth=batch.get("truth"),
            weight=weight,
            data_range=self.cfg.data_range,
            ssim=self.thorough,
        )
        if self.cfg.learn == "truth" and "truth" not in batch:
            return scores  # the scores below need the truth, which the set lacks
        scores["error"] = image_means(self._error(drawn, wanted, seen), weight)
        if self.cfg.model.sigma:
            pull = (drawn[:, :bands] - wanted).abs() * (-drawn[:, bands:]).exp()
            scores |= super_resolution.coverage(pull, weight)
            scores["nll"] = image_means(_surprise(drawn, wanted), weight)
        return scores

    def score(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics import super_resolution

        return super_resolution.summary(outputs)

    def intervals(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics import super_resolution

        return super_resolution.intervals(outputs)

    @staticmethod
    def each(outputs: Batch) -> dict[str, Tensor]:
        return {"mse": outputs["mse"]}

    def draw(self, what: Drawing) -> tuple[dict[str, Any], list[Path]]:
        import numpy as np

        from lensdist.data.masks import good_pixels
        from lensdist.metrics import pictures
        from lensdist.models.resample import bicubic, enlarge, with_means

        batch = what.images.gather(np.arange(min(_SHOWN, len(what.images))))
        lr, good = batch["image"], good_pixels(batch)
        given = None if good is None else good.expand_as(lr)
        with torch.no_grad():
            found = self.predict(what.network, lr if given is None else lr * given, given, _SHOWN)
        found = {name: value.cpu() for name, value in found.items()}
        lr = lr.cpu()
        if given is not None:  # blank in all pictures
            lr = torch.where(given.cpu(), lr, math.nan)
        factor = self.cfg.model.factor
        shown = {
            "LR": lr,
            "bicubic": bicubic(lr, factor),
            "ours": found["image"],
            "HR": batch["target"].cpu() + 0 * enlarge(lr, factor),
            **({"truth": batch["truth"].cpu()} if "truth" in batch else {}),
        }
        path = pictures.super_resolved(
            what.folder / "super_resolution.png",
            {name: image[:, 0].numpy() for name, image in shown.items()},
            with_means(shown["truth"], lr)[:, 0].numpy() if "truth" in shown else None,
            sigma=found["sigma"][:, 0].numpy() if "sigma" in found else None,
            pixel_scale=what.pixel_scale,
            title=f"Super-resolution, {what.title}",
        )
        return {}, [path]

    # ---- use of a trained model

    def predict(
        self, model: nn.Module, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        from lensdist.models.resample import enlarge
        from lensdist.models.tiling import tiled

        x, size, factor = (
            self.preprocess(raw, good),
            self.cfg.model.image_size,
            self.cfg.model.factor,
        )
        drawn = tiled(model, x, size, factor, batch)
        image, *ln_sigma = torch.split(drawn, x.shape[1], 1)
        found = {"image": self.preprocess.inverse(image, raw, good)}
        if ln_sigma:
            found["sigma"] = ln_sigma[0].exp() * self.preprocess.unit(raw, good)
        if good is not None:
            there = enlarge(good, factor)
            found = {name: torch.where(there, value, torch.nan) for name, value in found.items()}
        return found

    def embed(self, model: nn.Module, seen: Tensor) -> Tensor:
        whole = cast("SuperResolver", model)
        return cast("Tensor", whole.encoder(self._encoders(seen)).mean(1))

    def attention(self, model: nn.Module, seen: Tensor) -> Tensor | None:
        return super().attention(cast("SuperResolver", model).encoder, self._encoders(seen))

    def _encoders(self, seen: Tensor) -> Tensor:
        """Return images at the encoder's size."""
        from lensdist.models.resample import resized

        return resized(seen, self.cfg.model.encoder.image_size)

    def history(self, factor: int) -> list[str]:
        model = self.cfg.model
        exact = model.exact_means and model.decoder == "residual"
        means = "averages" if exact else "averages only roughly"
        return [
            f"pixel values are means: a block of {factor} x {factor} {means} to the",
            f"input pixel; divide by {factor**2} for flux per pixel",
        ]

    def graph(self, model: nn.Module, image: Tensor) -> Tensor:
        drawn = model(self.preprocess(image))
        return self.preprocess.inverse(drawn[:, : image.shape[1]], image)

    # ---- the parts of the loss

    def _drawn(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the network's output, its target, its input, and the weights of pixels."""
        from lensdist.data.masks import good_pixels, pixel_weight
        from lensdist.models.resample import enlarge

        raw, weight, good = batch["image"], pixel_weight(batch), good_pixels(batch)
        seen = self.preprocess(raw, good)
        # A set to score on may lack the truth; for training `check_data` has required it.
        wanted = batch["target"] if self.cfg.learn == "hr" else batch.get("truth", batch["target"])
        wanted = self.preprocess.alike(wanted, raw, good)
        if weight is not None:
            weight = enlarge(weight, self.cfg.model.factor).expand_as(wanted)
        return model(seen), wanted, seen, weight

    def _error(self, drawn: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
        """Return the error of each pixel, whose mean is an image's loss."""
        from lensdist.models.resample import enlarge

        error = (drawn[:, : wanted.shape[1]] - wanted).square()
        if self.cfg.loss == "mse":
            return error
        # A noisy pixel does not measure its own variance: bright by chance, it would count less.
        around = F.avg_pool2d(seen, 3, 1, 1, count_include_pad=False).clamp_min(0)
        # The factor makes the loss about 1 if the brightest pixel counts a thousand photons.
        return 1e3 * error / (enlarge(around, self.cfg.model.factor) + self.cfg.floor)


def _surprise(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return -ln p of each pixel under a normal distribution with the predicted sigma.

    Only sigma gets gradients.
    """
    bands = wanted.shape[1]
    ln_sigma = drawn[:, bands:]
    error = (drawn[:, :bands].detach() - wanted).square()
    return 0.5 * (error * (-2 * ln_sigma).exp() + math.log(2 * math.pi)) + ln_sigma


def _check_means(cfg: SuperResolutionSettings, packed: PackedSet) -> None:
    import numpy as np

    from lensdist.models.resample import block_means

    rows = packed.indices("train")[:_LOOKED_AT]
    if cfg.model.decoder != "residual" or not cfg.model.exact_means or not len(rows):
        return
    pairs = packed.gather(rows)
    lr, means = pairs["image"].double(), block_means(pairs["target"].double(), cfg.model.factor)
    if "badpix" in pairs:
        lr, means = (x[~pairs["badpix"]] for x in (lr, means))
    off, contrast = float((lr - means).square().mean().sqrt()), float(means.std())
    if off > _UNLIKE * contrast:
        slope = float(np.polyfit(means.flatten().numpy(), lr.flatten().numpy(), 1)[0])
        raise UserError(
            f"{packed.path}: LR is not the mean of HR's {cfg.model.factor}x{cfg.model.factor} "
            f"blocks (the best fit is {slope:.3g} times that); rescale one of them, or set "
            "model.exact_means=false"
        )
