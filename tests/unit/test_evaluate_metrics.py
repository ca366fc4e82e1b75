"""Metrics against scikit-learn as a second implementation, and on everything degenerate."""

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from lensdist.metrics import scores as metrics
from lensdist.utils.errors import RunError
from lensdist.utils.files import to_json

NAMES = ["no_sub", "cdm", "axion"]


def made(n: int, classes: int = 3, skill: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    hot = torch.nn.functional.one_hot(labels, classes)
    return torch.randn(n, classes, generator=g) + skill * hot, labels


@pytest.mark.parametrize("rounded", [False, True])  # rounded logits tie
def test_classification_agrees_with_sklearn(rounded: bool) -> None:
    z, y = made(2000)
    z = z.round() if rounded else z
    got = metrics.classification(z, y, NAMES)
    p, hot = torch.softmax(z.double(), 1).numpy(), np.eye(3)[y]
    q = p.round(12)  # equal odds are equal, not apart by the last bit of a sum
    assert got["n"] == 2000
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)), abs=1e-12)
    aucs = [sk.roc_auc_score(hot[:, k], q[:, k]) for k in range(3)]
    assert got["auc_per_class"] == pytest.approx(aucs, abs=1e-7)
    assert got["auc_macro"] == pytest.approx(np.mean(aucs), abs=1e-7)
    assert got["nll"] == pytest.approx(sk.log_loss(y, p), abs=1e-9)
    assert got["brier"] == pytest.approx(((p - hot) ** 2).sum(1).mean(), abs=1e-9)
    assert got["confusion"] == sk.confusion_matrix(y, p.argmax(1)).tolist()


def test_calibration_error_is_that_of_the_diagram() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    z, y = made(3000)
    got = metrics.classification(3 * z, y, NAMES)["ece"]
    bins = {k: np.array(v) for k, v in metrics.reliability(3 * z, y).items()}
    gap = np.nan_to_num(np.abs(bins["accuracy"] - bins["confidence"]))
    assert got == pytest.approx((gap * bins["count"]).sum() / 3000, abs=1e-12)
    assert got > 0.05
    p = torch.softmax(3 * z.double(), 1)
    theirs = multiclass_calibration_error(p, y, num_classes=3, n_bins=15).item()
    assert got == pytest.approx(theirs, abs=1e-6)


def test_a_confident_model_keeps_its_auc() -> None:
    """Probabilities that all round to 1 still have an order."""
    z, y = made(2000)
    tempered = metrics.classification(z, y, NAMES)["auc_macro"]
    binary = metrics.classification(z[:, :2], y.clamp(max=1), NAMES[:2])["auc_macro"]
    sharp = metrics.classification(1e4 * z[:, :2], y.clamp(max=1), NAMES[:2])["auc_macro"]
    assert sharp == pytest.approx(binary, abs=1e-12)
    assert 0.5 < tempered < 1


def test_order_of_samples_does_not_matter() -> None:
    z, y = made(500)
    order = torch.randperm(500)
    a, b = metrics.classification(z, y, NAMES), metrics.classification(z[order], y[order], NAMES)
    for key in ("accuracy", "auc_macro", "nll", "brier", "ece"):
        assert a[key] == pytest.approx(b[key], rel=1e-12)


def test_a_missing_class_is_null_and_left_out_of_the_mean() -> None:
    z, y = made(300, classes=3)
    y = y.clamp(max=1)
    got = metrics.classification(z, y, NAMES)
    assert math.isnan(got["auc_per_class"][2])
    assert got["auc_macro"] == pytest.approx(sum(got["auc_per_class"][:2]) / 2)
    assert json.loads(to_json(got))["auc_per_class"][2] is None
    low, high = metrics.intervals(z, y, resamples=50)["auc_macro_ci"]
    assert low < got["auc_macro"] < high
    assert metrics.roc_curves(z, y, NAMES)["axion"] == {"fpr": [], "tpr": []}


def test_one_sample() -> None:
    got = metrics.classification(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]), NAMES)
    assert got["accuracy"] == 1.0
    assert math.isnan(got["auc_macro"])
    ci = metrics.intervals(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]), resamples=10)
    assert ci["accuracy_ci"][0] < 0.3
    assert all(map(math.isnan, ci["auc_macro_ci"]))


