"""Metrics of super-resolution: against scikit-image and NumPy, and what cannot be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from lensdist.metrics import super_resolution as sr
from lensdist.models.resample import bicubic, block_means, with_means
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.utils.errors import RunError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def pairs() -> dict[str, Tensor]:
    return Simulator(SimConfig(family="sr")).batch(5, torch.arange(6))


def scored(pairs: dict[str, Tensor], image: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return sr.of_images(image, pairs["image"], pairs["target"], truth=pairs["truth"], **more)


def test_psnr_and_ssim_are_those_of_scikit_image(pairs: dict[str, Tensor]) -> None:
    drawn = bicubic(pairs["image"], 2)
    found = scored(pairs, drawn)
    for i, (made, hr) in enumerate(
        zip(drawn[:, 0].numpy(), pairs["target"][:, 0].numpy(), strict=True)
    ):
        psnr = peak_signal_noise_ratio(hr, made, data_range=1.0)
        _, ssim = structural_similarity(
            hr, made, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert found["psnr"][i].item() == pytest.approx(psnr, abs=1e-4)
        # Its own mean leaves a border of 5 pixels out, torchmetrics' does not.
        assert found["ssim"][i].item() == pytest.approx(ssim.mean(), abs=5e-5)
        assert found["mse"][i].item() == pytest.approx(float(((made - hr) ** 2).mean()), rel=1e-4)
        assert found["psnr_bicubic"][i] == found["psnr"][i]


def test_another_range(pairs: dict[str, Tensor]) -> None:
    tenfold = {name: 10 * pairs[name] for name in ("image", "target", "truth")}
    plain = scored(pairs, bicubic(pairs["image"], 2))
    found = sr.of_images(
        bicubic(tenfold["image"], 2), tenfold["image"], tenfold["target"], data_range=10.0
    )
    assert torch.allclose(found["psnr"], plain["psnr"], atol=1e-3)
    assert torch.allclose(found["ssim"], plain["ssim"], atol=1e-4)
    above = {name: 5000 + pairs[name] for name in ("image", "target")}  # a sky
    found = sr.of_images(bicubic(above["image"], 2), above["image"], above["target"])
    assert torch.allclose(found["ssim"], plain["ssim"], atol=0.02)


def test_the_gap_is_1_for_bicubic_and_0_for_the_oracle(pairs: dict[str, Tensor]) -> None:
    for image, gap in (
        (bicubic(pairs["image"], 2), 1.0),
        (sr.oracle(pairs["truth"], pairs["image"]), 0.0),
    ):
        scores = scored(pairs, image)
        found = sr.summary(scores) | sr.intervals(scores)
        assert found["gap"] == pytest.approx(gap, abs=1e-6)
        assert found["gap_ci"] == pytest.approx([gap, gap], abs=1e-6)
    blurred = with_means(bicubic(pairs["image"], 2), pairs["image"])
    scores = scored(pairs, blurred)
    found = sr.summary(scores) | sr.intervals(scores)
    a, b, c = (scores[f"mse{x}"].mean() for x in ("", "_bicubic", "_oracle"))
    assert found["gap"] == pytest.approx(float((a - c) / (b - c)))
    low, high = found["gap_ci"]
    assert low < found["gap"] < high
    assert sr.gap(scores["mse"], scores["mse_bicubic"], scores["mse_oracle"])["ci"] == [low, high]


def test_the_oracle_has_lr_s_means_and_the_truth_s_shape(pairs: dict[str, Tensor]) -> None:
    made = sr.oracle(pairs["truth"], pairs["image"])
    assert torch.allclose(block_means(made, 2), pairs["image"], atol=1e-6)
    scores = scored(pairs, made)
    assert (scores["mse_oracle"] < scores["mse_bicubic"]).all()
    assert torch.allclose(
        scores["mse_truth"], (made - pairs["truth"]).double().square().mean((1, 2, 3))
    )


def test_gains_are_paired(pairs: dict[str, Tensor]) -> None:
    """A gain alike in all images has no width, however much images differ."""
    scores = scored(pairs, bicubic(pairs["image"], 2))
    better = {**scores, "psnr": scores["psnr_bicubic"] + 0.3}
    found = sr.summary(better) | sr.intervals(better)
    assert found["psnr_gain"] == pytest.approx(0.3)
    assert found["psnr_gain_ci"] == pytest.approx([0.3, 0.3])
    low, high = found["psnr_ci"]
    assert high - low > 0.1


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_coverage_counts_what_sigma_says(factor: float) -> None:
    draws = torch.randn(4, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    found = sr.coverage(draws.abs() / factor)
    for name, z in (("coverage_68", sr.Z68), ("coverage_95", sr.Z95)):
        expected = math.erf(z * factor / math.sqrt(2))
        assert found[name].mean().item() == pytest.approx(expected, abs=3e-3)
    assert math.erf(sr.Z68 / math.sqrt(2)) == pytest.approx(0.68)
    half = torch.ones(4, 1, 200, 200)
    half[..., :100] = 0
    worse = draws.abs().clone()
    worse[..., :100] = 9
    kept = sr.coverage(worse, half)
    assert torch.allclose(kept["coverage_95"], sr.coverage(draws.abs()[..., 100:])["coverage_95"])


def test_weights_count(pairs: dict[str, Tensor]) -> None:
    weight = torch.ones_like(pairs["target"])
    weight[..., :40, :] = 0
    drawn = bicubic(pairs["image"], 2)
    junk = drawn.clone()
    junk[..., :40, :] = 1e9
    assert torch.equal(
        scored(pairs, junk, weight=weight)["mse"], scored(pairs, drawn, weight=weight)["mse"]
    )
    ssim = scored(pairs, junk, weight=weight)["ssim"]
    assert torch.equal(ssim, scored(pairs, drawn, weight=weight)["ssim"])
    want = (drawn - pairs["target"])[..., 40:, :].double().square().mean((1, 2, 3))
    assert torch.allclose(scored(pairs, drawn, weight=weight)["mse"], want)
    weight = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
    error, count = (x.double().numpy() for x in (drawn - pairs["target"], weight))
    want = torch.from_numpy((error**2 * count).sum((1, 2, 3)) / count.sum((1, 2, 3)))
    assert torch.allclose(scored(pairs, drawn, weight=weight)["mse"], want, rtol=1e-12, atol=0)
    pull = torch.tensor([0.5, 0.9965, 1.5, 3.0]).view(1, 1, 2, 2)  # 0.9945 and 1.96 are the ends
    half = torch.tensor([0.1, 0.9, 0.9, 0.9]).view(1, 1, 2, 2)
    found = sr.coverage(pull, half)
    assert (float(found["coverage_68"]), float(found["coverage_95"])) == (0.25, 0.75)


def test_what_cannot_be_scored(pairs: dict[str, Tensor]) -> None:
    scores = scored(pairs, pairs["target"])  # without any error: no finite PSNR
    found = sr.summary(scores)
    assert found["no_psnr"] == 6
    assert math.isnan(found["psnr"])
    assert sr.intervals(scores) == {}
    drawn = scored(pairs, bicubic(pairs["image"], 2))
    drawn["psnr_bicubic"] = torch.tensor([math.inf, *drawn["psnr_bicubic"][1:].tolist()])
    found = sr.summary(drawn)
    assert found["no_psnr"] == 1
    assert found["psnr"] == pytest.approx(float(drawn["psnr"][1:].mean()))
    with pytest.raises(RunError, match="mse of 6 images"):
        sr.summary({**scores, "mse": torch.full((6,), np.nan)})
    with pytest.raises(RunError, match="of 0 images"):
        sr.summary({name: value[:0] for name, value in scores.items()})
