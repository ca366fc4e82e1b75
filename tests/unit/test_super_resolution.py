"""Super-resolution: networks that keep light, tiles without seams, what the task learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lensdist.api import load
from lensdist.data.config import PreprocessConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.pack import pack
from lensdist.data.packing.writer import PackedWriter
from lensdist.data.transforms import Preprocess
from lensdist.export.artifact import write_export
from lensdist.export.model import LoadedModel
from lensdist.models.config import SuperResolverConfig
from lensdist.models.resample import bicubic, block_means, enlarge, with_means
from lensdist.models.super_resolution import SuperResolver
from lensdist.models.tiling import tiled
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import AnyTask, task_class
from lensdist.utils.errors import UserError
from tests.runs import SuperResolutionRun
from tests.unit.data_files import add_all
from tests.unit.exported import write_model

pytestmark = pytest.mark.unit

ENCODER = {"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16}


def config(**changes: Any) -> SuperResolverConfig:
    bands = changes.get("in_channels", 1)
    shape = {"image_size": 25, "width": 8, "depth": 1, "encoder": {**ENCODER, "in_channels": bands}}
    return SuperResolverConfig(**{**shape, **changes})


def network(**changes: Any) -> SuperResolver:
    """With random weights in its last layers too, which start at zero."""
    torch.manual_seed(0)
    model = SuperResolver(config(**changes)).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("decoder.out", "decoder.spread")):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def task(preprocess: Preprocess | None = None, **changes: Any) -> AnyTask:
    model = config(**changes.pop("model", {}))
    raw = {"task": "sr", "run": {"dir": "x"}, "data": {"path": "x"}, "model": model}
    cfg = SuperResolutionRun(**{**raw, **changes})
    preprocess = preprocess or Preprocess(PreprocessConfig(), [0.0], [1.0])
    return build_task(cfg, (), preprocess, None, thorough=True)


def pairs(n: int = 4, factor: int = 2, bands: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    hr = torch.rand(
        n, bands, 25 * factor, 25 * factor, generator=torch.Generator().manual_seed(seed)
    )
    return {"image": block_means(hr, factor), "target": hr, "sample": torch.arange(n)}


def saved(folder: Path, scale: str = "minmax", **changes: Any) -> LoadedModel:
    model = network(**changes)
    of = task(Preprocess(PreprocessConfig(scale=scale), [3.0], [2.0]), model=changes)
    about = {"task": "sr", "preset": "test", "labels": [], "metrics": {}, **of.describe()}
    write_export(folder, model, {**about, "preprocessing": of.preprocess.state()})
    return load(folder)


# ---- resampling


def test_bicubic_is_that_of_pillow() -> None:
    x = torch.rand(1, 1, 13, 11)
    ours = bicubic(x, 2)[0, 0].numpy()
    pil = Image.fromarray(x[0, 0].numpy()).resize((22, 26), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.asarray(pil)).max() < 1e-6


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_block_means_undo_enlarging_and_are_put_back(factor: int) -> None:
    small, large = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5 * factor, 7 * factor)
    assert torch.allclose(block_means(enlarge(small, factor), factor), small)
    moved = with_means(large, small)
    assert torch.allclose(block_means(moved, factor), small, atol=1e-6)
    within = moved - large  # each block moves as one
    assert torch.allclose(within, enlarge(block_means(within, factor), factor), atol=1e-6)


# ---- networks


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("decoder", ["residual", "upconv"])
def test_shapes(factor: int, bands: int, decoder: str) -> None:
    shape = {"factor": factor, "in_channels": bands, "decoder": decoder}
    x = torch.rand(2, bands, 25, 25)
    side = 25 * factor
    assert network(**shape)(x).shape == (2, bands, side, side)
    assert network(**shape, sigma=True)(x).shape == (2, 2 * bands, side, side)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_no_flux_is_lost_or_made(factor: int) -> None:
    x = torch.rand(3, 2, 25, 25)
    drawn = network(factor=factor, in_channels=2)(x)
    assert torch.allclose(block_means(drawn, factor), x, atol=1e-6)
    assert torch.allclose(drawn.sum((2, 3)), factor**2 * x.sum((2, 3)), rtol=1e-5)
    assert (drawn - with_means(bicubic(x, factor), x)).abs().max() > 1e-3  # it does draw something
    free = network(factor=factor, in_channels=2, exact_means=False)(x)
    assert not torch.allclose(block_means(free, factor), x, atol=1e-3)


def test_before_training_it_is_bicubic_moved_to_the_means() -> None:
    x = torch.rand(2, 1, 25, 25)
    model = SuperResolver(config())
    assert torch.allclose(model(x), with_means(bicubic(x, 2), x), atol=1e-6)


def test_each_image_by_itself() -> None:
    x, model = torch.rand(5, 1, 25, 25), network(sigma=True)
    together = model(x)
    alone = torch.cat([model(one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("decoder", ["residual", "upconv"])
def test_the_encoder_is_used_and_trains(decoder: str) -> None:
    model = network(decoder=decoder)
    model(torch.rand(2, 1, 25, 25)).square().mean().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_half_precision_holds_the_image() -> None:
    x, model = torch.rand(2, 1, 25, 25), network()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.float32
    assert torch.allclose(block_means(half, 2), x, atol=1e-6)
    detail = (model(x) - with_means(bicubic(x, 2), x)).abs().max()
    assert (half - model(x)).abs().max() < 0.05 * detail


# ---- the task


def test_hr_is_measured_by_lr_s_scale() -> None:
    """Whatever unit LR and HR are in: the loss is the same, and so is what is drawn."""
    batch, of = pairs(), task(loss="poisson")
    model = network()
    counts = {**batch, **{k: 400 * batch[k] + 7 for k in ("image", "target")}}
    assert of.loss(model, counts, 1).item() == pytest.approx(
        of.loss(model, batch, 1).item(), rel=1e-4
    )
    plain = of.outputs(model, batch)
    scaled = of.outputs(model, counts)
    assert torch.allclose(scaled["mse"], 400**2 * plain["mse"], rtol=1e-3)


def test_the_target_turns_with_the_image() -> None:
    """A network that knows the pair draws it, however both are turned."""
    batch = pairs(16)
    of = task(preprocess=Preprocess(PreprocessConfig(scale="none"), [0.0], [1.0]),
              augment={"rot180": True, "rot90": True, "flip": True})  # fmt: skip

    class Knows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = []
            for one in x:
                for k in range(4):
                    for flip in (False, True):
                        turned = torch.rot90(batch["target"], k, (2, 3))
                        turned = turned.flip(3) if flip else turned
                        off = (block_means(turned, 2) - one).abs().amax((1, 2, 3))
                        if off.min() < 1e-6:
                            found.append(turned[off.argmin()])
            return torch.stack(found)

    assert of.loss(Knows(), batch, 3) < 1e-10


def test_sigma_learns_and_does_not_steer_the_image() -> None:
    model, batch = network(sigma=True), pairs()
    with_sigma = task(model={"sigma": True}).loss(model, batch, 0)
    with_sigma.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert grads["decoder.spread.weight"].abs().max() > 0
    model.zero_grad()
    of = task(model={"sigma": True})
    drawn, wanted, seen, _ = of._drawn(model, batch)
    of._error(drawn, wanted, seen).mean().backward()
    for name, parameter in model.named_parameters():
        if "spread" not in name:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, grads[name], atol=1e-8), name


def test_what_bad_pixels_hold_changes_nothing() -> None:
    model, of, batch = network(), task(), pairs()
    bad = torch.zeros(4, 1, 25, 25, dtype=torch.bool)
    bad[:, :, 3:6, 4] = True
    clean = {**batch, "badpix": bad}
    image, target = batch["image"].clone(), batch["target"].clone()
    image[bad], target[enlarge(bad, 2)] = 1e6, -1e6
    dirty = {**clean, "image": image, "target": target}
    assert of.loss(model, dirty, 0).item() == pytest.approx(of.loss(model, clean, 0).item())
    for name, value in of.outputs(model, clean).items():
        assert torch.isfinite(value).all()
        assert torch.allclose(of.outputs(model, dirty)[name], value), name


def test_learning_the_truth_needs_free_means() -> None:
    with pytest.raises(ValueError, match="exact_means"):
        task(learn="truth")
    of, batch, model = task(learn="truth", model={"exact_means": False}), pairs(), network()
    truth = {**batch, "truth": 0.5 * batch["target"]}
    assert of.loss(model, truth, 0) != of.loss(model, batch, 0)
    with pytest.raises(ValueError, match="sums of light"):
        SuperResolutionRun(
            task="sr", run={"dir": "x"}, data={"path": "x"}, preprocess={"scale": "asinh"}
        )


def test_frozen_encoder_first_then_everything() -> None:
    of = task(frozen_epochs=5)
    assert [s.epochs for s in of.stages(30)] == [30]  # a random encoder is not worth freezing
    of.weights = {}
    frozen, all_ = of.stages(30)
    assert (frozen.epochs, all_.epochs) == (5, 25)
    assert frozen.trains("decoder.out.weight")
    assert not frozen.trains("encoder.position")
    assert all_.trains("encoder.position")


# ---- tiles


@pytest.mark.parametrize("shape", [(25, 25), (60, 41), (26, 80), (9, 14), (3, 60), (25, 200)])
def test_tiles_put_a_frame_together(shape: tuple[int, int]) -> None:
    """What is drawn of every pixel by itself comes out as if the frame had been drawn at once."""
    frames = torch.rand(2, 1, *shape)
    found = tiled(lambda x: enlarge(3 * x + 1, 2), frames, 25, 2, 3)
    assert torch.allclose(found, enlarge(3 * frames + 1, 2), atol=1e-5)


def test_tiles_leave_no_seam_and_keep_means() -> None:
    """A network that gives every tile another level: the frame must not show where tiles end."""
    frames = torch.zeros(1, 1, 100, 25)
    levels = iter(torch.linspace(0, 1, 20).tolist())

    def draw(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full((1, 50, 50), next(levels)) for _ in x])

    column = tiled(draw, frames, 25, 2, 1)[0, 0, :, 0]
    step = torch.diff(column).abs().max()
    assert step < 1.5 * column.max() / (4 * 2 * (25 // 3))  # a jump would be 1/19 at once
    model = network()
    x = torch.rand(1, 1, 61, 43)
    assert torch.allclose(block_means(tiled(model, x, 25, 2, 4), 2), x, atol=1e-5)


# ---- in use


@pytest.mark.parametrize("scale", ["minmax", "none"])
def test_predict_keeps_units_and_means_of_any_frame(tmp_path: Path, scale: str) -> None:
    model = saved(tmp_path, scale, sigma=True)
    for shape in ((25, 25), (70, 31), (12, 9)):
        x = 1000 + 50 * torch.rand(3, *shape).numpy()
        found = model.predict(x)
        assert found["image"].shape == found["sigma"].shape == (3, 1, 2 * shape[0], 2 * shape[1])
        means = block_means(torch.from_numpy(found["image"]).double(), 2)[:, 0].numpy()
        assert np.abs(means - x).max() < 1e-3
        assert (found["sigma"] > 0).all()
    # Another unit, another zero point: the same picture.
    small = model.predict(x)["sigma"]
    if scale == "minmax":
        assert np.allclose(model.predict(10 * x)["sigma"], 10 * small, rtol=1e-3)


def test_predict_alone_or_together_and_bad_pixels(tmp_path: Path) -> None:
    model = saved(tmp_path)
    x = torch.rand(4, 1, 25, 25).numpy()
    together = model.predict(x)["image"]
    alone = np.concatenate([model.predict(one[None])["image"] for one in x])
    assert np.abs(together - alone).max() < 1e-5
    good = np.ones(x.shape, bool)
    good[1, 0, 2, 3] = False
    dirty = x.copy()
    dirty[1, 0, 2, 3] = np.nan
    found, want = (model.predict(each, good=good)["image"] for each in (dirty, x))
    assert np.isnan(found[1, 0, 4:6, 6:8]).all()
    assert np.isnan(found).sum() == 4
    assert np.array_equal(found, want, equal_nan=True)


def test_predict_refuses_what_is_no_frame(tmp_path: Path) -> None:
    model = saved(tmp_path)
    for shape in ((2, 3, 25, 25), (2, 5, 25), (25, 25), (0, 25, 25)):
        with pytest.raises(ValueError, match="do not fit"):
            model.predict(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="good must be bool"):
        model.predict(np.ones((1, 25, 25)), good=np.ones((1, 25, 25)))


def test_simulated_truth_is_hr_without_its_noise() -> None:
    batch = Simulator(SimConfig(family="sr"), dtype=torch.float64).batch(3, torch.arange(24))
    noise = batch["target"] - batch["truth"]
    # var = 4.8e-6 + 1.24e-3 I on the 0..1 scale, as measured of published figures; the sky's share.
    bright = batch["truth"] > 0.3
    predicted = 1.24e-3 * batch["truth"][bright] + 4.8e-6
    assert (noise[bright].square() / predicted).mean().item() == pytest.approx(1, abs=0.25)
    assert abs(noise.mean().item()) < 2e-4
    assert torch.allclose(block_means(batch["target"], 2), batch["image"])


# ---- pairs as they come


def write_pairs(folder: Path, lr: Any, hr: Any, **more: Any) -> PackedSet:
    with PackedWriter(folder, labels=[], seed=0, source={}, kind="pairs") as writer:
        add_all(writer, lr, target=hr, **more)
        writer.finish()
    return PackedSet(folder)


def checked(packed: PackedSet, **changes: Any) -> None:
    model = config(**changes.pop("model", {}))
    raw = {"task": "sr", "run": {"dir": "x"}, "data": {"path": packed.path}, "model": model}
    cfg = SuperResolutionRun(**{**raw, **changes})
    task_class("sr").check_data(cfg, packed, cfg.data)


def test_lr_must_be_what_the_network_takes_it_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = pairs(30)
    lr, hr = batch["image"].numpy(), batch["target"].numpy()
    good = write_pairs(tmp_path / "good", lr, hr)
    checked(good)
    noisy = lr + 0.02 * np.random.default_rng(0).standard_normal(lr.shape)
    checked(write_pairs(tmp_path / "noisy", noisy, hr))  # an exposure of its own
    sums = write_pairs(tmp_path / "sums", 4 * lr, hr)
    with pytest.raises(UserError, match="it is 4 times that"):
        checked(sums)
    checked(sums, model={"exact_means": False})
    capsys.readouterr()
    checked(good)
    assert "WARNING" not in capsys.readouterr().err
    checked(write_pairs(tmp_path / "counts", 100 * lr, 100 * hr))
    assert "data_range 1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model\.factor=2"):
        checked(good, model={"factor": 3})
    with pytest.raises(UserError, match="does not simulate pairs like those"):
        checked(good, data={"path": good.path, "source": "stream", "sim": {"family": "model_ii"}})


def test_a_bad_pixel_of_hr_makes_its_block_bad(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for side in ("HR", "LR"):
        (tmp_path / "raw" / side).mkdir(parents=True)
    for i in range(4):
        hr = draw.random((20, 20)) + 1000
        mask = np.zeros((20, 20), bool)
        mask[2 * i, 5] = True
        np.savez(tmp_path / "raw" / "HR" / f"{i}.npz", image=hr, mask=mask)
        np.save(tmp_path / "raw" / "LR" / f"{i}.npy", hr.reshape(10, 2, 10, 2).mean((1, 3)))
    pack(tmp_path / "raw", tmp_path / "packed")
    batch = PackedSet(tmp_path / "packed").gather(np.arange(4))
    assert batch["badpix"].sum() == 4
    for i in range(4):
        assert batch["badpix"][i, 0, i, 2]
        assert batch["target"][i, 0, 2 * i, 5] == 0


def test_bad_pixels_and_offsets_do_not_flatter() -> None:
    """What is gained over bicubic does not hang on what stands in a bad pixel, or on the sky."""
    batch, model, of = pairs(), network(), task(data_range=1.0)
    bad = torch.zeros(4, 1, 25, 25, dtype=torch.bool)
    bad[:, :, 10, 12] = True
    found = []
    for sky in (0.0, 1000.0):
        raised = {k: batch[k] + sky for k in ("image", "target")}
        raised["image"][bad] = 0.0
        raised["target"][enlarge(bad, 2)] = 0.0
        scores = of.outputs(model, {**batch, **raised, "badpix": bad})
        found.append(scores)
        assert (scores["mse_bicubic"] < 0.3).all()
    for name in ("psnr", "psnr_bicubic", "ssim", "ssim_bicubic"):
        assert torch.allclose(found[0][name], found[1][name], atol=2e-2), name


def test_scores_of_the_truth_are_left_out_where_there_is_none() -> None:
    of = task(learn="truth", model={"exact_means": False, "sigma": True})
    model, batch = network(exact_means=False, sigma=True), pairs()
    assert {"coverage_68", "error"} <= of.outputs(model, {**batch, "truth": batch["target"]}).keys()
    assert not {"coverage_68", "error", "nll"} & of.outputs(model, batch).keys()


def test_a_masked_autoencoder_s_answer_is_in_the_file_s_units_beside_bad_pixels(
    tmp_path: Path,
) -> None:
    model = load(write_model(tmp_path, "mae"))
    x = 1000 + torch.rand(2, 1, 64, 64).numpy()
    good = np.ones(x.shape, bool)
    good[:, :, 5, 6] = False
    x[~good] = 0
    recon = model.predict(x, good=good)["recon"]
    plain = model.predict(np.where(good, x, 1000.5))["recon"]
    assert np.abs(recon - plain).max() < 1
