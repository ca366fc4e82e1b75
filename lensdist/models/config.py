"""Settings of the networks (torch-free)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.utils.settings import Strict, Width

# Upper limits are far beyond use: they bound what a stranger's description can ask for.


class EncoderConfig(Strict):
    """The vision transformer that every MAE-based task shares."""

    image_size: int = Field(
        64, ge=8, le=16_384, description="pixels a side; DeepLenseSim II and III are 64"
    )
    patch_size: int = Field(8, ge=2, le=4096, description="pixels a side of a patch; 10 suits 150")
    stem: Literal["patch", "conv"] = Field(
        "patch",
        description="patch: one convolution as large as a patch (the recipe); conv: 3x3 "
        "convolutions that halve the side each, which learn from far fewer images "
        "(Xiao et al. 2021, arXiv:2106.14881)",
    )
    block: Literal["prenorm", "postnorm"] = Field(
        "prenorm",
        description="prenorm: LayerNorm before attention and MLP and after the last layer, GELU "
        "(Xiong et al. 2020, arXiv:2002.04745: no warm-up needed); postnorm: LayerNorm after each "
        "sum, ReLU, up-convolutions with ReLU too, as in the published weights (`lensdist import`)",
    )
    in_channels: int = Field(1, ge=1, le=4096, description="bands")
    dim: int = Field(512, ge=8, le=65_536, description="width of a token")
    depth: int = Field(6, ge=1, le=256, description="transformer layers")
    heads: int = Field(8, ge=1, description="attention heads; divides dim")
    mlp_dim: int = Field(
        1024, ge=8, le=2**20, description="width of the hidden layer between attentions"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="in attention output and MLP")

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
        """Patches a side."""
        return self.image_size // self.patch_size


class MaeConfig(EncoderConfig):
    """Encoder + decoder."""

    decoder: Literal["upconv", "tokens"] = Field(
        "upconv",
        description="upconv: the recipe's, masked patches stay in the sequence; tokens: as He et "
        "al. 2022, the encoder sees visible patches only, so a mask of 0.75 is four times cheaper",
    )
    decoder_dim: Width = Field(
        256,
        ge=8,
        le=65_536,
        description="channels of the first up-convolution's output; or width of the decoder's "
        "tokens, which heads must divide",
    )
    decoder_depth: int = Field(
        1, ge=1, le=256, description="tokens: transformer layers of the decoder"
    )

    @model_validator(mode="after")
    def _decoder_divides(self) -> Self:
        if self.decoder == "tokens" and self.decoder_dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide decoder_dim {self.decoder_dim}")
        return self


class MaskConfig(Strict):
    """Which patches are hidden from the encoder, in the pixels."""

    ratio: float = Field(
        0.05, gt=0, lt=1, description="share of patches masked (rounded down, at least one)"
    )
    informative: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the masked patches taken from the top of the entropy ranking; "
        "the rest are drawn at random from those that are left",
    )


class ClassifierConfig(EncoderConfig):
    """Encoder + global average pooling over patch tokens + head."""

    head_dims: tuple[Width, ...] = Field(
        (256,),
        max_length=64,
        description="hidden widths of the head (the recipe's 512 -> 256 -> classes)",
    )
    head_norm: bool = Field(
        False,
        description="BatchNorm without scale and shift between pooling and head, as in He et al. "
        "2022: what tells the classes apart is a small part of the pooled features' size",
    )
    head_dropout: float = Field(0.0, ge=0, lt=1, description="before each linear layer")


class EnsembleConfig(Strict):
    """The common task's networks: torchvision classifiers, each with a head of its own."""

    members: tuple[str, ...] = Field(
        ("densenet161", "resnet18"),
        min_length=1,
        max_length=64,
        description="image classifiers: of torchvision by name; of timm after `timm/`; your own by "
        "import path, mylab.nets:MyNet; or lensnet, our small one for fitted lenses. One makes a "
        "single network",
    )
    image_size: int = Field(150, ge=8, le=16_384, description="pixels a side, as on disk")
    in_channels: int = Field(1, ge=1, le=4096, description="bands")
    resize: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="pixels a side that the networks see (the recipe: 224); null: as on disk",
    )
    grey: Literal["repeat", "fold"] = Field(
        "repeat",
        description="how other than three bands meet kernels for RGB: repeat one band three "
        "times; or fold the kernels over the bands, the same outputs for less work",
    )
    head_dims: tuple[Width, ...] = Field(
        (1024, 64),
        max_length=64,
        description="widths of the head's linear + ReLU + BatchNorm + dropout layers",
    )
    head_dropout: float = Field(0.33, ge=0, lt=1, description="after each of them")
    combine: Literal["logits", "probabilities", "learned"] = Field(
        "logits",
        description="mean of the members' logits (the recipe) or of their probabilities; learned: "
        "logits with learned weights that add up to 1",
    )

    @model_validator(mode="after")
    def _channels(self) -> Self:
        if self.grey == "repeat" and self.in_channels not in (1, 3):
            raise ValueError(f"grey: repeat takes 1 or 3 bands, not {self.in_channels}; use fold")
        return self


class SuperResolverConfig(Strict):
    """Super-resolution: the MAE's encoder, and what draws the large image from it."""

    image_size: int = Field(75, ge=8, le=16_384, description="pixels a side of LR, as on disk")
    factor: Literal[2, 3, 4] = Field(2, description="HR is so many times as large as LR")
    in_channels: int = Field(1, ge=1, le=4096, description="bands")
    encoder: EncoderConfig = Field(
        EncoderConfig(), description="of the MAE; where its image_size is not LR's, LR is resized"
    )
    decoder: Literal["upconv", "residual"] = Field(
        "residual",
        description="upconv: the recipe's up-convolutions from the encoder's tokens alone, and a "
        "smoothing convolution; residual: what bicubic interpolation lacks, from the tokens and "
        "from convolutions at LR's own resolution; it expects brightness from 0 to about 1 "
        "(preprocess.scale: minmax)",
    )
    width: int = Field(
        32,
        ge=4,
        le=65_536,
        description="channels: residual, at LR's resolution; upconv, at the largest size",
    )
    depth: int = Field(4, ge=0, le=256, description="residual: blocks of convolutions")
    exact_means: bool = Field(
        True,
        description="residual: every block of factor x factor pixels has the mean of its LR pixel, "
        "which is what LR is made of; so no flux is lost or made",
    )
    sigma: bool = Field(False, description="also draw each pixel's standard deviation")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.encoder.in_channels != self.in_channels:
            raise ValueError(
                f"encoder.in_channels {self.encoder.in_channels} is not in_channels "
                f"{self.in_channels}"
            )
        return self


def prime_factors(n: int) -> list[int]:
    """Ascending: 8 -> [2, 2, 2], 10 -> [2, 5]."""
    for f in range(2, int(n**0.5) + 1):
        if n % f == 0:
            return [f, *prime_factors(n // f)]
    return [n]


def masked_count(cfg: MaskConfig, patches: int) -> int:
    """How many of an image's patches are hidden (the reference's 5 % of 64 is 3)."""
    return max(1, int(cfg.ratio * patches))
