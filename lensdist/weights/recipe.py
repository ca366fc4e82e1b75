"""The recipe's transformers as its notebooks build them, for comparison with pickled modules."""

from __future__ import annotations

from typing import cast

from torch import nn

from lensdist.models.classifier import Classifier
from lensdist.models.config import ClassifierConfig, EncoderConfig, MaeConfig
from lensdist.models.mae import Decoder, MaskedAutoencoder
from lensdist.weights.modules import stand_in


def custom_mae(cfg: MaeConfig, network: MaskedAutoencoder) -> nn.Module:
    """Build the autoencoder as the notebook does, with our layers where they are the same."""
    decoder = cast(Decoder, network.decoder)
    return stand_in(
        "CustomMAE",
        img_size=cfg.image_size,
        patch_size=cfg.patch_size,
        num_patches=cfg.grid**2,
        embed_dim=cfg.dim,
        patch_embed=network.encoder.embed,
        pos_embed=network.encoder.position,
        encoder=_transformer(cfg),
        decoder=nn.Sequential(*decoder.up, decoder.out),
    )


def mae_classifier(cfg: ClassifierConfig, network: Classifier) -> nn.Module:
    """Build the classifier as the notebook does, with our layers where they are the same."""
    return stand_in(
        "MAEClassifier",
        encoder=network.encoder.embed,
        pos_embed=network.encoder.position,
        transformer=_transformer(cfg),
        cls_head=nn.Sequential(*(m for m in network.head if not isinstance(m, nn.Dropout))),
    )


def _transformer(cfg: EncoderConfig) -> nn.Module:
    layer = nn.TransformerEncoderLayer(cfg.dim, cfg.heads, cfg.mlp_dim, dropout=cfg.dropout)
    return nn.TransformerEncoder(layer, cfg.depth, enable_nested_tensor=False)
