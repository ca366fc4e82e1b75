"""Which network published tensors are of, and their names in ours.

Known are torchvision's DenseNets and ResNets with the recipe's head or a single linear layer, alone
or several in one file (the recipe's `EnsembleModel`), and the recipe's masked autoencoder and the
classifier made of it (github.com/Akhil-blanc/Deeplense-ML4SCI). Every tensor of a file is used, and
every weight of ours comes from it, or the file is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lensdist.errors import UserError
from lensdist.models.classifier import Classifier
from lensdist.models.config import ClassifierConfig, EnsembleConfig, MaeConfig, prime_factors
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder
from lensdist.weights.architectures import Weights, dim, head_of, members_of, modern_names, some

_HEADS = 8  # attention heads of the recipe; no shape tells them
_LAYER = {  # nn.TransformerEncoderLayer -> lensdist.models.vit.Block
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj.": "attention.out.",
    "linear1.": "mlp.0.",
    "linear2.": "mlp.3.",
    "norm1.": "norm1.",
    "norm2.": "norm2.",
}
_NOTE = (
    "trained with attention across the images of a batch (nn.TransformerEncoder without "
    "batch_first){more}; here attention stays within an image, so these weights do not do what "
    "they did there: fine-tune before use"
)


@dataclass(frozen=True)
class Published:
    """A published network, in ours.

    Attributes:
        classes: of its last layer; 0: it is no classifier.
        labels: the classes in the order of the recipe's notebook.
        scale: how the notebook scaled images, as in `PreprocessConfig`.
        network: ours, with the weights, in float32.
        note: what a user must know of these weights, if anything.
    """

    task: Literal["common", "mae", "finetune"]
    model: EnsembleConfig | MaeConfig | ClassifierConfig
    classes: int
    labels: tuple[str, ...]
    scale: Literal["none", "minmax"]
    network: nn.Module
    note: str | None = None


def recognise(tensors: Weights, size: int | None = None, resize: int | None = 224) -> Published:
    """Find the network that the tensors are of, and put them into it.

    Args:
        tensors: by the names that they were published under.
        size: pixels a side of the images on disk; None: the recipe's.
        resize: pixels a side that torchvision's networks see; None: as on disk.

    Raises:
        UserError: no network here has exactly these weights; says which are missing or unknown.
    """
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise UserError(f"its {some(bad)} hold NaN or infinity: they are of a failed training")
    if "pos_embed" in tensors:
        found = _mae(tensors) if "patch_embed.weight" in tensors else _classifier(tensors)
        if size not in (None, found.model.image_size):
            raise UserError(f"--size: this network takes {found.model.image_size} pixels a side")
        return found
    return _ensemble(members_of(tensors), size or 150, resize)


# ---- torchvision's networks


def _ensemble(members: list[tuple[str, Weights]], size: int, resize: int | None) -> Published:
    shapes = {head_of(state) for _, state in members}
    if len(shapes) > 1:
        raise UserError("its networks have different heads or bands; import them one by one")
    dims, classes, bands = shapes.pop()
    with _sentences():
        cfg = EnsembleConfig(
            members=tuple(architecture for architecture, _ in members),
            image_size=size,
            # Kernels for RGB are the recipe's, which showed them one band three times.
            in_channels=1 if bands == 3 else bands,
            grey="repeat" if bands == 3 else "fold",
            resize=resize,
            head_dims=dims,
        )
        with torch.device("meta"):
            network = Ensemble(cfg, classes)
    try:
        network.check(size)
    except UserError as error:
        raise UserError(
            f"{', '.join(cfg.members)} cannot take images of {resize or size} pixels a side; "
            "give --resize 224"
        ) from error
    weights: Weights = {}
    for k, (member, (_, state)) in enumerate(zip(network.backbones, members, strict=True)):
        adopted = member.adopt(modern_names(state))
        weights |= {f"members.{k}.{name}": value for name, value in adopted.items()}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):  # files from before PyTorch 0.4.1 lack it
            weights.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    _fill(network, weights)
    return Published("common", cfg, classes, ("no", "sphere", "vort"), "none", network)


# ---- the recipe's autoencoder and classifier


def _mae(tensors: Weights) -> Published:
    facts, names = _encoder(tensors, "patch_embed", "encoder")
    factors = prime_factors(facts["patch_size"])
    for i in range(len(factors) + 1):
        ours = f"decoder.up.{2 * i}" if i < len(factors) else "decoder.out"
        names |= {f"decoder.{2 * i}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    with _sentences():
        cfg = MaeConfig(**facts, decoder_dim=dim(tensors, "decoder.0.weight", 4, 1))
        with torch.device("meta"):
            network = MaskedAutoencoder(cfg)
    _fill(network, _renamed(tensors, names))
    note = _NOTE.format(more=" and with tokens scrambled before the decoder (view for transpose)")
    return Published("mae", cfg, 0, (), "minmax", network, note)


def _classifier(tensors: Weights) -> Published:
    facts, names = _encoder(tensors, "encoder", "transformer")
    widths: list[int] = []
    while f"cls_head.{2 * len(widths)}.weight" in tensors:
        i = len(widths)
        # Ours has a dropout before each linear layer, so three modules to their two.
        names |= {f"cls_head.{2 * i}.{k}": f"head.{3 * i + 1}.{k}" for k in ("weight", "bias")}
        widths.append(dim(tensors, f"cls_head.{2 * i}.weight", 2, 0))
    if not widths:
        raise UserError("its network has position embeddings but no decoder and no cls_head")
    with _sentences():
        cfg = ClassifierConfig(**facts, head_dims=tuple(widths[:-1]))
        with torch.device("meta"):
            network = Classifier(cfg, widths[-1])
    _fill(network, _renamed(tensors, names))
    # The notebook showed it raw images, though its encoder was pretrained on scaled ones.
    labels = ("axion", "no_sub", "cdm")
    note = _NOTE.format(more="")
    return Published("finetune", cfg, widths[-1], labels, "none", network, note)


def _encoder(tensors: Weights, conv: str, layers: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of the encoder, and its weights' names: theirs -> ours."""
    patch, tokens = dim(tensors, f"{conv}.weight", 4, 2), dim(tensors, "pos_embed", 3, 1)
    depth = 0
    names = {"pos_embed": "encoder.position"}
    names |= {f"{conv}.{kind}": f"encoder.embed.{kind}" for kind in ("weight", "bias")}
    while any(name.startswith(f"{layers}.layers.{depth}.") for name in tensors):
        for theirs, ours in _LAYER.items():
            for kind in ("weight", "bias"):
                name = f"{layers}.layers.{depth}.{theirs}{kind}"
                names[name] = f"encoder.blocks.{depth}.{ours}{kind}"
        depth += 1
    facts = {
        "image_size": math.isqrt(tokens) * patch,
        "patch_size": patch,
        "block": "postnorm",
        "in_channels": dim(tensors, f"{conv}.weight", 4, 1),
        "dim": dim(tensors, f"{conv}.weight", 4, 0),
        "depth": depth,
        "heads": _HEADS,
        "mlp_dim": dim(tensors, f"{layers}.layers.0.linear1.weight", 2, 0),
        "dropout": 0.1,
    }
    return facts, names


def _renamed(tensors: Weights, names: dict[str, str]) -> Weights:
    missing = [name for name in names if name not in tensors]
    unknown = [name for name in tensors if name not in names]
    if missing or unknown:
        parts = [f"{some(missing)} are missing"] if missing else []
        parts += [f"{some(unknown)} are unknown"] if unknown else []
        raise UserError(f"its weights are not those of the recipe's network: {'; '.join(parts)}")
    return {names[name]: value for name, value in tensors.items()}


# ---- common to all


def _fill(network: nn.Module, weights: Weights) -> None:
    """Give a network on the meta device its weights, which must be all and fit."""
    for name, own in network.state_dict().items():
        if name in weights and weights[name].shape != own.shape:
            raise UserError(
                f"its weights do not fit: {name} would be {tuple(own.shape)}, and is "
                f"{tuple(weights[name].shape)}"
            )
    plain = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    try:
        network.load_state_dict(plain, assign=True)
    except RuntimeError as error:
        raise UserError(f"its weights do not fit: {' '.join(str(error).split())}") from error
    network.eval()


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn what impossible sizes make of settings and networks into a sentence."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"its shapes make no network: {reason}") from error
