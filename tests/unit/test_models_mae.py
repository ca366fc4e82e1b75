"""The autoencoder whose encoder computes visible patches only."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lensdist.data.transforms import Preprocess
from lensdist.models.config import MaeConfig, MaskConfig, masked_count
from lensdist.models.mae import MaskedAutoencoder, pixel_mask
from lensdist.models.masking import make_mask
from lensdist.tasks.build import build_task
from tests.runs import MaeRun

pytestmark = pytest.mark.unit

MASK = MaskConfig(ratio=0.75, informative=0.0)


@pytest.fixture(params=["patch", "conv"])
def model(request: pytest.FixtureRequest) -> MaskedAutoencoder:
    torch.manual_seed(0)
    cfg = MaeConfig(
        image_size=16,
        patch_size=4,
        in_channels=2,
        stem=request.param,
        dim=16,
        depth=1,
        heads=2,
        mlp_dim=16,
        decoder="tokens",
        decoder_dim=8,
        decoder_depth=2,
    )
    return MaskedAutoencoder(cfg).eval()


def test_hidden_pixels_change_nothing_and_visible_ones_do(model: MaskedAutoencoder) -> None:
    images = torch.randn(5, 2, 16, 16)
    mask = make_mask(images, 4, MASK, 1, torch.arange(5))
    hidden = pixel_mask(mask, 4)
    made = model(images, mask)
    assert made.shape == images.shape
    assert torch.equal(model(torch.where(hidden, 7.0, images), mask), made)
    assert not torch.allclose(model(torch.where(hidden, images, 7.0), mask), made)


def test_the_number_hidden_may_be_said_or_counted(model: MaskedAutoencoder) -> None:
    images = torch.randn(3, 2, 16, 16)
    mask = make_mask(images, 4, MASK, 2, torch.arange(3))
    assert torch.equal(model(images, mask, masked_count(MASK, 16)), model(images, mask))


def test_each_token_stays_at_its_place(model: MaskedAutoencoder) -> None:
    """Visible tokens go back to where they came from: without positions, blocks and neighbours,
    a patch of the drawing depends on its own patch alone."""
    with torch.no_grad():
        for block in (*model.encoder.blocks, *model.decoder.blocks):  # type: ignore[union-attr, misc]
            for linear in (block.attention.out, block.mlp[3]):  # type: ignore[union-attr, index]
                linear.weight.zero_()
    images = torch.randn(1, 2, 16, 16)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, [0, 3, 7]] = True
    other = images.clone()
    other[..., 8:12, 4:8] += 1  # row 2, column 1
    changed = (model(images, mask) != model(other, mask)).any(1)[0]
    assert changed[8:12, 4:8].all()
    if model.cfg.stem == "patch":
        changed[8:12, 4:8] = False
        assert not changed.any()


def test_every_parameter_learns(model: MaskedAutoencoder) -> None:
    images = torch.randn(4, 2, 16, 16)
    model(images, make_mask(images, 4, MASK, 3, torch.arange(4))).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_decoder_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="heads 8 does not divide decoder_dim 36"):
        MaeConfig(decoder="tokens", decoder_dim=36)


@pytest.mark.parametrize(("loss", "chosen"), [("image", "mse"), ("masked", "mse_masked")])
def test_validation_chooses_by_what_is_trained(loss: str, chosen: str) -> None:
    cfg = MaeRun(task="mae", run={"dir": "x"}, data={"path": "x"}, loss=loss)
    task = build_task(cfg, (), Preprocess(cfg.preprocess, [0.0], [1.0]))
    assert task.select == (chosen, "min")
