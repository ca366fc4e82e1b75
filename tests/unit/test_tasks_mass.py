"""The task of axion masses: its loss, its scores, what it refuses, and its answers and exports."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lensdist
from lensdist.cli import main
from lensdist.config.schema import schema_of
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.transforms import Preprocess
from lensdist.evaluate.run import open_subject, score_split
from lensdist.export import portable
from lensdist.metrics.report import collect
from lensdist.phases import completed
from lensdist.tasks.build import build_task
from lensdist.tasks.mass import MassTask
from lensdist.utils.errors import RunError, UserError
from tests.chains import submit, write_cluster
from tests.conftest import ROOT, forked, settings
from tests.unit.test_tasks_learn import Constant, images

pytestmark = pytest.mark.unit


def task(**more: Any) -> Any:
    raw = {"task": "mass", "run": {"dir": "x"}, "data": {"path": "x"}, "augment": {"rot180": False}}
    raw |= {"preprocess": {"scale": "none"}, **more}
    cfg = schema_of(raw).model_validate(raw)
    return build_task(cfg, ("axion",), Preprocess(cfg.preprocess, [0.0], [1.0]))


def gradients(drawn: Tensor, wanted: Tensor, **more: Any) -> tuple[float, Tensor]:
    drawn = drawn.clone().requires_grad_()
    batch = {"image": images(len(drawn), 1, 8, 8), "mass": 10.0 ** wanted.double()}
    loss = task(**more).loss(Constant(drawn), batch, 0)
    (found,) = torch.autograd.grad(loss, drawn)
    return float(loss.detach()), found


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("log10_range", [(-24.0, -22.0), (-25.0, -20.0)])
def test_the_loss_is_the_log_likelihood_weighted_by_a_power_of_sigma(
    beta: float, log10_range: tuple[float, float]
) -> None:
    drawn, wanted = torch.tensor([[0.3, -1.2], [-0.8, 0.4]]), torch.tensor([-23.5, -22.1])
    loss, gradient = gradients(drawn, wanted, beta=beta, log10_range=log10_range)
    low, high = log10_range
    z = (2 * wanted.double() - low - high) / (high - low)
    mean, ln_sigma = drawn.double().unbind(1)
    sigma, off = ln_sigma.exp(), mean - z
    nll = 0.5 * (off / sigma) ** 2 + 0.5 * math.log(2 * math.pi) + ln_sigma
    weight = sigma ** (2 * beta)  # a constant to the gradient
    assert loss == pytest.approx(float((weight * nll).mean()), rel=1e-5)
    expected = torch.stack((weight * off / sigma**2, weight * (1 - (off / sigma) ** 2)), 1) / 2
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def outputs(n: int, factor: float = 1.0) -> dict[str, Tensor]:
    """Answers that are normally distributed about the truth, of sigmas that differ by ten."""
    draw = torch.Generator().manual_seed(5)
    truth = -24 + 2 * torch.rand(n, generator=draw, dtype=torch.float64)
    sigma = 0.05 * 10 ** torch.rand(n, generator=draw)
    mean = truth + sigma * torch.randn(n, generator=draw)
    return {"log10_mass": mean, "log10_mass_sigma": factor * sigma, "mass": 10**truth}


def test_scores_and_intervals_of_calibrated_answers() -> None:
    given, does = outputs(4000), task()
    scores, ends = does.score(given), does.intervals(given)
    truth, off = given["mass"].log10(), given["log10_mass"] - given["mass"].log10()
    assert (scores["n"], scores["no_mass"]) == (4000, 0)
    assert scores["rmse"] == pytest.approx(float(off.square().mean().sqrt()))
    assert scores["r2"] == pytest.approx(1 - float(off.square().mean() / truth.var(correction=0)))
    assert scores["rmse"] ** 2 == pytest.approx(scores["bias"] ** 2 + scores["scatter"] ** 2)
    normal = torch.distributions.Normal(given["log10_mass"], given["log10_mass_sigma"].double())
    assert scores["nll"] == pytest.approx(-float(normal.log_prob(truth).mean()))
    for name in ("nll", "r2", "bias", "rmse", "scatter", "coverage_68", "coverage_95"):
        low, high = ends[f"{name}_ci"]
        assert low < scores[name] < high, name
    for name, true in (("coverage_68", 0.68), ("coverage_95", 0.95), ("bias", 0.0)):
        low, high = ends[f"{name}_ci"]
        assert abs(scores[name] - true) < high - low, name  # four standard deviations
    rows = does._by_mass(*(x.double() for x in (truth, off, given["log10_mass_sigma"])))
    assert [row["log10_mass_low"] for row in rows] == [-24 + i / 4 for i in range(8)]
    assert sum(row["n"] for row in rows) == 4000
    mean = sum(row["n"] * row["coverage_68"] for row in rows) / 4000
    assert mean == pytest.approx(scores["coverage_68"])
    assert all(row["bias_ci"][0] < row["bias"] < row["bias_ci"][1] for row in rows)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_coverage_tells_of_a_sigma_that_is_wrong(factor: float) -> None:
    scores = task().score(outputs(4000, factor))
    expected = math.erf(0.994457883209753 * factor / math.sqrt(2))
    assert scores["coverage_68"] == pytest.approx(expected, abs=0.03)


def test_images_without_a_mass_are_counted_and_not_scored() -> None:
    given = outputs(10)
    some = {**given, "mass": torch.where(torch.arange(10) < 4, torch.nan, given["mass"])}
    scores = task().score(some)
    assert (scores["n"], scores["no_mass"]) == (6, 4)
    assert scores["nll"] == task().score({k: v[4:] for k, v in given.items()})["nll"]
    with pytest.raises(RunError, match="none of 10 images"):
        task().score({**given, "mass": torch.full((10,), torch.nan)})


@pytest.mark.parametrize("bad", [(-22.0, -24.0), (-22.0, -22.0), (-math.inf, 0.0)])
def test_a_range_rises(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="log10_range"):
        task(log10_range=bad)


@pytest.fixture(scope="module")
def trained(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps from a pretrained encoder, the first epoch on kept features."""
    root = tmp_path_factory.mktemp("mass")
    few = {"train.max_steps": 4, "train.log_every": 1, "train.select_from": "best"}
    more = {"encoder": root / "mae", "frozen_epochs": 1, "train.epochs": 2}
    for name, changes in (("mae", few), ("mass", few | more)):
        done = forked("lensdist.train", *settings(name, tiny_set, root / name, **changes))
        assert done.returncode == 0, done.stderr
    return root / "mass"


