"""Every figure is drawn, from good results and from degenerate ones."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from lensdist.metrics import drawing, figures, pictures
from lensdist.metrics import scores as metrics
from lensdist.utils.files import plain

NAMES = ["no_sub", "cdm", "axion"]
G = torch.Generator().manual_seed(0)
LABELS = torch.randint(3, (300,), generator=G)
NOISE = torch.randn(300, 3, generator=G)
HOT = torch.nn.functional.one_hot(LABELS, 3)


def whole(path: Path) -> None:
    image = imread(path)
    assert image.shape[0] > 300
    assert image.shape[1] > 300
    assert image[..., :3].std() > 0.01  # something is drawn
    assert sorted(path.parent.iterdir()) == sorted(drawing.files(path))  # no temporary file is left


@pytest.mark.parametrize("skill", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("labels", [LABELS, LABELS.clamp(max=1), LABELS * 0])
def test_classification_figures(tmp_path: Path, skill: float, labels: torch.Tensor) -> None:
    z = NOISE + skill * HOT
    scores = metrics.classification(z, labels, NAMES)
    curves = metrics.roc_curves(z, labels, NAMES)
    whole(figures.roc(tmp_path / "a" / "roc.png", curves, scores["auc_per_class"], scores["n"]))
    whole(figures.confusion(tmp_path / "b" / "c.png", scores["confusion"], NAMES))
    bins = metrics.reliability(z, labels)
    whole(figures.reliability(tmp_path / "c" / "r.png", bins, scores["ece"]))


def test_figures_can_be_drawn_from_what_json_kept(tmp_path: Path) -> None:
    """A missing class is null in test.json, and its empty bins are too."""
    z, labels = NOISE + HOT, LABELS.clamp(max=1)
    scores = plain(metrics.classification(z, labels, NAMES))
    curves = plain(metrics.roc_curves(z, labels, NAMES))
    whole(figures.roc(tmp_path / "a" / "roc.png", curves, scores["auc_per_class"], 300))
    bins = plain(metrics.reliability(z, labels))
    whole(figures.reliability(tmp_path / "b" / "r.png", bins, scores["ece"]))


def test_learning_curves(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "kind": "train", "loss": 2.0, "lr": 1e-4},
        {"step": 2, "kind": "train", "loss": None, "lr": 1e-4, "nonfinite": "loss"},
        {"step": 2, "kind": "event", "what": "resumed"},
        {"step": 3, "kind": "train", "loss": 0.01, "lr": 1e-5},
        {"step": 3, "kind": "val", "accuracy": 0.5, "auc_macro": None, "nll": 1.0},
    ]
    whole(figures.learning_curves(tmp_path / "a" / "l.png", rows))
    whole(figures.learning_curves(tmp_path / "b" / "l.png", rows[:1]))
    assert figures.learning_curves(tmp_path / "c" / "l.png", []).exists()


def test_few_label(tmp_path: Path) -> None:
    rows = [
        {"method": method, "labels_per_class": n, "accuracy": 0.5, "accuracy_ci": ci}
        for method in "abcdefgh"  # more than there are colours
        for n, ci in ((300, [0.4, 0.6]), (30, None))
    ]
    whole(figures.few_label(tmp_path / "f.png", rows, n=900, chance=1 / 3))


def test_variants(tmp_path: Path) -> None:
    good = {"n": 90, "accuracy": 0.9, "accuracy_ci": [0.8, 0.95], "auc_macro": 0.98}
    good["auc_macro_ci"] = [0.97, 0.99]
    below = {**good, "accuracy": 0.2, "accuracy_ci": [0.1, 0.3]}
    blank = {**good, "auc_macro": np.nan, "auc_macro_ci": [np.nan, np.nan]}
    whole(figures.variants(tmp_path / "a" / "h.png", {"x": good, "y": below, "z": blank}, 1 / 3))
    whole(
        figures.variants(tmp_path / "b" / "h.png", plain({"x": blank, "y": good, "z": good}), 1 / 3)
    )


@pytest.mark.parametrize("m", [1, 3])
def test_image_panels(tmp_path: Path, m: int) -> None:
    image = np.random.default_rng(0).random((m, 16, 16))
    hidden = np.zeros((m, 16, 16), bool)
    hidden[:, 4:8] = True
    draw = pictures.reconstructions
    whole(draw(tmp_path / "a" / "r.png", image, hidden, image * 0.9, pixel_scale=0.1))
    whole(draw(tmp_path / "b" / "r.png", image, hidden, image))  # no residual at all


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    names, matrix = ["a", "b"], [[1, 0], [0, 1]]
    first, second = (
        [file.read_bytes() for file in drawing.files(figures.confusion(path, matrix, names))]
        for path in (tmp_path / "1.png", tmp_path / "2.png")
    )
    assert first == second
    assert b"/Type3" not in first[1]  # a kind of fonts that journals refuse


@pytest.mark.parametrize(
    ("auc", "text"), [(0.5, "0.5000"), (1.0, "1.0000"), (0.99997, "0.999970"), (0.98, "0.9800")]
)
def test_only_a_perfect_auc_reads_one(auc: float, text: str) -> None:
    assert figures._auc(auc) == text


def test_pyplot_stays_out() -> None:
    """It would choose a window system, and keep every figure alive."""
    code = "import sys, lensdist.metrics.figures; assert 'matplotlib.pyplot' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


def test_enlarged_images_and_what_they_are_off_by(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lr, hr = draw.random((2, 8, 8)), draw.random((2, 16, 16))
    lr[0, 2, 3] = hr[0, 4:6, 6:8] = np.nan  # a bad pixel is blank
    images = {"LR": lr, "bicubic": hr + 0.1, "ours": hr + 0.01, "HR": hr}
    plain = pictures.super_resolved(tmp_path / "a" / "plain.png", images)
    whole(plain)
    known = {**images, "truth": hr - 0.02}
    made = pictures.super_resolved(
        tmp_path / "b" / "known.png", known, hr - 0.01, sigma=np.abs(hr), pixel_scale=0.1
    )
    whole(made)
    assert made.read_bytes() != plain.read_bytes()


def test_a_confusion_of_many_classes_is_a_picture_of_bounded_size(tmp_path: Path) -> None:
    path = figures.confusion(
        tmp_path / "c.png", np.eye(300, dtype=int), [str(k) for k in range(300)]
    )
    assert max(imread(path).shape) < 2500


def test_labels_of_logarithmic_axes_are_numbers(tmp_path: Path) -> None:
    """Formulas are printed as they stand, since names may hold a dollar sign."""
    fig, (ax,) = drawing.panels(1, 3, 3, "a $ b")
    ax.plot([1, 10, 1000])
    ax.set_yscale("log")
    drawing.save(fig, tmp_path / "a.png")
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {"1", "10", "100", "1000"} <= set(labels)
    assert not any("$" in label for label in labels)
