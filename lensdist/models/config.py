"""Settings of the networks (torch-free)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.utils.settings import Strict, Width

# Upper limits are far beyond use: they bound the memory that a file from elsewhere can request.


class EncoderConfig(Strict):
    """The vision transformer that every MAE-based task shares."""

    image_size: int = Field(
        64,
        ge=8,
        le=16_384,
        description="The pixels a side of an image, 64 in DeepLenseSim's Models II and III.",
    )
    patch_size: int = Field(
        8,
        ge=2,
        le=4096,
        description="The pixels a side of a patch, which must divide image_size; use 10 for 150.",
    )
    stem: Literal["patch", "conv"] = Field(
        "patch",
        description="The patch embedding. patch: one convolution as large as a patch (the recipe); "
        "conv: 3x3 convolutions that each halve the side, which learn from far fewer images (Xiao "
        "et al. 2021, arXiv:2106.14881).",
    )
    block: Literal["prenorm", "postnorm"] = Field(
        "prenorm",
        description="The form of a transformer layer. prenorm: LayerNorm before attention and MLP "
        "and after the last layer, GELU (Xiong et al. 2020, arXiv:2002.04745: no warm-up needed); "
        "postnorm: LayerNorm after each sum, and ReLU, also in the up-convolutions, as in the "
        "published weights (`lensdist import`).",
    )
    in_channels: int = Field(1, ge=1, le=4096, description="The number of bands of an image.")
    dim: int = Field(512, ge=8, le=65_536, description="The width of a token.")
    depth: int = Field(6, ge=1, le=256, description="The number of transformer layers.")
    heads: int = Field(8, ge=1, description="The number of attention heads, which must divide dim.")
    mlp_dim: int = Field(1024, ge=8, le=2**20, description="The width of the MLP's hidden layer.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="The dropout rate of attention outputs and MLPs."
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}"
            )
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}")
        return self

    @property
    def grid(self) -> int:
        """The number of patches a side."""
        return self.image_size // self.patch_size


class MaeConfig(EncoderConfig):
    """The masked autoencoder: encoder and decoder."""

    decoder: Literal["upconv", "tokens"] = Field(
        "upconv",
        description="The form of the decoder. upconv: up-convolutions, with masked patches in the "
        "sequence (the recipe); tokens: a transformer as in He et al. 2022, where the encoder sees "
        "visible patches only, so a mask of 0.75 is four times cheaper.",
    )
    decoder_dim: Width = Field(
        256,
        ge=8,
        le=65_536,
        description="The output channels of the first up-convolution, or the width of the "
        "decoder's tokens, which heads must divide.",
    )
    decoder_depth: int = Field(
        1, ge=1, le=256, description="The number of transformer layers of decoder: tokens."
    )

    @model_validator(mode="after")
    def _decoder_divides(self) -> Self:
        if self.decoder == "tokens" and self.decoder_dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide decoder_dim {self.decoder_dim}")
        return self


class MaskConfig(Strict):
    """The choice of the patches that are hidden from the encoder."""

    ratio: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="The fraction of patches that are masked, rounded down to at least one patch.",
    )
    informative: float = Field(
        1.0,
        ge=0,
        le=1,
        description="The fraction of masked patches that are those of highest entropy; the others "
        "are drawn at random from the remaining patches.",
    )


class ClassifierConfig(EncoderConfig):
    """The classifier: encoder, average pooling over patch tokens, and head."""

    head_dims: tuple[Width, ...] = Field(
        (256,),
        max_length=64,
        description="The widths of the head's hidden layers, (256,) in the recipe.",
    )
    head_norm: bool = Field(
        False,
        description="Use BatchNorm without scale and shift between pooling and head (He et al. "
        "2022), because the differences between classes are small in the pooled features.",
    )
    head_dropout: float = Field(
        0.0, ge=0, lt=1, description="The dropout rate before each linear layer of the head."
    )


class EnsembleConfig(Strict):
    """The networks of the common task: image classifiers, each with its own head."""

    members: tuple[str, ...] = Field(
        ("densenet161", "resnet18"),
        min_length=1,
        max_length=64,
        description="The image classifiers: of torchvision by name, of timm after `timm/`, your "
        "own by import path (mylab.nets:MyNet), or lensnet, a small network for fitted lenses. One "
        "member makes a single network.",
    )
    image_size: int = Field(
        150, ge=8, le=16_384, description="The pixels a side of an image on disk."
    )
    in_channels: int = Field(1, ge=1, le=4096, description="The number of bands of an image.")
    resize: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="The pixels a side that the networks see, 224 in the recipe. null: as on disk.",
    )
    grey: Literal["repeat", "fold"] = Field(
        "repeat",
        description="The input of networks for RGB. repeat: one band is repeated three times; "
        "fold: the first kernels are summed over the bands, for the same outputs with less work.",
    )
    head_dims: tuple[Width, ...] = Field(
        (1024, 64),
        max_length=64,
        description="The widths of the head's hidden layers, each of linear, ReLU, BatchNorm and "
        "dropout.",
    )
    head_dropout: float = Field(
        0.33, ge=0, lt=1, description="The dropout rate after each hidden layer of the head."
    )
    combine: Literal["logits", "probabilities", "learned"] = Field(
        "logits",
        description="The mean over the members: of their logits (the recipe), of their "
        "probabilities, or of logits with learned weights that add up to 1.",
    )

    @model_validator(mode="after")
    def _channels(self) -> Self:
        if self.grey == "repeat" and self.in_channels not in (1, 3):
            raise ValueError(f"grey: repeat takes 1 or 3 bands, not {self.in_channels}; use fold")
        return self


class SuperResolverConfig(Strict):
    """The super-resolution network: the MAE's encoder, and a decoder of the large image."""

    image_size: int = Field(75, ge=8, le=16_384, description="The pixels a side of LR on disk.")
    factor: Literal[2, 3, 4] = Field(2, description="The pixels a side of HR over those of LR.")
    in_channels: int = Field(1, ge=1, le=4096, description="The number of bands of an image.")
    encoder: EncoderConfig = Field(
        EncoderConfig(),
        description="The MAE's encoder; if its image_size is not LR's, LR is resized.",
    )
    decoder: Literal["upconv", "residual"] = Field(
        "residual",
        description="The form of the decoder. upconv: up-convolutions from the encoder's tokens, "
        "and a smoothing convolution (the recipe); residual: a correction to bicubic "
        "interpolation, from the tokens and from convolutions at LR's resolution, for brightness "
        "from 0 to about 1 (preprocess.scale: minmax).",
    )
    width: int = Field(
        32,
        ge=4,
        le=65_536,
        description="The channels at LR's resolution (residual) or at the largest size (upconv).",
    )
    depth: int = Field(
        4, ge=0, le=256, description="The number of convolution blocks of decoder: residual."
    )
    exact_means: bool = Field(
        True,
        description="Give every block of factor x factor pixels the mean of its LR pixel, so that "
        "flux is conserved (decoder: residual).",
    )
    sigma: bool = Field(False, description="Also predict each pixel's standard deviation.")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.encoder.in_channels != self.in_channels:
            raise ValueError(
                f"encoder.in_channels {self.encoder.in_channels} is not in_channels "
                f"{self.in_channels}"
            )
        return self


def prime_factors(n: int) -> list[int]:
    """Return the prime factors in ascending order: 8 -> [2, 2, 2], 10 -> [2, 5]."""
    for f in range(2, int(n**0.5) + 1):
        if n % f == 0:
            return [f, *prime_factors(n // f)]
    return [n]


def masked_count(cfg: MaskConfig, patches: int) -> int:
    """Return the number of hidden patches of an image (3 in the recipe: 5 % of 64)."""
    return max(1, int(cfg.ratio * patches))