def test_equal_logits_are_chance() -> None:
    got = metrics.classification(torch.zeros(9, 3), torch.arange(9) % 3, NAMES)
    assert got["auc_macro"] == 0.5
    assert got["accuracy"] == pytest.approx(1 / 3)
    assert got["ece"] == pytest.approx(0, abs=1e-12)
    assert metrics.intervals(torch.zeros(9, 3), torch.arange(9) % 3)["auc_macro_ci"] == [0.5, 0.5]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_output_says_so(value: float) -> None:
    z, y = made(10)
    z[3, 1] = value
    with pytest.raises(RunError, match="NaN or infinite for 1 of 10 samples"):
        metrics.classification(z, y, NAMES)


@pytest.mark.parametrize(
    ("z", "y", "error"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), RunError),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ValueError),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), ValueError),
        (torch.zeros(2, 2), torch.tensor([0, 1]), ValueError),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), ValueError),
    ],
)
def test_nonsense_is_refused(z: Tensor, y: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        metrics.classification(z, y, NAMES)


def test_reconstruction() -> None:
    mse = torch.tensor([1e-4, 1e-2])
    got = metrics.reconstruction(mse, 1.0)
    assert got["psnr"] == pytest.approx(30)
    assert got["mse"] == pytest.approx(0.00505)
    assert got["psnr_ci"][0] < 30 < got["psnr_ci"][1]
    assert metrics.reconstruction(mse, torch.tensor([1.0, 10.0]))["psnr"] == pytest.approx(40)
    two = metrics.reconstruction(mse, 1.0)  # 40 and 20 dB: 14.14 apart from each other, over root 2
    assert two["psnr_std"] == pytest.approx(200**0.5)
    assert two["psnr_ci"] == pytest.approx([30 - 19.59964, 30 + 19.59964])
    exact = metrics.reconstruction(torch.tensor([0.0, 1e-2]), 1.0)
    assert (exact["psnr"], exact["no_psnr"]) == (pytest.approx(20), 1)
    blank = metrics.reconstruction(mse, torch.tensor([0.0, 1.0]))
    assert (blank["psnr"], blank["no_psnr"]) == (pytest.approx(20), 1)
    assert json.loads(to_json(metrics.reconstruction(torch.zeros(2), 1.0)))["psnr"] is None


def test_reconstruction_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x, y = torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    want = peak_signal_noise_ratio(
        x, y, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean"
    )
    mse = (x - y).square().mean(dim=(1, 2, 3))
    assert metrics.reconstruction(mse, 1.0)["psnr"] == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("mse", "span", "error"),
    [
        (torch.zeros(0), 1.0, RunError),
        (torch.tensor([math.nan]), 1.0, RunError),
        (torch.tensor([-1.0]), 1.0, RunError),
        (torch.zeros(2), -1.0, ValueError),
        (torch.zeros(2), torch.ones(3), ValueError),
        (torch.zeros(2, 2), 1.0, ValueError),
    ],
)
def test_reconstruction_refuses_nonsense(mse: Tensor, span: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        metrics.reconstruction(mse, span)


def test_roc_curves_are_short_and_keep_their_area() -> None:
    z, y = made(20_000)
    got = metrics.classification(z, y, NAMES)["auc_per_class"]
    for k, curve in enumerate(metrics.roc_curves(z, y, NAMES).values()):
        fpr, tpr = curve["fpr"], curve["tpr"]
        assert 2 < len(fpr) <= 512
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert fpr == sorted(fpr)
        assert tpr == sorted(tpr)
        assert np.trapezoid(tpr, fpr) == pytest.approx(got[k], abs=5e-4)


def test_a_roc_curve_keeps_corners_evenly_along_its_length() -> None:
    """The 100 of a rare class, all ahead of the others, are more than half of the curve."""
    z = torch.stack([torch.arange(20_000.0), torch.zeros(20_000)], 1)
    y = (torch.arange(20_000) < 19_900).long()
    curve = metrics.roc_curves(z, y, NAMES[:2])["no_sub"]
    assert np.max(np.diff(curve["fpr"]) + np.diff(curve["tpr"])) < 0.02


def test_mass_bins() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 3
    log_m = -24 + 2 * torch.rand(3000, generator=g)
    mass = torch.where(labels == 2, 10**log_m, torch.nan)
    z = torch.randn(3000, 3, generator=g)
    z[:, 2] += torch.where(labels == 2, 2 * (-22 - log_m), 0.0) - 2  # heavy axions look like cdm
    rows = metrics.mass_binned(z, labels, mass, NAMES)
    assert [row["n"] > 80 for row in rows] == [True] * 8
    assert sum(row["n"] for row in rows) == 1000
    assert rows[0]["recall"] > 0.8 > rows[-1]["recall"]
    assert rows[0]["auc"] > 0.9 > rows[-1]["auc"]
    row, here = rows[0], (labels == 2) & (log_m < -23.75)
    score, pool = z[:, 2] - z[:, 1], here | (labels == 1)
    assert row["auc"] == pytest.approx(sk.roc_auc_score(here[pool], score[pool]), abs=1e-6)
    cdm = (score[labels == 1] <= 0).double().mean().item()
    assert row["accuracy"] == pytest.approx((row["recall"] + cdm) / 2)
    assert row["recall_ci"][0] < row["recall"] < row["recall_ci"][1]


def test_a_mass_at_an_edge_is_in_the_upper_bin_and_a_tie_is_called_cdm() -> None:
    z = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 2.0], [0.0, 1.0, 1.0], [0.0, 2.0, 0.0]])
    labels, mass = torch.tensor([2, 2, 1, 1]), torch.tensor([1.0, 0.5, math.nan, math.nan])
    low, high = metrics.mass_binned(z, labels, mass, NAMES, edges=(-1.0, 0.0, 1.0))
    assert (low["n"], low["recall"], low["accuracy"], low["auc"]) == (1, 1.0, 1.0, 1.0)
    assert (high["n"], high["recall"], high["accuracy"], high["auc"]) == (1, 0.0, 0.5, 0.75)