def test_a_trained_model_is_scored_reported_and_asked(
    trained: Path, tiny_set: Path, tmp_path: Path
) -> None:
    record = completed(trained)
    assert record is not None
    assert record["metrics"]["selected_by"] == "val nll"
    scores, written = score_split(open_subject(trained, tiny_set), "test")
    assert scores["left_out"] == {"no_sub": 4, "cdm": 4}
    assert sum(row["n"] for row in scores["by_mass"]) == scores["n"] == 4
    assert trained / "figures" / "mass.png" in written
    (row,) = collect([trained])
    assert {"task": "mass", "init": "mae", "rmse": scores["rmse"]}.items() <= row.items()

    model = lensdist.load(trained)
    packed = PackedSet(tiny_set)
    raw = packed.gather(packed.indices("test"))["image"].numpy()
    found = model.predict(raw)
    assert found["estimate"].shape == (12, 2)
    assert (found["log10_mass_sigma"] > 0).all()
    np.save(tmp_path / "one.npy", raw[0, 0])
    words = ["predict", str(trained), str(tmp_path / "one.npy"), "--out", str(tmp_path / "t.csv")]
    assert main(words) == 0
    head, line = (tmp_path / "t.csv").read_text().splitlines()
    assert head == "file,log10_mass,log10_mass_sigma,unlike,flag,flagged_by,changes"
    values = [float(x) for x in line.split(",")[1:3]]
    assert values == pytest.approx(found["estimate"][0].tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "pt2"])
def test_an_export_answers_as_the_run_does(trained: Path, kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    words = ["export", str(trained), "--format", kind, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    model = lensdist.load(trained)
    if kind == "safetensors":
        raw = images(3, 64, 64).numpy()
        again = lensdist.load(tmp_path / "out").predict(raw)
        for name, values in model.predict(raw).items():
            np.testing.assert_array_equal(again[name], values)
        return
    _, run = portable.write(model, kind, tmp_path)
    difference, scale = portable.largest_difference(model, run)
    assert difference < 1e-5 * scale
    assert run(*(x.numpy() for x in portable.samples(model, 5, 3).values())).shape == (5, 2)


MASS = np.array([np.nan, np.nan, 1e-23, 1e-22, np.nan])
OF = np.array([0, 1, 2, 2, -1])


@pytest.mark.parametrize(
    ("mass", "of", "classes", "key"),
    [
        (None, OF, ("axion",), "no axion masses"),
        (MASS, OF, None, r"3 of 5 images.*data\.classes=\[axion\]"),
        (MASS, OF, ("axion", "cdm"), r"1 of 3 images.*data\.classes=\[axion\]"),
        (MASS, np.full(5, 2), ("axion",), "3 of 5 images.*pack"),
        (MASS, np.full(5, -1), None, "3 of 5 images.*pack"),
        (MASS, OF, ("axion",), None),
        (MASS[2:4], np.full(2, -1), None, None),
    ],
)
def test_a_set_whose_masses_are_not_known_is_refused(
    mass: Any, of: Any, classes: tuple[str, ...] | None, key: str | None
) -> None:
    manifest = SimpleNamespace(labels=["no_sub", "cdm", "axion"])
    packed: Any = SimpleNamespace(path="set", mass=mass, labels=of, manifest=manifest)
    given = task().cfg, packed, DataConfig(path=Path("set"), classes=classes)
    if key is None:
        MassTask.check_data(*given)
        return
    with pytest.raises(UserError, match=key):
        MassTask.check_data(*given)


def test_nothing_is_started_on_a_set_without_masses(pairs_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = forked("lensdist.train", *settings("mass", pairs_set, run))
    assert done.returncode == 2
    assert "no axion masses" in done.stderr
    assert not run.exists()


def test_its_chain_is_planned(tmp_path: Path) -> None:
    chain, cluster = ROOT / "configs" / "chains" / "mass.yaml", write_cluster(tmp_path)
    done = submit("plan", chain, cluster, f"runs={tmp_path / 'runs'}")
    assert "mass: train" in done.stdout
    assert f"{tmp_path}/runs/mass/eval/test.json" in done.stdout.replace("'", "")
