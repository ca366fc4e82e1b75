"""Task `mae`: pretraining of the masked autoencoder (VI.A; He et al. 2022, arXiv:2111.06377)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from lensdist.models.config import MaeConfig, MaskConfig, masked_count
from lensdist.tasks.base import Task
from lensdist.tasks.settings import Choice, TaskSettings
from lensdist.tasks.types import Batch, Drawing
from lensdist.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lensdist.models.mae import MaskedAutoencoder

_SHOWN = 4  # images of a figure


class MaeSettings(TaskSettings):
    """Pretraining of the masked autoencoder."""

    described: ClassVar[tuple[str, ...]] = ("model", "mask", "loss")

    model: MaeConfig = MaeConfig()
    mask: MaskConfig = MaskConfig()
    loss: Literal["image", "masked"] = Field(
        "image",
        description="The pixels of the mean squared error: the whole image, or only masked pixels.",
    )

    @property
    def selects(self) -> Choice:
        # A loss of masked pixels leaves the others untrained, so their error has no meaning.
        return ("mse_masked" if self.loss == "masked" else "mse", "min")


class MaeTask(Task[MaeSettings]):
    """Reconstruction of images with hidden patches."""

    name = "mae"
    settings = MaeSettings
    answer = "recon"
    draws = ("recon",)
    pools_pixels = True
    figures = ("reconstructions.png",)

    def network(self) -> nn.Module:
        from lensdist.models.mae import MaskedAutoencoder

        return MaskedAutoencoder(self.cfg.model)

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        from lensdist.models.mae import pixel_mask
        from lensdist.utils import rng

        batch = self.augmented(batch, key)
        image, mask, weight = self._masked(batch, rng.key(key, "mask"))
        error: Tensor = (model(image, mask, self._hidden) - image).square()
        if self.cfg.loss == "masked":
            hidden = pixel_mask(mask, self.cfg.model.patch_size).to(error.dtype)
            weight = hidden if weight is None else hidden * weight
        if weight is None:
            return error.mean()
        weight = weight.expand_as(error)
        return (error * weight).sum() / weight.sum().clamp_min(1e-12)

    # ---- scores

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        from lensdist.data.masks import good_pixels, image_means
        from lensdist.models.mae import pixel_mask
        from lensdist.utils import rng

        # Evaluation hides the same patches at every step, so that scores can be compared.
        image, mask, weight = self._masked(batch, rng.key(self.seed, "evaluation mask"))
        error = (model(image, mask, self._hidden).float() - image).square()
        hidden = pixel_mask(mask, self.cfg.model.patch_size).expand_as(error).float()
        weight = torch.ones_like(error) if weight is None else weight.expand_as(error)
        weight_hidden = weight * hidden
        found = {
            "mse": image_means(error, weight),
            "mse_masked": image_means(error, weight_hidden),
            "range": image.amax((1, 2, 3)) - image.amin((1, 2, 3)),
            **_moments(image, weight_hidden),
        }
        if self.preprocess.cfg.scale == "residual" and good_pixels(batch) is None:
            raw = batch["image"].float()
            # The basis alone: the image whose residual is nothing.
            missed = raw - self.preprocess.inverse(torch.zeros_like(raw), raw)
            found |= {"basis_mse": image_means(missed.square(), weight_hidden)}
            found |= {f"raw_{name}": each for name, each in _moments(raw, weight_hidden).items()}
        return found

    def score(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics import scores as metrics

        means = {name: float(values.double().mean()) for name, values in outputs.items()}
        scores = metrics.reconstruction(outputs["mse"], outputs["range"])
        scores |= {"mse_masked": means["mse_masked"]}
        scores["explained_masked"] = _explained(means["mse_masked"], means)
        if "basis_mse" in means:
            scores["explained_by_basis"] = _explained(means["basis_mse"], means, "raw_")
        return scores

    @staticmethod
    def each(outputs: Batch) -> dict[str, Tensor]:
        return {"mse_masked": outputs["mse_masked"]}

    def draw(self, what: Drawing) -> tuple[dict[str, Any], list[Path]]:
        import numpy as np

        from lensdist.metrics import pictures
        from lensdist.models.mae import pixel_mask

        # Drawn as the network sees them: under `scale: residual` the network does not draw the arc.
        seen = self.image(what.images.gather(np.arange(min(_SHOWN, len(what.images)))))
        drawn, mask = self._reconstruct(what.network, seen)
        hidden = pixel_mask(mask, self.cfg.model.patch_size)
        path = pictures.reconstructions(
            what.folder / "reconstructions.png",
            *(t[:, 0].cpu().numpy() for t in (seen, hidden, drawn)),
            unit=f"as the network sees them: {self.preprocess.cfg.scale}",
            pixel_scale=what.pixel_scale,
            title=f"Masked autoencoder, {what.title}",
        )
        return {}, [path]

    # ---- use of a trained model

    def predict(
        self, model: nn.Module, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        drawn, mask = self._reconstruct(model, self.preprocess(raw, good))
        return {"recon": self.preprocess.inverse(drawn, raw, good), "mask": mask}

    def compared(self, model: nn.Module) -> Sequence[nn.Module] | None:
        return []  # what the network makes of an image depends on what is hidden

    def embed(self, model: nn.Module, seen: Tensor) -> Tensor:
        whole = cast("MaskedAutoencoder", model)
        return cast("Tensor", whole.encoder(seen).mean(1))  # nothing is hidden

    def attention(self, model: nn.Module, seen: Tensor) -> Tensor | None:
        return super().attention(cast("MaskedAutoencoder", model).encoder, seen)

    def example(self, n: int) -> tuple[Any, ...]:
        (x,) = super().example(n)
        mask = torch.zeros(n, self.cfg.model.grid**2, dtype=torch.bool)
        mask[:, : self._hidden] = True
        return x, mask, self._hidden

    def file_inputs(self, images: Tensor) -> dict[str, Tensor]:
        return {"image": images, "mask": self._same_mask(self.preprocess(images))}

    def file_facts(self) -> dict[str, Any]:
        # Every mask must hide this number of patches: the graph of the token decoder fixes it.
        return {"hidden_patches": self._hidden} if self.cfg.model.decoder == "tokens" else {}

    def graph(self, model: nn.Module, image: Tensor, mask: Tensor | None = None) -> Tensor:
        from lensdist.models.mae import pixel_mask, without_sort

        assert mask is not None
        x = self.preprocess(image)
        drawn = without_sort(cast("MaskedAutoencoder", model), x, mask, self._hidden)
        if self.cfg.loss == "masked":
            drawn = torch.where(pixel_mask(mask, self.cfg.model.patch_size), drawn, x)
        return self.preprocess.inverse(drawn, image)

    # ---- masks

    @property
    def _hidden(self) -> int:
        return masked_count(self.cfg.mask, self.cfg.model.grid**2)

    def _masked(self, batch: Batch, key: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the images (B, C, H, W), their masks (B, N) and the weights of pixels."""
        from lensdist.data.masks import pixel_weight
        from lensdist.models.masking import make_mask

        image = self.image(batch)  # without bad pixels, which must not reach network or loss
        mask = make_mask(image, self.cfg.model.patch_size, self.cfg.mask, key, batch["sample"])
        return image, mask, pixel_weight(batch)

    def _same_mask(self, x: Tensor) -> Tensor:
        from lensdist.models.masking import make_mask

        # All images use one sample number: a mask must not depend on the place in the batch.
        samples = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return make_mask(x, self.cfg.model.patch_size, self.cfg.mask, 0, samples)

    def _reconstruct(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct preprocessed images (N, C, H, W); return also their masks (N, patches).

        The output of a network trained on hidden pixels only has no meaning elsewhere: there the
        pixels of `x` are kept.
        """
        from lensdist.models.mae import pixel_mask

        mask = self._same_mask(x)
        with torch.no_grad():
            drawn: Tensor = model(x, mask)
        if self.cfg.loss == "masked":
            drawn = torch.where(pixel_mask(mask, self.cfg.model.patch_size), drawn, x)
        return drawn, mask


def _moments(image: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Return the weighted mean and mean square of each image's pixels, (B,) each."""
    from lensdist.data.masks import image_means

    image = image.double()  # a sky far above its noise leaves no digits of float32
    return {"mean": image_means(image, weight), "square": image_means(image.square(), weight)}


def _explained(mse: float, means: dict[str, float], prefix: str = "") -> float:
    """Return 1 - mse / variance, over all hidden pixels of a split; NaN without variance."""
    variance = means[f"{prefix}square"] - means[f"{prefix}mean"] ** 2
    return 1 - mse / variance if variance > 0 else math.nan