def test_outputs_in_double_keep_their_order() -> None:
    z = torch.tensor([[0.0, 1 + 1e-9], [0.0, 1.0]], dtype=torch.float64)
    assert metrics.classification(z, torch.tensor([1, 0]), NAMES[:2])["auc_macro"] == 1


def test_mass_bins_without_samples_are_null() -> None:
    z, y = made(30)
    mass = torch.where(y == 2, 1.1e-23, math.nan)
    rows = json.loads(to_json(metrics.mass_binned(z, y, mass, NAMES)))
    assert [row["n"] > 0 for row in rows] == [False] * 4 + [True] + [False] * 3
    assert rows[0]["recall"] is None
    with pytest.raises(ValueError, match="positive"):
        metrics.mass_binned(z, y, torch.full((30,), math.nan), NAMES)
    with pytest.raises(ValueError, match="cdm and axion"):
        metrics.mass_binned(z, y, mass, ["no", "sphere", "vort"])


def test_json_never_holds_nan() -> None:
    value = {"a": math.nan, "b": [np.float32("inf"), torch.tensor([1.0, math.nan])], "c": (1, True)}
    assert json.loads(to_json(value)) == {
        "a": None,
        "b": [None, [1.0, None]],
        "c": [1, True],
    }
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1}})


def test_many_classes_are_scored_in_little_memory_without_the_costly_parts() -> None:
    z, y = made(2000, classes=300, skill=3)
    tracemalloc.start()  # of NumPy's; torch's own is bounded by the samples at a time
    try:
        got = metrics.classification(z, y, [str(k) for k in range(300)]) | metrics.intervals(z, y)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert got["auc_macro"] > 0.9
    assert np.isnan(got["auc_per_class_ci"]).all()
    assert got["accuracy_ci"][0] < got["accuracy"] < got["accuracy_ci"][1]
    few = metrics.intervals(z[:, :50], y % 50, resamples=10)
    assert np.isfinite(few["auc_macro_ci"]).all()
