"""`lensdist.load`, `train` and `read_runs`: what a notebook uses."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lensdist
from lensdist.api.run import _words
from lensdist.api.table import row_of
from lensdist.metrics.images import write_images
from lensdist.models.config import EnsembleConfig
from lensdist.models.looks import looks
from lensdist.models.vit import Attention
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json
from lensdist.utils.sealed import sealed
from tests.conftest import ROOT
from tests.unit.exported import write_model
from tests.unit.test_exporting_portable import loaded

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a classifier, and new images."""
    folder = tmp_path_factory.mktemp("mine")
    write_model(folder / "runs" / "mine")
    (folder / "new-images").mkdir()
    draw = np.random.default_rng(0)
    for name in ("b", "a", "c"):
        np.save(folder / "new-images" / f"{name}.npy", draw.random((64, 64), np.float32))
    return folder


def test_the_example_of_the_page_runs(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)[0]
    found: dict[str, object] = {}
    exec(example, found)
    m, images = found["m"], found["images"]
    assert isinstance(m, lensdist.Model)
    assert isinstance(images, np.ndarray)
    assert [Path(str(name)).stem for name in found["names"]] == ["a", "b", "c"]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found["probs"], m.predict(images)["probs"])
    assert "no_sub, cdm, axion" in repr(m)
    assert "1 x 64 x 64" in repr(m)


def test_a_model_says_by_what_it_was_chosen(mine: Path) -> None:
    m = lensdist.load(mine / "runs" / "mine")
    m.description["metrics"] = {"selected_by": "val accuracy", "val": 0.87654, "step": 300}
    assert "val accuracy 0.8765, step 300" in repr(m)


def test_features_are_what_the_head_gets(mine: Path) -> None:
    m = lensdist.load(mine / "runs" / "mine")
    found = m.embed(mine / "new-images")
    assert found.dtype == np.float32
    with torch.no_grad():
        logits = m.network.get_submodule("head")(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(logits, m.predict(mine / "new-images")["logits"], rtol=1e-4)


def test_rollout_is_the_attention_of_all_layers_and_of_the_residuals() -> None:
    torch.manual_seed(0)
    first, second = Attention(8, 2), Attention(8, 2)
    tokens = nn.Sequential(
        nn.Flatten(2), nn.Linear(16, 32), nn.Unflatten(2, (4, 8)), nn.Flatten(0, 1)
    )
    network, x = nn.Sequential(tokens, first, second), torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        given = tokens(x)
        one, two = (
            (layer.weights(y).mean(1) + torch.eye(4)) / 2
            for layer, y in ((first, given), (second, first(given)))
        )
        _, _, v = second._heads(first(given))
        torch.testing.assert_close(
            second.out((second.weights(first(given)) @ v).transpose(1, 2).flatten(2)),
            second(first(given)),
        )
    wanted = (two @ one).mean(1).view(3, 2, 2)
    found = looks(network, x)
    assert found is not None
    corners = found[:, ::3, ::3]  # the interpolated map has a token's own value there
    torch.testing.assert_close(
        corners, wanted / wanted.amax((1, 2), keepdim=True), rtol=1e-4, atol=1e-4
    )


def test_grad_cam_shows_what_the_largest_output_depends_on() -> None:
    """Two classes: one answers to what is bright, the other to what is dark."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    network = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, :2], x[1, 0, 6:] = 1.0, -1.0
    found = looks(network, x)
    assert found is not None
    torch.testing.assert_close(found, x[:, 0].abs())


def test_an_ensemble_looks_where_its_members_do_in_the_mean() -> None:
    cfg = EnsembleConfig(members=("lensnet", "lensnet"), image_size=16, head_dims=(4,), grey="fold")
    m = loaded("common", cfg, "minmax")
    images = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    seen = m.preprocess(torch.from_numpy(images))
    each = [looks(member, seen) for member in m.network.backbones]  # type: ignore[operator]
    assert not torch.equal(*each)
    np.testing.assert_allclose(m.attention(images), (each[0] + each[1]) / 2, rtol=1e-5)
    assert m.embed(images).shape == (3, 64)


def test_a_network_with_neither_is_refused_in_a_sentence(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = lensdist.load(mine / "runs" / "mine")
    m.network = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 3))
    images = np.random.default_rng(0).random((2, 64, 64))
    with pytest.raises(UserError, match="task finetune has no map of where it looks"):
        m.attention(images)
    assert (
        looks(nn.Sequential(nn.Conv2d(1, 8, 2), nn.MultiheadAttention(8, 2)), torch.zeros(1))
        is None
    )


def test_files_that_cannot_be_used_are_named(mine: Path, tmp_path: Path) -> None:
    m = lensdist.load(mine / "runs" / "mine")
    (tmp_path / "broken.npy").write_bytes(b"no")
    with pytest.raises(UserError, match=r"broken\.npy"):
        m.predict([tmp_path / "broken.npy"])
    with pytest.raises(UserError, match="does not exist"):
        m.embed(str(tmp_path / "nowhere.npy"))


def _scored(folder: Path, accuracy: float) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"task: finetune\npreset: debug\nseed: 3\nrun: {{dir: {folder}}}\n"
    )
    images = write_images(folder / "eval" / "test.safetensors", {"sample": torch.arange(2)})
    scores = {"accuracy": accuracy, "accuracy_ci": [0.25, 0.75], "labels": ["a", "b"], "n": 2}
    facts = {"metrics": scores, "images": sha256(images), "data": {"fingerprint": "f"}}
    (folder / "eval" / "test.json").write_text(to_json(sealed(facts)))
    return folder


def test_a_run_has_a_row_with_its_scores_by_split(tmp_path: Path) -> None:
    row = row_of(_scored(tmp_path / "a", 0.5))
    assert (row["name"], row["task"], row["preset"], row["seed"]) == ("a", "finetune", "debug", 3)
    assert (row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"]) == (
        0.5,
        0.25,
        0.75,
    )
    assert "test_accuracy" in repr(lensdist.Run(tmp_path / "a"))
    assert not row["complete"]


def test_the_score_that_chose_the_weights_is_in_the_row(tmp_path: Path) -> None:
    run = _scored(tmp_path / "a", 0.5)
    (run / "export").mkdir()
    facts = {"metrics": {"selected_by": "val nll", "val": 0.25, "step": 3}}
    (run / "export" / "config.json").write_text(to_json(sealed(facts)))
    assert row_of(run)["val_nll"] == 0.25


def test_runs_are_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    for name, accuracy in (("a", 0.5), ("deep/b", 0.25)):
        _scored(tmp_path / name, accuracy)
    found = lensdist.read_runs(tmp_path)
    assert list(found["name"]) == ["a", "b"]
    assert found["test_accuracy"].mean() == 0.375


def test_without_pandas_a_sentence_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install 'lensdist\\[pandas\\]'"):
        lensdist.read_runs(tmp_path)


def test_settings_are_the_words_of_the_command_line() -> None:
    given = {"seed": 1, "data": {"path": Path("a b"), "sim": {"family": "sr"}}, "encoder": None}
    assert list(_words(given)) == [
        "seed=1", 'data.path="a b"', 'data.sim.family="sr"', "encoder=null",
    ]  # fmt: skip


def test_training_is_refused_as_on_the_command_line_and_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="did you mean mae/debug"):
        lensdist.train("mae/debugg")
    with pytest.raises(UserError, match="global_batch"):
        lensdist.train("mae/debug", train={"global_batch": -1})
    assert signal.getsignal(signal.SIGTERM) is before
