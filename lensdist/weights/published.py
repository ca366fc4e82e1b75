"""Recognition of published networks, and conversion of their weights to ours.

Supported are torchvision's DenseNets and ResNets with the recipe's head or a single linear layer,
alone or several in one file (the recipe's `EnsembleModel`), and the recipe's masked autoencoder and
its classifier (github.com/Akhil-blanc/Deeplense-ML4SCI). A file is refused unless every tensor of
it is used and every weight of ours comes from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lensdist.models.backbones import whole
from lensdist.models.classifier import Classifier
from lensdist.models.config import (
    ClassifierConfig,
    EnsembleConfig,
    MaeConfig,
    prime_factors,
)
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder
from lensdist.utils.errors import UserError
from lensdist.utils.tensors import misfit, nonfinite
from lensdist.utils.text import some
from lensdist.weights.architectures import (
    MAX_LAYERS,
    Weights,
    dim,
    head_of,
    members_of,
    modern_names,
)
from lensdist.weights.choices import RECIPE_RESIZE, RECIPE_SIZE, Choices
from lensdist.weights.modules import check_module, stand_in, values_of
from lensdist.weights.recipe import custom_mae, mae_classifier
from lensdist.weights.unpickling import Object

_MAX_MEMBERS = 16
_HEADS = 8  # the recipe's attention heads, which no shape shows
_LAYER = {  # nn.TransformerEncoderLayer -> lensdist.models.vit.Block
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj.": "attention.out.",
    "linear1.": "mlp.0.",
    "linear2.": "mlp.3.",
    "norm1.": "norm1.",
    "norm2.": "norm2.",
}
_ACROSS = (
    "with attention across the images of a batch (nn.TransformerEncoder without batch_first), "
    "which stays within an image here"
)
_NOTE = "trained {}, so these weights give other outputs here: fine-tune before use"


@dataclass(frozen=True)
class Published:
    """A published network, converted to ours.

    Attributes:
        classes: the number of outputs of the last layer; 0: it is not a classifier.
        labels: the classes in the order of the recipe's notebook.
        scale: the notebook's scaling of images, as in `PreprocessConfig`.
        network: our network, with the weights in float32.
        seen: the bands that the network's first layer sees.
        assumed: assumptions about the network, which the file does not state.
        note: a warning about these weights, if there is one.
    """

    task: Literal["common", "mae", "finetune"]
    model: EnsembleConfig | MaeConfig | ClassifierConfig
    classes: int
    labels: tuple[str, ...]
    scale: Literal["none", "minmax"]
    network: nn.Module
    seen: int
    assumed: tuple[str, ...]
    note: str | None = None


def recognise(
    tensors: Weights, choices: Choices | None = None, module: Object | None = None
) -> Published:
    """Find the network of the tensors, and load them into ours.

    Args:
        tensors: the weights by their published names.
        choices: the user's options.
        module: the description of the whole module; None: the file holds a state dict.

    Raises:
        UserError: no network here has exactly these weights or computes the same as the module;
            the message names the difference.
    """
    choices = choices or Choices()
    if empty := [n for n, t in tensors.items() if not t.numel()]:
        raise UserError(f"its {some(empty)} hold no numbers")
    if bad := nonfinite(tensors):
        raise UserError(f"its {bad} holds NaN or infinity: the training failed")
    if "pos_embed" in tensors:
        make = _mae if "patch_embed.weight" in tensors else _classifier
        found = make(tensors, module)
        size, bands = found.model.image_size, found.model.in_channels
        own = {"size": size, "bands": bands, "resize": 0}
        if any(getattr(choices, option) not in (None, value) for option, value in own.items()):
            raise UserError(
                f"this network takes images of {size} pixels a side and {bands} band(s) as they "
                "are; leave out --size, --bands and --resize"
            )
        return found
    return _ensemble(members_of(tensors), choices, module)


# ---- torchvision's networks


def _ensemble(
    members: list[tuple[str, Weights]], choices: Choices, module: Object | None
) -> Published:
    if len(members) > _MAX_MEMBERS:
        raise UserError(f"it holds {len(members)} networks, more than {_MAX_MEMBERS}")
    shapes = {head_of(state) for _, state in members}
    if len(shapes) > 1:
        raise UserError("its networks have different heads or bands; import them one by one")
    dims, classes, seen = shapes.pop()
    # The recipe repeats one band three times for kernels for RGB.
    bands = (1 if seen == 3 else seen) if choices.bands is None else choices.bands
    if bands not in ((1, 3) if seen == 3 else (seen,)):
        raise UserError(f"--bands {bands}: its first layer is for {seen} bands")
    size = choices.size or RECIPE_SIZE
    resize = RECIPE_RESIZE if choices.resize is None else choices.resize or None
    with _sentences():
        cfg = EnsembleConfig(
            members=tuple(architecture for architecture, _ in members),
            image_size=size,
            in_channels=bands,
            grey="repeat" if seen == 3 else "fold",
            resize=resize,
            head_dims=dims,
        )
        with torch.device("meta"):
            network = Ensemble(cfg, classes)
            if module is not None:
                check_module(module, _as_published(cfg, classes))
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
    assumed = _assumed(cfg, choices, module)
    labels = ("no", "sphere", "vort")
    return Published("common", cfg, classes, labels, "none", network, seen, assumed)


def _as_published(cfg: EnsembleConfig, classes: int) -> nn.Module:
    """Build the network as torchvision and the notebook do."""
    nets = [whole(name, cfg, classes, cfg.in_channels)[0] for name in cfg.members]
    if len(nets) == 1:
        return nets[0]
    return stand_in("EnsembleModel", **{f"model{k}": net for k, net in enumerate(nets, start=1)})


def _assumed(cfg: EnsembleConfig, choices: Choices, module: Object | None) -> tuple[str, ...]:
    """Return the assumptions that neither the file nor the user states."""
    found = []
    if module is None:
        found.append(
            f"{' and '.join(cfg.members)} of torchvision, strides, pooling, activations and the "
            "epsilon of BatchNorm (1e-5) included: a state_dict holds names and shapes only"
        )
    if len(cfg.members) > 1:
        found.append("the mean of the members' logits, as in the recipe's EnsembleModel")
    if choices.size is None:
        found.append(f"--size {cfg.image_size}: pixels a side of the images on disk")
    if choices.resize is None:
        found.append(f"--resize {cfg.resize}: pixels a side in the network, bilinear, antialiased")
    return tuple(found)


# ---- the recipe's autoencoder and classifier


def _mae(tensors: Weights, module: Object | None) -> Published:
    facts, names = _encoder(tensors, "patch_embed", "encoder")
    factors = prime_factors(facts["patch_size"])
    for i in range(len(factors) + 1):
        ours = f"decoder.up.{2 * i}" if i < len(factors) else "decoder.out"
        names |= {f"decoder.{2 * i}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    with _sentences():
        cfg = MaeConfig(**facts, decoder_dim=dim(tensors, "decoder.0.weight", 4, 1))
        with torch.device("meta"):
            network = MaskedAutoencoder(cfg)
            if module is not None:
                check_module(module, custom_mae(cfg, network))
    _fill(network, _renamed(tensors, names))
    note = _note(module, ["with tokens scrambled before the decoder (view for transpose)"])
    assumed = _vit_assumed("CustomMAE", module)
    return Published("mae", cfg, 0, (), "minmax", network, cfg.in_channels, assumed, note)


def _classifier(tensors: Weights, module: Object | None) -> Published:
    facts, names = _encoder(tensors, "encoder", "transformer")
    widths: list[int] = []
    while f"cls_head.{2 * len(widths)}.weight" in tensors and len(widths) <= MAX_LAYERS:
        i = len(widths)
        # Ours has a dropout before each linear layer, so three modules for their two.
        names |= {f"cls_head.{2 * i}.{k}": f"head.{3 * i + 1}.{k}" for k in ("weight", "bias")}
        widths.append(dim(tensors, f"cls_head.{2 * i}.weight", 2, 0))
    if not widths:
        raise UserError("its network has position embeddings but no decoder and no cls_head")
    with _sentences():
        cfg = ClassifierConfig(**facts, head_dims=tuple(widths[:-1]))
        with torch.device("meta"):
            network = Classifier(cfg, widths[-1])
            if module is not None:
                check_module(module, mae_classifier(cfg, network))
    _fill(network, _renamed(tensors, names))
    # The notebook trained it on raw images, although its encoder was pretrained on scaled ones.
    labels = ("axion", "no_sub", "cdm")
    assumed = _vit_assumed("MAEClassifier", module)
    note = _note(module, [])
    return Published(
        "finetune", cfg, widths[-1], labels, "none", network, cfg.in_channels, assumed, note
    )


def _note(module: Object | None, wrong: list[str]) -> str | None:
    if module is None or not all(values_of(module, "batch_first")):
        wrong = [_ACROSS, *wrong]
    return _NOTE.format(" and ".join(wrong)) if wrong else None


def _vit_assumed(name: str, module: Object | None) -> tuple[str, ...]:
    if module is not None:
        return (f"the code of {name} of the recipe: a file does not hold the code of a class",)
    return (
        f"{name} of the recipe, {_HEADS} heads, ReLU and the epsilon of LayerNorm (1e-5) included: "
        "a state_dict holds names and shapes only",
    )


def _encoder(tensors: Weights, conv: str, layers: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the encoder's settings, and the names of its weights: theirs -> ours."""
    patch, tokens = dim(tensors, f"{conv}.weight", 4, 2), dim(tensors, "pos_embed", 3, 1)
    depth = 0
    names = {"pos_embed": "encoder.position"}
    names |= {f"{conv}.{kind}": f"encoder.embed.{kind}" for kind in ("weight", "bias")}
    while f"{layers}.layers.{depth}.linear1.weight" in tensors:
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
    """Load weights into a network on the meta device; they must be complete and fit."""
    plain = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    if odd := misfit(network.state_dict(), plain):
        raise UserError(f"its weights do not fit: {odd}")
    network.load_state_dict(plain, assign=True)
    network.eval()


@contextmanager
def _sentences() -> Iterator[None]:
    """Convert the errors that impossible sizes cause to a UserError."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"its shapes do not make a network: {reason}") from error
