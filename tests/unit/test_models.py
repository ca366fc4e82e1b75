"""Networks: an image's result is its own, and every token has its place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lensdist.models.classifier import Classifier
from lensdist.models.config import ClassifierConfig, EncoderConfig, MaeConfig, prime_factors
from lensdist.models.mae import Decoder, MaskedAutoencoder, pixel_mask
from lensdist.models.vit import Attention, Encoder

pytestmark = pytest.mark.unit

SMALL = {"image_size": 32, "patch_size": 8, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 32}


def images(n: int, size: int = 32, bands: int = 1) -> Tensor:
    return torch.rand(n, bands, size, size, generator=torch.Generator().manual_seed(n))


def seeded(model: type[nn.Module], *args: object) -> nn.Module:
    torch.manual_seed(0)
    return model(*args).eval()


@pytest.fixture
def classifier() -> nn.Module:
    return seeded(Classifier, ClassifierConfig(**SMALL, dropout=0.3, head_dropout=0.3), 3)


@torch.no_grad()
def test_a_prediction_does_not_depend_on_batch_mates(classifier: nn.Module) -> None:
    x = images(33)
    together = classifier(x)
    alone = torch.cat([classifier(x[i : i + 1]) for i in range(len(x))])
    assert float((together - alone).abs().max()) <= 1e-5
    others = classifier(torch.cat([x[:1], 100 * images(32)]))
    assert float((others[0] - alone[0]).abs().max()) <= 1e-5


def test_attention_stays_within_an_image() -> None:
    attention = seeded(Attention, 16, 4)
    x = torch.randn(3, 5, 16, requires_grad=True)
    attention(x)[1].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[[0, 2]], torch.zeros(2, 5, 16))
    assert (x.grad[1].abs().sum(1) > 0).all()  # and reaches every token of it


@torch.no_grad()
def test_attention_is_that_of_its_definition() -> None:
    attention = seeded(Attention, 8, 2)
    x = torch.randn(2, 5, 8)
    q, k, v = attention.qkv(x).split(8, dim=2)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = (q[..., h] @ k[..., h].transpose(1, 2) / 2).softmax(2)
        heads.append(weights @ v[..., h])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, 2)))


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 1), (3, 3)])
def test_a_bright_patch_changes_its_own_token_most(place: tuple[int, int]) -> None:
    encoder = seeded(Encoder, EncoderConfig(**SMALL))
    row, column = place
    dark = torch.zeros(1, 1, 32, 32)
    bright = dark.clone()
    bright[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    change = (encoder(bright) - encoder(dark)).norm(dim=2)[0]
    assert int(change.argmax()) == 4 * row + column


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (3, 2)])
@pytest.mark.parametrize(("size", "patch"), [(32, 8), (40, 10)])
def test_the_decoder_draws_a_token_where_it_belongs(
    place: tuple[int, int], size: int, patch: int
) -> None:
    decoder = seeded(Decoder, MaeConfig(**{**SMALL, "image_size": size, "patch_size": patch}))
    row, column = place
    tokens = torch.zeros(1, 16, 32)
    changed = tokens.clone()
    changed[0, 4 * row + column] = 1
    change = (decoder(changed) - decoder(tokens)).abs()[0, 0]
    assert change.shape == (size, size)
    by_patch = change.reshape(4, patch, 4, patch).mean((1, 3))
    assert int(by_patch.argmax()) == 4 * row + column
    assert float(by_patch[row, column]) > 4 * float(by_patch.sum() - by_patch[row, column]) / 15


@torch.no_grad()
def test_the_encoder_sees_nothing_of_a_hidden_patch() -> None:
    model = seeded(MaskedAutoencoder, MaeConfig(**SMALL))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True
    x = images(2)
    other = x.clone()
    other[..., 8:16, 8:16] = torch.nan
    assert torch.equal(model(x, mask), model(other, mask))
    other = x.clone()
    other[..., 8:16, 16:24] += 1  # its neighbour is seen
    assert not torch.equal(model(x, mask), model(other, mask))


def test_a_patch_mask_covers_its_pixels() -> None:
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [1, 14]] = True
    pixels = pixel_mask(mask, 8)
    assert pixels.shape == (1, 1, 32, 32)
    assert int(pixels.sum()) == 2 * 64
    assert pixels[0, 0, 0:8, 8:16].all()
    assert pixels[0, 0, 24:32, 16:24].all()


def test_prime_factors_multiply_up() -> None:
    assert {n: prime_factors(n) for n in (2, 8, 10, 15, 7)} == {
        2: [2], 8: [2, 2, 2], 10: [2, 5], 15: [3, 5], 7: [7]
    }  # fmt: skip


def test_every_parameter_learns() -> None:
    for model, args in (
        (seeded(Classifier, ClassifierConfig(**SMALL), 3), (images(4),)),
        (
            seeded(MaskedAutoencoder, MaeConfig(**SMALL)),
            (images(4), torch.rand(4, 16) < 0.5),
        ),
    ):
        model(*args).square().mean().backward()
        still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still


def test_bands_and_sizes() -> None:
    cfg = {**SMALL, "image_size": 40, "patch_size": 10, "in_channels": 3}
    x = images(2, 40, 3)
    assert seeded(Classifier, ClassifierConfig(**cfg), 5)(x).shape == (2, 5)
    mae = seeded(MaskedAutoencoder, MaeConfig(**cfg))
    assert mae(x, torch.zeros(2, 16, dtype=torch.bool)).shape == x.shape


@pytest.mark.parametrize("change", [{"patch_size": 7}, {"heads": 5}])
def test_what_does_not_divide_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        EncoderConfig(**{**SMALL, **change})
