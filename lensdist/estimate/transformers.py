"""The networks with a transformer on paper, as lensdist/models/{vit,mae,classifier,
super_resolution}.py build them (torch-free)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lensdist.estimate.layers import Tape
from lensdist.models.config import (
    ClassifierConfig,
    EncoderConfig,
    MaeConfig,
    MaskConfig,
    SuperResolverConfig,
    masked_count,
    prime_factors,
)

_FLOAT = 4


def encoder(tape: Tape, cfg: EncoderConfig, seen: int | None = None) -> None:
    """`seen`: so many of the tokens pass the layers; None: all."""
    tokens = cfg.grid**2
    _embedding(tape, cfg)
    tape.parameter(tokens * cfg.dim)
    tape.add(tokens * cfg.dim)
    if seen is not None:
        tape.cat(seen * cfg.dim)
        tape.keep(tokens * cfg.dim, _FLOAT)  # what tokens are picked from
    tape.close("encoder.embed")
    seen = tokens if seen is None else seen
    for i in range(cfg.depth):
        _block(tape, f"encoder.blocks.{i}", seen, cfg)
    if cfg.block == "prenorm":
        tape.layer_norm(seen, cfg.dim)
        tape.close("encoder.norm")


def autoencoder(tape: Tape, cfg: MaeConfig, mask: MaskConfig) -> None:
    """Encoder and decoder, as `MaskedAutoencoder`."""
    tape.cast(cfg.in_channels * cfg.image_size**2)
    if cfg.decoder == "upconv":  # masked patches stay in the sequence
        encoder(tape, cfg)
        _pixels(tape, cfg)
    else:
        tokens = cfg.grid**2
        visible = tokens - masked_count(mask, tokens)
        encoder(tape, cfg, visible)
        _token_decoder(tape, cfg, visible)


def classifier(tape: Tape, cfg: ClassifierConfig, classes: int) -> None:
    """Encoder, mean over tokens, head, as `Classifier`."""
    tape.cast(cfg.in_channels * cfg.image_size**2)
    encoder(tape, cfg)
    tape.pool(cfg.grid**2 * cfg.dim, cfg.dim, kept=False)
    if cfg.head_norm:
        tape.batch_norm(cfg.dim, cfg.dim, affine=False)
    for before, after in pairwise([cfg.dim, *cfg.head_dims]):
        tape.dropout(before, cfg.head_dropout)
        tape.linear(1, before, after)
        tape.pointwise(after)
    last = [cfg.dim, *cfg.head_dims][-1]
    tape.dropout(last, cfg.head_dropout)
    tape.linear(1, last, classes)
    tape.close("head")


def super_resolver(tape: Tape, cfg: SuperResolverConfig) -> None:
    """Encoder and what draws, as `SuperResolver`."""
    tape.pointwise(cfg.in_channels * cfg.encoder.image_size**2, width=_FLOAT)
    tape.cast(cfg.in_channels * cfg.encoder.image_size**2)
    encoder(tape, cfg.encoder)
    if cfg.decoder == "upconv":
        _upconvolutions(tape, cfg)
    else:
        _residual(tape, cfg)


def _embedding(tape: Tape, cfg: EncoderConfig) -> None:
    if cfg.stem == "patch":
        size = cfg.patch_size
        tape.conv(cfg.image_size, cfg.in_channels, cfg.dim, size, size, pad=0, bias=True)
        return
    factors = prime_factors(cfg.patch_size)
    widths = [cfg.in_channels, *(max(cfg.dim >> i, 16) for i in range(len(factors), 0, -1))]
    side = cfg.image_size
    for (before, after), f in zip(pairwise(widths), factors, strict=True):
        tape.pointwise(before * (side + 2) ** 2)  # borders, repeated
        side = tape.conv(side + 2, before, after, f + 2, f, pad=0, bias=True)
        if tape.width < _FLOAT:
            tape.pointwise(after * side**2)
        tape.layer_norm(1, after * side**2, after)
        tape.pointwise(after * side**2, kept=_FLOAT)
        tape.cast(after * side**2)
    tape.conv(side, widths[-1], cfg.dim, 1, bias=True)


def _block(tape: Tape, name: str, tokens: int, cfg: EncoderConfig) -> None:
    dim, hidden = cfg.dim, cfg.mlp_dim
    numbers, post = tokens * dim, cfg.block == "postnorm"
    if not post:
        tape.layer_norm(tokens, dim)
    tape.cast(numbers)
    tape.linear(tokens, dim, 3 * dim)
    tape.attention(tokens, dim, cfg.heads)
    tape.linear(tokens, dim, dim, kept=False)  # attention keeps its output already
    tape.dropout(numbers, cfg.dropout)
    tape.add(numbers)
    tape.layer_norm(tokens, dim)
    tape.cast(numbers)
    tape.linear(tokens, dim, hidden)
    # GELU keeps what comes in; ReLU what goes out, which the product keeps unless it is dropped.
    own = tape.width if not post or cfg.dropout else 0
    tape.pointwise(tokens * hidden, kept=own)
    tape.dropout(tokens * hidden, cfg.dropout)
    tape.linear(tokens, hidden, dim)
    tape.dropout(numbers, cfg.dropout)
    tape.add(numbers)
    if post:
        tape.layer_norm(tokens, dim)
    tape.close(name, block=True, entry=numbers * _FLOAT)


def _pixels(tape: Tape, cfg: MaeConfig) -> None:
    factors = prime_factors(cfg.patch_size)
    widths = [cfg.dim, *(max(cfg.decoder_dim >> i, 16) for i in range(len(factors)))]
    tape.cast(cfg.grid**2 * cfg.dim)
    _upward(tape, cfg.grid, widths, factors, gelu=cfg.block == "prenorm")
    tape.conv(cfg.image_size, widths[-1], cfg.in_channels, 3, bias=True)
    tape.close("decoder")


def _upward(
    tape: Tape, side: int, widths: Sequence[int], factors: Sequence[int], *, gelu: bool
) -> int:
    for (before, after), f in zip(pairwise(widths), factors, strict=True):
        side = tape.upconv(side, before, after, f)
        tape.pointwise(after * side**2, kept=tape.width if gelu else 0)
    return side


def _token_decoder(tape: Tape, cfg: MaeConfig, visible: int) -> None:
    tokens, width = cfg.grid**2, cfg.decoder_dim
    tape.cast(visible * cfg.dim)
    tape.linear(visible, cfg.dim, width)
    tape.parameter(width + tokens * width)
    tape.cat(tokens * width)
    tape.add(tokens * width)
    tape.close("decoder.narrow")
    block = EncoderConfig(dim=width, heads=cfg.heads, mlp_dim=2 * width, depth=1)
    for i in range(cfg.decoder_depth):
        _block(tape, f"decoder.blocks.{i}", tokens, block)
    tape.layer_norm(tokens, width)
    tape.cast(tokens * width)
    pixels = cfg.in_channels * cfg.patch_size**2
    tape.linear(tokens, width, pixels)
    tape.cat(tokens * pixels)
    tape.close("decoder.out")


def _upconvolutions(tape: Tape, cfg: SuperResolverConfig) -> None:
    inner = cfg.encoder
    factors = [*prime_factors(inner.patch_size), *prime_factors(cfg.factor)]
    widths = [cfg.width << i for i in range(len(factors) - 1, -1, -1)]
    tape.cast(inner.grid**2 * inner.dim)
    side = _upward(tape, inner.grid, [inner.dim, *widths], factors, gelu=False)
    size = cfg.factor * cfg.image_size
    # Interpolation itself needs nothing kept; the ReLU before it keeps its output.
    tape.pool(cfg.width * side**2, cfg.width * size**2)
    tape.conv(size, cfg.width, cfg.in_channels, 3, bias=True)
    if cfg.sigma:
        tape.conv(size, cfg.width, cfg.in_channels, 3, bias=True, kept=False)
    tape.close("decoder")


def _residual(tape: Tape, cfg: SuperResolverConfig) -> None:
    fine, coarse, width = cfg.image_size, (cfg.image_size + 1) // 2, cfg.width
    bands, drawn = cfg.in_channels, cfg.in_channels * cfg.factor**2
    tape.conv(fine, bands, width, 5, bias=True)
    tape.pointwise(width * fine**2, kept=tape.width)
    _convolution(tape, fine, width)
    tape.conv(2 * coarse, width, 2 * width, 2, 2, pad=0, bias=True)
    tape.cast(cfg.encoder.grid**2 * cfg.encoder.dim)
    tape.conv(cfg.encoder.grid, cfg.encoder.dim, 2 * width, 1, bias=True)
    tape.pool(cfg.encoder.grid**2 * 2 * width, coarse**2 * 2 * width, kept=False)
    tape.pointwise(2 * width * coarse**2, inputs=2, kept=tape.width)
    for _ in range(cfg.depth):
        _convolution(tape, coarse, 2 * width)
    tape.conv(coarse, 2 * width, width, 1, bias=True)
    tape.pool(width * coarse**2, width * (2 * coarse) ** 2, kept=False)
    tape.pointwise(width * fine**2, inputs=2)
    for _ in range(2):
        _convolution(tape, fine, width)
    tape.conv(fine, width, drawn, 3, bias=True)
    if cfg.sigma:
        tape.conv(fine, width, drawn, 3, bias=True, kept=False)
    large = bands * (cfg.factor * fine) ** 2
    tape.pointwise(large, inputs=4, width=_FLOAT, kept=2 * _FLOAT)
    tape.close("decoder")


def _convolution(tape: Tape, side: int, width: int) -> None:
    """A convolution, its activation, and the sum with its input."""
    numbers = width * side**2
    tape.conv(side, width, width, 3, bias=True)
    tape.pointwise(numbers, kept=tape.width)
    tape.pointwise(numbers, inputs=2)
