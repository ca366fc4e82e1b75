"""What a network computes and moves, from a run's configuration alone (torch-free).

Counted are a step's forward and backward pass; a multiply-add is two operations. Not counted is
what happens around the network: reading, resizing, masks, augmentation, preprocessing.
`preprocess.scale: lens_fit`, done once for each image, takes far longer than the small network
behind it; this module knows nothing of that either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun, MaeRun, SuperResolutionRun
from lensdist.estimate import convolutional, transformers
from lensdist.estimate.layers import Layer, Op, Tape

_CLASSES = 3  # the data's, which the configuration does not know; a last layer is next to nothing
_FROZEN = "encoder."


def layers_of(cfg: BaseRun, *, frozen: bool = False) -> list[Layer] | None:
    """The network of a run, in the order in which an image passes it.

    Args:
        cfg: the run's configuration.
        frozen: as it is while the encoder stays as it is; else all of it trains.

    Returns:
        None where a member of an ensemble is not known here.
    """
    tape = Tape(4 if cfg.precision == "no" else 2)
    if isinstance(cfg, MaeRun):
        transformers.autoencoder(tape, cfg.model, cfg.mask)
    elif isinstance(cfg, FinetuneRun):
        transformers.classifier(tape, cfg.model, _CLASSES)
    elif isinstance(cfg, SuperResolutionRun):
        transformers.super_resolver(tape, cfg.model)
    elif isinstance(cfg, CommonRun):
        if unknown_members(cfg):
            return None
        seen = cfg.preprocess.seen(cfg.model.in_channels, cfg.model.image_size)
        convolutional.ensemble(tape, cfg.model, *seen, _CLASSES)
    if frozen:
        return [replace(one, trains=not one.name.startswith(_FROZEN)) for one in tape.layers]
    return tape.layers


def unknown_members(cfg: BaseRun) -> list[str]:
    """Members of an ensemble that are not written down here."""
    members = cfg.model.members if isinstance(cfg, CommonRun) else ()
    return [name for name in members if name not in convolutional.KNOWN]


def frozen_share(cfg: BaseRun) -> float:
    """Of the epochs, those in which the encoder stays as it is."""
    if isinstance(cfg, FinetuneRun) and cfg.linear_probe:
        return 1.0
    if isinstance(cfg, FinetuneRun | SuperResolutionRun) and cfg.encoder is not None:
        return min(cfg.frozen_epochs / cfg.train.epochs, 1.0)
    return 0.0


def parameters(cfg: BaseRun) -> int | None:
    """All of the network's; None where a member of an ensemble is not known here."""
    layers = layers_of(cfg)
    return None if layers is None else sum(layer.weights for layer in layers)


def forward_flops(cfg: BaseRun) -> float | None:
    """Floating-point operations of one image's way through the network.

    Returns:
        None where a member of an ensemble is not known here.
    """
    layers = layers_of(cfg)
    return None if layers is None else 2.0 * sum(layer.macs for layer in layers)


def train_flops(cfg: BaseRun) -> float | None:
    """The same of one image in training, a mean over `train.epochs`: a backward pass takes two
    forward ones, and a frozen encoder has none. What `speed.recompute` computes twice counts once.

    An upper bound: the outputs of a frozen encoder may be kept (`cache.max_gb`), and an ensemble
    that is unfrozen section by section counts as if all of it trained from the beginning.
    """
    return _in_training(cfg, lambda layer: 2.0 * layer.macs)


def train_bytes(cfg: BaseRun, processes: int = 1) -> float | None:
    """Bytes of memory traffic of one image in training, at the width of `precision`, a mean over
    `train.epochs` as `train_flops`.

    The model: each operation reads and writes its activations once, and the backward pass moves
    twice as much. What a compiler makes part of the operation before (`speed.compile`) is free.
    Weights are read once in each direction, and their gradients written, once a micro-batch. The
    optimizer's traffic, once a step, is not in it, nor what `speed.recompute` moves again.
    """
    activations = _in_training(cfg, lambda layer: moved(layer, cfg))
    weights = _in_training(cfg, weights_moved)
    if activations is None or weights is None:
        return None
    return activations + weights / cfg.train.micro(processes)


def moved(layer: Layer, cfg: BaseRun) -> float:
    """Bytes of activations that a layer reads and writes forward, of one image."""
    return sum(op.moved for op in layer.ops if not free(op, layer, cfg))


def free(op: Op, layer: Layer, cfg: BaseRun) -> bool:
    """Whether a compiler makes it part of the operation before."""
    compiled = cfg.speed.compile == "whole" or (cfg.speed.compile == "blocks" and layer.block)
    return op.fuses and compiled


def weights_moved(layer: Layer) -> float:
    """Bytes of weights that a layer reads forward; backward it is twice as much with gradients."""
    return sum(float(op.weights * op.width) for op in layer.ops)


def _in_training(cfg: BaseRun, forward: Callable[[Layer], float]) -> float | None:
    layers = layers_of(cfg)
    if layers is None:
        return None
    share = frozen_share(cfg)
    return sum(
        forward(layer) * (3 - 2 * share * layer.name.startswith(_FROZEN)) for layer in layers
    )
