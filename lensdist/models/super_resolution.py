"""Super-resolution with the MAE's encoder: the recipe's up-convolutions, or corrections to bicubic.

LR is the mean of HR over blocks of factor x factor pixels, and both have photon noise. The possible
gain over bicubic interpolation is small, and a network that computes the whole image loses it
easily. So `residual` computes only the difference, and restores the known mean of each block.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lensdist.models.config import SuperResolverConfig, prime_factors
from lensdist.models.resample import bicubic, enlarge, resized, with_means
from lensdist.models.vit import Encoder

_CENTRE = 0.25  # of the square root of brightness, so that inputs are about 0
_DARK = 0.02  # brightness below which the square root becomes flat: the sky's noise
_LN_SIGMA = -3.5  # the initial value: 0.03 of the range, the typical noise


class SuperResolver(nn.Module):
    """A super-resolution network: preprocessed LR (B, C, H, W) -> HR (B, C, f H, f W).

    With `sigma` the natural logarithm of each pixel's standard deviation follows, for an output of
    (B, 2 C, f H, f W).

    Args:
        cfg: the network's settings; H = W = `cfg.image_size`.
    """

    def __init__(self, cfg: SuperResolverConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg.encoder)
        self.decoder = UpConvolutions(cfg) if cfg.decoder == "upconv" else Residual(cfg)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(resized(x, self.cfg.encoder.image_size))
        features = rearrange(tokens, "b (h w) d -> b d h w", h=self.cfg.encoder.grid)
        return cast(Tensor, self.decoder(features, x).float())


class UpConvolutions(nn.Module):
    """The recipe's decoder, of up-convolutions.

    They enlarge tokens to the encoder's pixels and by the factor. Then the image is resized to HR's
    size, and a convolution smooths it.
    """

    def __init__(self, cfg: SuperResolverConfig) -> None:
        super().__init__()
        factors = [*prime_factors(cfg.encoder.patch_size), *prime_factors(cfg.factor)]
        widths = [cfg.width << i for i in range(len(factors) - 1, -1, -1)]
        layers: list[nn.Module] = []
        for (before, after), f in zip(pairwise([cfg.encoder.dim, *widths]), factors, strict=True):
            # Kernels overlap by a pixel on each side, so that patch borders do not show.
            layers += [nn.ConvTranspose2d(before, after, f + 2, stride=f, padding=1), nn.ReLU()]
        self.up = nn.Sequential(*layers)
        self.out = nn.Conv2d(cfg.width, cfg.in_channels, 3, padding=1)
        self.spread = nn.Conv2d(cfg.width, cfg.in_channels, 3, padding=1) if cfg.sigma else None
        self.size = cfg.factor * cfg.image_size

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        hidden = F.interpolate(self.up(features), size=(self.size, self.size), mode="bilinear")
        image = self.out(hidden).float()
        if self.spread is None:
            return cast(Tensor, image)
        return torch.cat([image, _bounded(self.spread(hidden.detach())) + _LN_SIGMA - 1], 1)


class Residual(nn.Module):
    """A decoder that adds a correction to bicubic interpolation.

    Convolutions work at LR's resolution, and at half of it with the encoder's tokens (after
    Ronneberger et al. 2015, arXiv:1505.04597). The input is the square root of brightness, whose
    noise is equal everywhere (Anscombe 1948); the output is in units of that noise.
    """

    def __init__(self, cfg: SuperResolverConfig) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.width
        self.stem = nn.Conv2d(cfg.in_channels, width, 5, padding=2)
        self.fine = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.tokens = nn.Conv2d(cfg.encoder.dim, 2 * width, 1)
        self.coarse = nn.Sequential(*(Block(2 * width) for _ in range(cfg.depth)))
        self.up = nn.Conv2d(2 * width, width, 1)
        self.join = nn.Sequential(Block(width), Block(width))
        self.out = _from_zero(width, cfg)
        self.spread = _from_zero(width, cfg) if cfg.sigma else None

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        factor = self.cfg.factor
        noise = (x.clamp_min(0) + _DARK).sqrt()
        hidden = self._hidden((noise - _CENTRE) * 4, features)
        noise = enlarge(noise, factor)
        # In float32 from here: half precision suffices for the small difference, not for the image.
        drawn = F.pixel_shuffle(self.out(hidden).float(), factor)
        image = bicubic(x, factor) + 0.1 * noise * drawn
        if self.cfg.exact_means:
            image = with_means(image, x)
        if self.spread is None:
            return image
        # Detached, because the remaining noise is hundreds of times as large as the correction to
        # bicubic, and sigma's gradients would dominate.
        spread = F.pixel_shuffle(_bounded(self.spread(hidden.detach())), factor)
        return torch.cat([image, spread + noise.log() + _LN_SIGMA], 1)

    def _hidden(self, x: Tensor, features: Tensor) -> Tensor:
        fine = self.fine(F.gelu(self.stem(x)))
        height, width = fine.shape[-2:]
        even = F.pad(fine, (0, width % 2, 0, height % 2), mode="replicate")
        coarse = self.down(even)
        known = F.interpolate(self.tokens(features), size=coarse.shape[-2:], mode="bilinear")
        coarse = self.coarse(F.gelu(coarse + known))
        above = F.interpolate(self.up(coarse), size=even.shape[-2:], mode="bilinear")
        return cast(Tensor, self.join(fine + above[..., :height, :width]))


class Block(nn.Module):
    """A convolution that is added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.conv(x))


def _bounded(ln_sigma: Tensor) -> Tensor:
    """Bound ln sigma, so that no image, however unusual, gives a sigma of 0 or infinity."""
    return ln_sigma.float().clamp(-6, 6)


def _from_zero(width: int, cfg: SuperResolverConfig) -> nn.Conv2d:
    """Return a convolution (B, width, H, W) -> (B, C f^2, H, W) that starts from zero."""
    conv = nn.Conv2d(width, cfg.in_channels * cfg.factor**2, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv
