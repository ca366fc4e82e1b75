"""The unit, the background and the place of an image do not change what a network sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.residual import logistic_regression
from lensdist.data import smooth
from lensdist.data.config import PreprocessConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.manifest import Manifest
from lensdist.data.packing.pack import pack
from lensdist.data.registered import Registered, registered
from lensdist.data.smooth import Smooth, fit_smooth, principal, smooth_settings
from lensdist.data.transforms import Preprocess
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.utils import rng
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit

CFG = PreprocessConfig(scale="residual", softening=1.0, components=150, shift=3)


def _simulated(seed: int, n: int) -> Tensor:
    simulator = Simulator(SimConfig(vortex="rod"))
    return simulator.batch(rng.key(seed, "registered"), torch.arange(n))["image"]


@pytest.fixture(scope="module", autouse=True)
def fewer_lenses() -> Iterator[None]:
    """Make the basis of fewer lenses, which takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smooth, "_SIMULATED", 400)
        smooth._of_family.cache_clear()
        yield
    smooth._of_family.cache_clear()


@pytest.fixture(scope="module")
def scaled(tiny_set: Path) -> Preprocess:
    made = Preprocess(CFG, [0.0], [1.0], fit_smooth(PackedSet(tiny_set), CFG))
    made.learn_limits(made.examine(_simulated(1, 300)).columns)
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return _simulated(2, 90)


def _peak(x: Tensor) -> Tensor:
    return x.amax((1, 2, 3), keepdim=True)


SAME = {
    "x 0.1": lambda x: 0.1 * x,
    "x 10": lambda x: 10 * x,
    "by its maximum": lambda x: x / _peak(x),
    "a background": lambda x: x + 0.1 * _peak(x),
    "down": lambda x: x.roll(1, 2),
    "up": lambda x: x.roll(-1, 2),
    "right": lambda x: x.roll(1, 3),
    "left": lambda x: x.roll(-1, 3),
}


@pytest.mark.parametrize("name", SAME)
def test_what_the_network_sees_stays(name: str, scaled: Preprocess, images: Tensor) -> None:
    plain, changed = scaled.examine(images), scaled.examine(SAME[name](images))
    off = (plain.seen - changed.seen).abs().amax((1, 2, 3))
    assert plain.seen.std() > 0.2
    # Substructure may move an image by 2 pixels; one more is the last that is fitted, and flagged.
    assert bool(((off < 1e-3) | changed.flagged).all())
    assert float((off < 1e-3).double().mean()) > 0.97


def _moved(images: Tensor, down: float, right: float) -> Tensor:
    """Move images without a spline: by a factor for each of their waves."""
    size = images.shape[-1]
    wave = torch.fft.fftfreq(size, dtype=torch.float64)
    turn = torch.exp(-2j * torch.pi * (down * wave[:, None] + right * wave))
    moved: Tensor = torch.fft.ifft2(torch.fft.fft2(images.double()) * turn).real.float()
    return moved


@pytest.mark.parametrize("move", [(0.5, 0.0), (0.3, -0.7), (-1.0, 0.9), (0.5, 0.5)])
def test_fractions_of_a_pixel_are_fitted(
    move: tuple[float, float], scaled: Preprocess, images: Tensor
) -> None:
    plain, moved = scaled.examine(images), scaled.examine(_moved(images, *move))
    for name, by in zip(("fit_shift_y", "fit_shift_x"), move, strict=True):
        off = (moved.columns[name] - plain.columns[name] - by).abs()
        assert float(off.median()) < 0.03
    change = (moved.seen - plain.seen).flatten(1).norm(dim=1) / plain.seen.flatten(1).norm(dim=1)
    assert float(change[torch.arange(len(images)) % 3 > 0].median()) < 0.2
    smooth_ones, cdm = (moved.columns["fit_residual"][k::3] for k in (0, 1))
    assert float(smooth_ones.quantile(0.9)) < float(cdm.quantile(0.1))


def test_a_lens_drawn_between_pixels_leaves_as_little(scaled: Preprocess, images: Tensor) -> None:
    simulator = Simulator(SimConfig(vortex="rod"))
    # An image with one more pixel a side has its centre half a pixel lower and further right.
    simulator.family = replace(simulator.family, n_pix=65)
    drawn = simulator.batch(rng.key(2, "registered"), torch.arange(90))["image"][..., :64, :64]
    plain, moved = scaled.examine(images), scaled.examine(drawn)
    for name in ("fit_shift_x", "fit_shift_y"):
        off = moved.columns[name] - plain.columns[name] - 0.5
        assert float(off.abs().median()) < 0.05
    smooth_ones, cdm = (moved.columns["fit_residual"][k::3] for k in (0, 1))
    assert float(smooth_ones.quantile(0.9)) < float(cdm.quantile(0.1))


def test_half_a_pixel_costs_no_accuracy(scaled: Preprocess, images: Tensor) -> None:
    known = _simulated(5, 300)

    def features(x: Tensor) -> Tensor:
        square = torch.sinh(scaled(x)).flatten(1).double().square()
        parts = [square.mean(1), square.amax(1), square.square().mean(1), square.quantile(0.9, 1)]
        return torch.stack(parts, 1).log()

    labels = torch.arange(300) % 3
    moved = torch.cat([images, _moved(images, 0.5, 0.0), _moved(images, -0.3, 0.6)])
    logits = logistic_regression(features(known), labels, features(moved), 3)
    plain, *others = (logits.argmax(1) == torch.arange(270) % 3).double().view(3, 90).mean(1)
    assert plain > 0.75
    assert all(other > plain - 0.04 for other in others)


def test_a_turn_by_180_degrees_turns_what_is_seen(scaled: Preprocess, images: Tensor) -> None:
    turned = scaled(images.flip(2, 3)).flip(2, 3)
    torch.testing.assert_close(turned, scaled(images), atol=1e-3, rtol=0)


def test_images_unlike_the_family_are_flagged(scaled: Preprocess, images: Tensor) -> None:
    noise = torch.rand(9, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for odd in (images.roll(5, 3), noise, torch.full((2, 1, 64, 64), 3.0)):
        found = scaled.examine(odd)
        assert float(found.flagged.double().mean()) > 0.95
        assert found.seen.isfinite().all()
    assert float(scaled.examine(_simulated(3, 300)).flagged.double().mean()) < 0.02


def test_the_noise_stays_in_units_of_the_flux(scaled: Preprocess, images: Tensor) -> None:
    noise = 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    once, twice = (scaled.examine(images + k * noise).columns["fit_residual"] for k in (1, 2))
    without = slice(0, None, 3)
    assert 1.7 < float((twice / once)[without].median()) < 2.1
    brighter = scaled.examine(10 * (images + noise)).columns
    torch.testing.assert_close(brighter["fit_residual"], once, atol=1e-4, rtol=0)


def test_a_bad_pixel_reaches_nothing(scaled: Preprocess, images: Tensor) -> None:
    images = images[:12]
    assert isinstance(scaled.smooth, Registered)
    good = torch.ones_like(images, dtype=torch.bool)
    good[:, :, 20:22, 30:32] = False
    good[0] = False
    hot, cold = images.clone(), images.clone()
    hot[~good], cold[~good] = 1e6, -3.0
    seen = scaled(hot, good)
    assert torch.equal(seen, scaled(cold, good))
    assert seen.isfinite().all()
    fit = scaled.smooth.fit(images, good)
    unmoved = (fit.shift == fit.fraction).all(1)
    assert not seen[unmoved][:, :, 20:22, 30:32].any()
    # Where good pixels determine the smooth part, bad ones change little of what is seen.
    median = (seen - scaled(images))[1:].abs().flatten(1).median(1).values
    assert float(median.max()) < 0.1


def test_what_is_measured_of_a_fit(scaled: Preprocess, images: Tensor) -> None:
    basis = scaled.smooth
    assert isinstance(basis, Registered)
    fit = basis.fit(images[:30].roll((1, -2), (2, 3)))
    found, before = basis.columns(fit), basis.columns(basis.fit(images[:30]))
    moved = {name: found[f"fit_shift_{name}"] - before[f"fit_shift_{name}"] for name in "xy"}
    assert float(moved["y"].median()) == pytest.approx(1, abs=0.02)
    assert float(moved["x"].median()) == pytest.approx(-2, abs=0.02)
    nearest = torch.cdist(fit.coefficients[:, :16].float(), basis.typical).amin(1)
    torch.testing.assert_close(found["fit_distance"], nearest, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        found["fit_residual"], fit.residual.flatten(1).norm(dim=1).float(), atol=1e-6, rtol=1e-5
    )


def test_typical_lenses_are_told_as_images_are(images: Tensor) -> None:
    """They are in units of the flux, which is that of all components."""
    made = registered(images, 3, 40, "these")
    fit = made.fit(images)
    placed = (fit.shift.abs() < 0.5).all(1)
    assert placed.sum() > 50
    off = (fit.coefficients[placed, :16].float() - made.typical[placed]).norm(dim=1)
    assert off.median() < 0.03  # places are found again, to a fraction of a pixel
    assert off.max() < 0.1
    assert made.typical.norm(dim=1).max() < 0.99999


@pytest.mark.parametrize("move", [0, 2])
def test_the_inverse_returns_the_image_where_it_was(
    move: int, scaled: Preprocess, images: Tensor
) -> None:
    raw = 7 + 3 * images.roll(move, 2)
    torch.testing.assert_close(scaled.inverse(scaled(raw), raw), raw, atol=1e-4, rtol=0)


def test_the_state_restores_it(scaled: Preprocess, images: Tensor) -> None:
    again = Preprocess.from_state(scaled.state(), scaled.tensors())
    found, mine = again.examine(images), scaled.examine(images)
    assert torch.equal(found.seen, mine.seen)
    assert torch.equal(found.flagged, mine.flagged)
    assert again.limits == scaled.limits
    assert "simulated smooth lenses of model_ii" in scaled.state()["smooth_made"]
    assert scaled.needs == ""
    limits = scaled.limits or {}
    assert limits["fit_shift_x"] == limits["fit_shift_y"] == (-2.5, 2.5)
    assert "fit_flux" not in limits


def test_a_state_without_shift_keeps_its_basis_and_unit(images: Tensor) -> None:
    old = PreprocessConfig(scale="residual", softening=1.0)
    made = Preprocess(old, [0.0], [1.0], principal(images, 9))
    state = {k: v for k, v in made.state().items() if k not in ("shift", "family")}
    again = Preprocess.from_state(state, made.tensors())
    assert isinstance(again.smooth, Smooth)
    assert torch.equal(again(images), made(images))
    again.learn_limits(again.examine(images).columns)
    assert again.examine(10 * images).flagged.all()
    assert again.needs


@pytest.mark.parametrize("scale", ["standard", "asinh", "none"])
def test_scales_that_keep_the_unit_flag_another_one(scale: Any, images: Tensor) -> None:
    made = Preprocess(PreprocessConfig(scale=scale), [0.1], [0.2])
    made.learn_limits(made.examine(images).columns)
    assert float(made.examine(images).flagged.double().mean()) < 0.05
    assert float(made.examine(10 * images).flagged.double().mean()) > 0.95
    assert made.needs


def test_the_basis_uses_no_image_of_the_set(
    tiny_set: Path, scaled: Preprocess, tmp_path: Path
) -> None:
    from lensdist.data.packing.simulated import write_packed

    write_packed(tmp_path / "set", SimConfig(classes=("axion",), vortex="rod"), 20, 5)
    other, mine = fit_smooth(PackedSet(tmp_path / "set"), CFG), scaled.smooth
    assert isinstance(other, Registered)
    assert isinstance(mine, Registered)
    assert torch.equal(other.rows, mine.rows)
    assert other.scale > 1.2 * mine.scale


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, image in enumerate(_simulated(4, 60)):
        path = folder / "raw" / ("no_sub" if name % 3 == 0 else "sub") / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image[0].numpy())
    pack(folder / "raw", folder / "packed")
    return folder / "packed"


