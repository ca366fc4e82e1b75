"""A set of another size: whoever does what the messages say gets a run, or is told that none is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensdist import train
from lensdist.config import load
from lensdist.config.loader import save
from lensdist.config.presets import preset_file
from lensdist.config.schema import schema_of
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.writer import PackedWriter
from lensdist.models.resample import block_means
from lensdist.runs.fit import load_fitted
from lensdist.runs.sizes import check_images
from lensdist.utils.errors import UserError
from tests.conftest import settings
from tests.unit.data_files import add_all

pytestmark = pytest.mark.unit


def pack(dest: Path, bands: int, size: int, width: int = 0, *, pairs: bool = False) -> Path:
    """40 images of noise; pairs are of half as many pixels a side."""
    import torch

    draw = np.random.default_rng(0)
    images = draw.random((40, bands, size, width or size), np.float32)
    labels = np.full(40, -1) if pairs else np.arange(40) % 2
    names = [f"{i}.npy" for i in range(40)]
    kind = "pairs" if pairs else "classify"
    with PackedWriter(
        dest, labels=[] if pairs else ["a", "b"], seed=0, source={}, kind=kind
    ) as writer:
        if pairs:
            large = draw.random((40, bands, 2 * size, 2 * size), np.float32)
            small = block_means(torch.from_numpy(large), 2).numpy()
            add_all(writer, small, labels, names, target=large)
        else:
            add_all(writer, images, labels, names)
        writer.finish()
    return dest


def follow(words: list[str], capsys: pytest.CaptureFixture[str], rounds: int = 3) -> str:
    """Train, doing what each message says; what the last says where it says no more, else ""."""
    words = [*words, "train.max_steps=1", "train.micro_batch=null", "train.global_batch=4"]
    for _ in range(rounds + 1):
        code = train.main(words)
        said = capsys.readouterr().err
        if code == 0:
            return ""
        assert code == 2, said
        hint = re.search(r"; set ((?:[a-z_.]+=\S*[^\s,;] ?)+)", said)
        if hint is None:
            return said
        words += hint[1].split()
    raise AssertionError(f"in a circle: {said}")


@pytest.mark.parametrize("task", ["mae", "finetune", "common"])
@pytest.mark.parametrize(("bands", "size"), [(1, 75), (2, 30)])
def test_its_hints_lead_to_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, bands: int, size: int
) -> None:
    words = settings(task, pack(tmp_path / "set", bands, size), tmp_path / "run")
    words = [w for w in words if not w.startswith("model.grey")] + ["model.image_size=64"]
    if task == "common":
        words += ["model.grey=repeat", "init=random"]
    else:
        words += ["preprocess.scale=minmax"]
    assert follow(words, capsys) == ""


@pytest.mark.parametrize(("bands", "size"), [(1, 40), (2, 75)])
def test_pairs_of_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bands: int, size: int
) -> None:
    data = pack(tmp_path / "set", bands, size, pairs=True)
    words = settings("sr", data, tmp_path / "run")
    assert follow([*words, "encoder=null"], capsys) == ""


@pytest.mark.parametrize(("size", "width"), [(61, 61), (64, 32), (7, 7)])
def test_sizes_that_no_setting_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, width: int
) -> None:
    words = settings("mae", pack(tmp_path / "set", 1, size, width), tmp_path / "run")
    assert "lensdist pack --crop" in follow(words, capsys)


@pytest.mark.parametrize("preset", ["mae/reference", "common/reference", "common/best"])
def test_a_preset_takes_size_and_bands_from_the_set(tmp_path: Path, preset: str) -> None:
    data = pack(tmp_path / "set", 2, 30)
    words = [preset, f"data.path={data}", f"run.dir={tmp_path / 'run'}"]
    found: Any = load_fitted(None, words)
    plain: Any = load(preset_file(preset), words[1:], schema=schema_of)
    assert found.image_shape == (2, 30, 30)
    # A lens fit is for one size.
    if preset == "common/best":
        assert (plain.preprocess.scale, found.preprocess.scale) == ("lens_fit", "minmax")
    same = {"model": plain.model, "preprocess": plain.preprocess}
    assert found.model_copy(update=same) == plain
    # What the user sets stays, and with it the error that names all that differs.
    assert load_fitted(None, [*words, "model.in_channels=1"]).image_shape == plain.image_shape
    # So does what a configuration of the user's own says; what it takes from a preset is fitted.
    config = tmp_path / "own.yaml"
    save(plain, config)
    assert load_fitted(config, []) == plain
    config.write_text(f"defaults: {preset_file(preset).resolve()}\nseed: 5\n")
    assert load_fitted(config, words[1:]) == found.model_copy(update={"seed": 5})
    own = f"defaults: {preset_file(preset).resolve()}\nmodel: {{in_channels: 1}}\n"
    config.write_text(own)
    assert load_fitted(config, words[1:]).image_shape == plain.image_shape
    assert load_fitted(preset_file(preset), words[1:]) == found  # a preset's file is the preset


def test_a_lens_fit_of_a_preset_gives_way_to_bad_pixels(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "set", labels=["a", "b"], seed=0, source={}) as writer:
        images = np.random.default_rng(0).random((40, 1, 150, 150), np.float32)
        labels, names = np.arange(40) % 2, [f"{i}.npy" for i in range(40)]
        add_all(writer, images, labels, names, badpix=images < 0.01)
        writer.finish()
    words = [f"data.path={tmp_path / 'set'}", f"run.dir={tmp_path / 'run'}"]
    assert load_fitted(None, ["common/small", *words]).preprocess.scale == "minmax"
    kept = load_fitted(None, ["common/small", *words, "preprocess.scale=lens_fit"])
    with pytest.raises(UserError, match=r"cannot skip pixels.*set preprocess\.scale=minmax"):
        check_images(kept, PackedSet(tmp_path / "set"))


def test_a_preset_names_no_class_that_the_set_lacks(tmp_path: Path, tiny_set: Path) -> None:
    words = ["finetune/small", f"run.dir={tmp_path / 'run'}", "encoder=null"]
    data = f"data.path={pack(tmp_path / 'set', 1, 64)}"
    assert load_fitted(None, [*words, data]).preprocess.smooth_class is None
    for own in ("preprocess.smooth_class=no_sub", "preprocess.family=model_ii"):
        assert load_fitted(None, [*words, data, own]).preprocess.smooth_class == "no_sub"
    assert load_fitted(None, [*words, f"data.path={tiny_set}"]).preprocess.smooth_class == "no_sub"
    # An encoder brings its own preprocessing, whatever the set's classes are.
    words[-1] = f"encoder={tmp_path}"
    for theirs in ("no_sub", None, "no"):
        facts = {"preprocessing": {"scale": "residual", "smooth_class": theirs}}
        (tmp_path / "config.json").write_text(json.dumps(facts))
        assert load_fitted(None, [*words, data]).preprocess.smooth_class == theirs


def test_a_preset_takes_the_shape_of_its_encoder(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "mae"
    assert follow(settings("mae", tiny_set, encoder), capsys) == ""
    words = ["finetune/reference", f"data.path={tiny_set}", f"run.dir={tmp_path / 'run'}"]
    found: Any = load_fitted(None, [*words, f"encoder={encoder}"])
    theirs: Any = load(encoder / "config.yaml", [], schema=schema_of)
    for field in ("image_size", "patch_size", "dim", "depth", "heads", "mlp_dim"):
        assert getattr(found.model, field) == getattr(theirs.model, field), field
    kept: Any = load_fitted(None, [*words, f"encoder={encoder}", "model.depth=3"])
    assert kept.model.depth == 3


def test_a_lens_fit_is_for_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config=configs/common/small.yaml", f"run.dir={tmp_path / 'run'}"]
    words += [f"data.path={pack(tmp_path / 'set', 1, 64)}"]
    assert follow(words, capsys) == ""


def test_a_pretrained_encoder_keeps_its_size(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "mae"
    assert follow(settings("mae", tiny_set, encoder), capsys) == ""
    other = pack(tmp_path / "set", 1, 75)
    for own in (64, 75):
        words = settings("finetune", other, tmp_path / "run", encoder=encoder)
        words += [f"model.image_size={own}", f"model.patch_size={own // 8 if own == 64 else 5}"]
        assert "pretrain one on such a set" in follow(words, capsys)
    # A model of another size, where set and encoder agree: one command with all that differs.
    words = settings("finetune", tiny_set, tmp_path / "run", encoder=encoder)
    words += ["model.image_size=75", "model.patch_size=5", "model.dim=64", "model.depth=2"]
    assert follow(words, capsys) == ""
