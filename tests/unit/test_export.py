"""Exports: what was trained is what is loaded; what is damaged or hostile is refused in words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save

import lensdist
from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.export.artifact import read_export, write_export
from lensdist.models.classifier import Classifier
from lensdist.models.config import ClassifierConfig, EncoderConfig, MaeConfig
from lensdist.models.mae import MaskedAutoencoder, pixel_mask
from lensdist.tasks.build import build_task
from lensdist.tasks.encoder import encoder_of
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import sealed
from tests.runs import MaeRun

pytestmark = pytest.mark.unit

SIZE = {"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
LABELS = ["no_sub", "cdm", "axion"]


def images(n: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).random((n, 16, 16)) * 40 - 3


def export(folder: Path, task: str, scale: str = "minmax", **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module
    if task == "mae":
        cfg: Any = MaeConfig(**SIZE, dropout=0.2)
        model = MaskedAutoencoder(cfg)
        more = {"mask": {"ratio": 0.25, "informative": 0.5}, **more}
    else:
        cfg = ClassifierConfig(**SIZE, dropout=0.2)
        model = Classifier(cfg, 3)
    preprocess = Preprocess(PreprocessConfig(scale=scale), [5.0], [2.0])  # type: ignore[arg-type]
    description = {
        "task": task, "preset": "test", "labels": LABELS, "metrics": {},
        "preprocessing": preprocess.state(), "model": cfg.model_dump(mode="json"), **more,
    }  # fmt: skip
    write_export(folder, model, description)
    return model.eval()


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    export(tmp_path / "export", "finetune")
    return tmp_path


@torch.no_grad()
def test_a_classifier_comes_back_with_its_preprocessing_and_labels(tmp_path: Path) -> None:
    model = export(tmp_path / "run" / "export", "finetune", "asinh")
    x = images(5)
    for path in (tmp_path / "run", tmp_path / "run" / "export", str(tmp_path / "run")):
        loaded = lensdist.load(path)
        found = loaded.predict(x)
        raw = torch.asinh(torch.from_numpy(x).float()[:, None] / 0.2)
        np.testing.assert_allclose(found["logits"], model(raw).numpy(), atol=1e-6)
        np.testing.assert_allclose(found["probs"].sum(1), 1, atol=1e-6)
        assert loaded.labels == tuple(LABELS)
        assert not loaded.network.training
    assert found["logits"].dtype == np.float32


def test_alone_or_in_any_batch(classifier: Path) -> None:
    loaded, x = lensdist.load(classifier), images(37)
    together = loaded.predict(x)["logits"]
    alone = np.concatenate([loaded.predict(image[None])["logits"] for image in x])
    assert np.abs(together - alone).max() <= 1e-5
    assert np.abs(loaded.predict(x, batch=5)["logits"] - alone).max() <= 1e-5
    np.testing.assert_array_equal(loaded.predict(x[:, None])["logits"], together)
    x = x[:9]
    good = np.random.default_rng(1).random(x.shape) < 0.7
    spoilt = np.where(good, x, np.nan)
    each = [loaded.predict(spoilt[i : i + 1], good=good[i : i + 1])["logits"] for i in range(9)]
    found = loaded.predict(spoilt, batch=5, good=good)["logits"]
    assert np.abs(found - np.concatenate(each)).max() <= 1e-5
    assert np.abs(found - together[:9]).max() > 1e-3
    with pytest.raises(ValueError, match="good must be bool"):
        loaded.predict(spoilt, good=good.astype(int))


@pytest.mark.parametrize("scale", ["minmax", "standard", "asinh", "none"])
def test_an_autoencoder_answers_in_the_units_of_its_input(tmp_path: Path, scale: str) -> None:
    export(tmp_path, "mae", scale)
    loaded, x = lensdist.load(tmp_path), images(9)

    class Perfect(torch.nn.Module):
        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return image

    loaded.network = Perfect()
    np.testing.assert_allclose(loaded.predict(x)["recon"][:, 0], x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_autoencoder_says_what_it_did_not_see(tmp_path: Path) -> None:
    export(tmp_path, "mae", "none")
    loaded, x = lensdist.load(tmp_path), images(9)
    found = loaded.predict(x)
    assert found["mask"].shape == (9, 16)
    assert found["mask"].dtype == bool
    assert set(found["mask"].sum(1)) == {4}
    np.testing.assert_array_equal(loaded.predict(x[4:5])["mask"], found["mask"][4:5])
    hidden = pixel_mask(torch.from_numpy(found["mask"]), 4).numpy()[:, 0]
    assert hidden.any()
    np.testing.assert_allclose(loaded.predict(x[3:4])["recon"], found["recon"][3:4], atol=1e-4)


BAD = {
    "NaN": (np.full((1, 16, 16), np.nan), "NaN or infinite"),
    "beyond float32": (np.full((1, 16, 16), 1e300), "NaN or infinite"),
    "other size": (np.zeros((1, 15, 16)), r"give \(N, 16, 16\)"),
    "one image": (np.zeros((16, 16)), r"give \(N, 16, 16\)"),
    "bands": (np.zeros((1, 3, 16, 16)), r"1 band"),
    "channels last": (np.zeros((1, 16, 16, 1)), r"1 band"),
    "none": (np.zeros((0, 16, 16)), "do not fit"),
    "complex": (np.zeros((1, 16, 16), complex), "real numbers"),
    "text": (np.full((1, 16, 16), "x"), "real numbers"),
    "objects": (np.full((1, 16, 16), None), "real numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused(classifier: Path, name: str) -> None:
    x, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        lensdist.load(classifier).predict(x)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", ">f8"])
def test_any_real_numbers_will_do(classifier: Path, dtype: str) -> None:
    x = np.round(images(2)).clip(0).astype(dtype)
    loaded = lensdist.load(classifier)
    expected = loaded.predict(x.astype(np.float32))["logits"]
    np.testing.assert_array_equal(loaded.predict(x)["logits"], expected)
    np.testing.assert_array_equal(loaded.predict(x[:, ::-1][:, ::-1])["logits"], expected)


# ---- damaged and hostile


def test_every_flipped_bit_of_the_weights_is_noticed(classifier: Path) -> None:
    path = classifier / "export" / "model.safetensors"
    data = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, 8 * len(data), 40):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or changed"):
            lensdist.load(classifier)


def rewrite(folder: Path, weights: bytes | None = None, **changes: Any) -> None:
    """An export whose hashes are right, made by somebody else."""
    config, file = folder / "export" / "config.json", folder / "export" / "model.safetensors"
    if weights is not None:
        file.write_bytes(weights)
    description = json.loads(config.read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    description = {**description, "sha256": {file.name: digest}, **changes}
    kept = {k: v for k, v in description.items() if v is not ... and k != "seal"}
    config.write_text(json.dumps(sealed(kept)))


MODEL = ClassifierConfig(**SIZE, dropout=0.2).model_dump(mode="json")
HOSTILE: dict[str, dict[str, Any]] = {
    "no task": {"task": ...},
    "unknown task": {"task": "rm -rf"},
    "no labels": {"labels": ...},
    "labels are a number": {"labels": 3},
    "a label is given twice": {"labels": ["no_sub", "cdm", "cdm"]},
    "more labels than logits": {"labels": ["a", "b", "c", "d"]},
    "no model": {"model": ...},
    "model is a list": {"model": []},
    "a huge model": {"model": {**MODEL, "dim": 2**40, "heads": 1}},
    "a negative model": {"model": {**MODEL, "dim": -8}},
    "an unknown field": {"model": {**MODEL, "__class__": "x"}},
    "no preprocessing": {"preprocessing": ...},
    "preprocessing is text": {"preprocessing": "minmax"},
    "means of other bands": {"preprocessing": {"scale": "standard", "mean": [1, 2], "std": [1, 2]}},
    "another scale": {"preprocessing": {"scale": "eval", "mean": [], "std": []}},
    "mae without a mask": {"task": "mae"},
    "other format": {"format": 2},
    "no hash": {"sha256": ...},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_refused_in_words(classifier: Path, name: str) -> None:
    rewrite(classifier, **HOSTILE[name])
    with pytest.raises(UserError):
        lensdist.load(classifier)


@pytest.mark.parametrize(
    "weights",
    [b"", b"\xff" * 8, b"\x80\x04\x95garbage", (2**60).to_bytes(8, "little") + b"{}",
     save({"encoder.position": torch.zeros(1)})],
)  # fmt: skip
def test_hostile_weights_are_refused_in_words(classifier: Path, weights: bytes) -> None:
    rewrite(classifier, weights)
    with pytest.raises(UserError):
        lensdist.load(classifier)


def test_weights_that_are_no_numbers_are_refused(classifier: Path) -> None:
    _, weights = read_export(classifier)
    weights["encoder.position"].view(-1)[3] = torch.nan
    rewrite(classifier, save(weights))
    with pytest.raises(UserError, match="NaN"):
        lensdist.load(classifier)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"{", b'"x"'])
def test_a_description_that_is_none_is_refused(classifier: Path, content: bytes) -> None:
    (classifier / "export" / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="not a complete export"):
        lensdist.load(classifier)


def test_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no exported model"):
        lensdist.load(tmp_path)


# ---- the encoder alone


def test_an_encoder_is_handed_on(tmp_path: Path) -> None:
    model = export(tmp_path, "mae")
    _, weights = encoder_of(tmp_path, read_export(tmp_path), EncoderConfig(**SIZE))
    classifier = Classifier(ClassifierConfig(**SIZE), 3)
    classifier.encoder.load_state_dict(weights)
    mine = model.state_dict()
    assert all(torch.equal(v, mine[f"encoder.{k}"]) for k, v in weights.items())


@pytest.mark.parametrize("field", ["image_size", "patch_size", "dim", "depth", "heads", "mlp_dim"])
def test_an_encoder_of_another_shape_is_refused_by_name(tmp_path: Path, field: str) -> None:
    export(tmp_path, "mae")
    wanted = EncoderConfig(**{**SIZE, field: 2 * SIZE[field] if field != "patch_size" else 8})
    with pytest.raises(UserError, match=rf"set model\.{field}={SIZE[field]}"):
        encoder_of(tmp_path, read_export(tmp_path), wanted)


@pytest.mark.parametrize(("loss", "kept"), [("masked", True), ("image", False)])
def test_pixels_nobody_was_asked_to_draw_are_kept(loss: str, kept: bool, tmp_path: Path) -> None:
    model = lensdist.load(_mae_export(tmp_path, loss))
    images = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    found = model.predict(images)
    hidden = pixel_mask(torch.from_numpy(found["mask"]), 4)[:, 0].numpy()
    shown = np.abs(found["recon"][:, 0] - images)
    assert hidden.any()
    assert (shown[~hidden].max() < 1e-6) == kept
    assert shown[hidden].max() > 1e-3


def _mae_export(folder: Path, loss: str) -> Path:
    cfg = MaeRun(
        task="mae",
        run={"dir": folder},
        data={"path": folder},
        model={"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16},
        loss=loss,
    )
    task = build_task(cfg, (), Preprocess(cfg.preprocess, [0.0], [1.0]))
    facts = {"task": "mae", "preset": "test", "labels": [], "metrics": {}}
    facts |= {"preprocessing": task.preprocess.state(), **task.describe()}
    torch.manual_seed(0)
    write_export(folder / "export", task.build(), facts)
    return folder


def test_an_export_from_before_a_field_existed_is_of_its_default(tmp_path: Path) -> None:
    export(tmp_path / "export", "mae")
    description = json.loads((tmp_path / "export" / "config.json").read_text())
    old = {k: v for k, v in description["model"].items() if k != "block"}
    assert len(old) == len(description["model"]) - 1
    rewrite(tmp_path, model=old)
    assert lensdist.load(tmp_path).predict(images(2))["recon"].shape == (2, 1, 16, 16)
    encoder_of(tmp_path, read_export(tmp_path), EncoderConfig(**SIZE))
    with pytest.raises(UserError, match=r"set model\.block=prenorm"):
        encoder_of(tmp_path, read_export(tmp_path), EncoderConfig(**SIZE, block="postnorm"))
