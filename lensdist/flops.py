"""What a network computes, from a run's configuration alone (torch-free).

Counted are convolutions, linear layers and attention, which are nearly everything; a multiply-add
is two operations. Not counted is what happens around the network: reading, resizing, masks,
augmentation, preprocessing. `preprocess.scale: lens_fit`, done once for each image, takes far
longer than the small network behind it; this module knows nothing of that either.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun, MaeRun, SuperResolutionRun
from lensdist.models.config import EncoderConfig, MaeConfig, MaskConfig, SuperResolverConfig

_CLASSES = 3  # the data's, which the configuration does not know; a last layer is next to nothing


class _Published(NamedTuple):
    """A network of torchvision at 224 px, its last linear layer left out."""

    macs: float  # of three bands
    stem: float  # of the first convolution, a band
    features: int  # that the head takes


_AT = 224
_PUBLISHED = {
    "densenet121": _Published(2833.1e6, 39.34e6, 1024),
    "densenet161": _Published(7725.7e6, 59.01e6, 2208),
    "resnet18": _Published(1813.6e6, 39.34e6, 512),
    "resnet50": _Published(4087.1e6, 39.34e6, 2048),
    "shufflenet_v2_x0_5": _Published(39.45e6, 2.71e6, 1024),
}
"""The networks of the presets."""


def forward_flops(cfg: BaseRun) -> float | None:
    """Floating-point operations of one image's way through the network.

    Returns:
        None where a member of an ensemble is in no table here.
    """
    macs = None
    if isinstance(cfg, MaeRun):
        macs = _autoencoder(cfg.model, cfg.mask)
    elif isinstance(cfg, FinetuneRun):
        macs = _encoder(cfg.model) + _layers([cfg.model.dim, *cfg.model.head_dims, _CLASSES])
    elif isinstance(cfg, SuperResolutionRun):
        macs = _super_resolver(cfg.model)
    elif isinstance(cfg, CommonRun):
        macs = _ensemble(cfg)
    return None if macs is None else 2.0 * macs


def train_flops(cfg: BaseRun) -> float | None:
    """The same of one image in training, a mean over `train.epochs`: a backward pass takes two
    forward ones, and a frozen encoder has none.

    An upper bound: the outputs of a frozen encoder may be kept (`cache.max_gb`), and an ensemble
    that is unfrozen section by section counts as if all of it trained from the beginning.
    """
    forward = forward_flops(cfg)
    if forward is None:
        return None
    if isinstance(cfg, FinetuneRun):
        return 3 * forward - 4 * _frozen_share(cfg) * _encoder(cfg.model)
    if isinstance(cfg, SuperResolutionRun):
        return 3 * forward - 4 * _frozen_share(cfg) * _encoder(cfg.model.encoder)
    return 3 * forward


def _frozen_share(cfg: FinetuneRun | SuperResolutionRun) -> float:
    """Of the epochs, those in which the encoder stays as it is."""
    if isinstance(cfg, FinetuneRun) and cfg.linear_probe:
        return 1.0
    return min(cfg.frozen_epochs / cfg.train.epochs, 1.0) if cfg.encoder is not None else 0.0


def _conv(side: int, before: int, after: int, kernel: int) -> float:
    """`side` of the output, or of the input where the convolution is a transposed one."""
    return float(side**2 * before * after * kernel**2)


def _layers(widths: Sequence[int]) -> float:
    return float(sum(before * after for before, after in pairwise(widths)))


def _prime_factors(n: int) -> list[int]:  # as models/vit.py, which imports torch
    for f in range(2, int(n**0.5) + 1):
        if n % f == 0:
            return [f, *_prime_factors(n // f)]
    return [n]


def _block(tokens: int, dim: int, mlp_dim: int) -> float:
    """Projections, MLP, and the two products of attention."""
    return float(tokens * (4 * dim**2 + 2 * dim * mlp_dim) + 2 * tokens**2 * dim)


def _encoder(cfg: EncoderConfig, tokens: int | None = None) -> float:
    """`tokens`: only so many of all that are embedded pass the layers."""
    seen = cfg.grid**2 if tokens is None else tokens
    return _embedding(cfg) + cfg.depth * _block(seen, cfg.dim, cfg.mlp_dim)


def _embedding(cfg: EncoderConfig) -> float:
    if cfg.stem == "patch":
        return _conv(cfg.grid, cfg.in_channels, cfg.dim, cfg.patch_size)
    factors = _prime_factors(cfg.patch_size)
    widths = [cfg.in_channels, *(max(cfg.dim >> i, 16) for i in range(len(factors), 0, -1))]
    macs, side = 0.0, cfg.image_size
    for (before, after), f in zip(pairwise(widths), factors, strict=True):
        side //= f
        macs += _conv(side, before, after, f + 2)
    return macs + _conv(side, widths[-1], cfg.dim, 1)


def _upconvolutions(side: int, widths: Sequence[int], factors: Sequence[int]) -> float:
    macs = 0.0
    for (before, after), f in zip(pairwise(widths), factors, strict=True):
        macs += _conv(side, before, after, f + 2)
        side *= f
    return macs


def _autoencoder(cfg: MaeConfig, mask: MaskConfig) -> float:
    patches, width = cfg.grid**2, cfg.decoder_dim
    if cfg.decoder == "upconv":  # masked patches stay in the sequence
        factors = _prime_factors(cfg.patch_size)
        widths = [cfg.dim, *(max(width >> i, 16) for i in range(len(factors)))]
        drawn = _upconvolutions(cfg.grid, widths, factors)
        return _encoder(cfg) + drawn + _conv(cfg.image_size, widths[-1], cfg.in_channels, 3)
    visible = patches - max(1, int(mask.ratio * patches))
    drawn = cfg.decoder_depth * _block(patches, width, 2 * width)
    pixels = patches * width * cfg.in_channels * cfg.patch_size**2
    return _encoder(cfg, visible) + visible * cfg.dim * width + drawn + pixels


def _super_resolver(cfg: SuperResolverConfig) -> float:
    last = 2 if cfg.sigma else 1
    if cfg.decoder == "upconv":
        factors = [*_prime_factors(cfg.encoder.patch_size), *_prime_factors(cfg.factor)]
        widths = [cfg.width << i for i in range(len(factors) - 1, -1, -1)]
        drawn = _upconvolutions(cfg.encoder.grid, [cfg.encoder.dim, *widths], factors)
        drawn += last * _conv(cfg.factor * cfg.image_size, cfg.width, cfg.in_channels, 3)
        return _encoder(cfg.encoder) + drawn
    fine, coarse, width = cfg.image_size, (cfg.image_size + 1) // 2, cfg.width
    return (
        _encoder(cfg.encoder)
        + _conv(fine, cfg.in_channels, width, 5)
        + 3 * _conv(fine, width, width, 3)
        + _conv(coarse, width, 2 * width, 2)
        + _conv(cfg.encoder.grid, cfg.encoder.dim, 2 * width, 1)
        + cfg.depth * _conv(coarse, 2 * width, 2 * width, 3)
        + _conv(coarse, 2 * width, width, 1)
        + last * _conv(fine, width, cfg.in_channels * cfg.factor**2, 3)
    )


def _ensemble(cfg: CommonRun) -> float | None:
    model = cfg.model
    bands, size = cfg.preprocess.seen(model.in_channels, model.image_size)
    size = model.resize or size
    macs = 0.0
    for name in model.members:
        if name == "lensnet":
            macs += _lensnet(bands, size) + _layers([32, *model.head_dims, _CLASSES])
            continue
        if name not in _PUBLISHED:
            return None
        net = _PUBLISHED[name]
        seen = 3 if bands == 1 and model.grey == "repeat" else bands
        # Sides are rounded at every halving, so at 150 px the area says 3 % too much for a
        # DenseNet and 8 % too little for a ResNet.
        macs += (net.macs + (seen - 3) * net.stem) * (size / _AT) ** 2
        macs += _layers([net.features, *model.head_dims, _CLASSES])
    return macs


def _lensnet(bands: int, size: int) -> float:
    half, quarter = size // 2, size // 4
    return (
        _conv(half, bands, 16, 5)
        + _conv(half, 16, 16, 3)
        + _conv(quarter, 16, 32, 3)
        + _conv(quarter, 32, 32, 3)
    )