def test_files_without_a_family_give_the_basis_and_it_says_so(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(smooth.log, "warning", lambda text, *more: said.append(text % more))
    found = fit_smooth(PackedSet(files), CFG.model_copy(update={"smooth_class": "no_sub"}))
    assert isinstance(found, Registered)
    assert "no_sub" in found.made
    assert ["preprocess.family" in text for text in said] == [True]


def test_a_family_must_have_the_images_size_and_scale(files: Path) -> None:
    manifest = Manifest.load(files)
    found = smooth_settings(manifest, "model_ii")
    assert found is not None
    assert (found.classes, found.noise, found.psf_scale) == (("no_sub",), "none", 1.0)
    measured = manifest.model_copy(update={"pixel_scale_arcsec": 0.1, "psf_fwhm_arcsec": 0.32})
    wide = smooth_settings(measured, "model_ii")
    assert wide is not None
    assert wide.psf_scale == pytest.approx(2)
    with pytest.raises(UserError, match=r"preprocess\.family"):
        smooth_settings(manifest, "common")
    other = manifest.model_copy(update={"pixel_scale_arcsec": 0.08})
    with pytest.raises(UserError, match=r"preprocess\.family"):
        smooth_settings(other, "model_ii")


def test_a_shift_must_leave_a_window(files: Path) -> None:
    with pytest.raises(UserError, match=r"preprocess\.shift"):
        registered(torch.rand(4, 1, 12, 12), 4, 2, "noise")
