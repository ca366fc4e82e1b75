"""Harder images: made as a packed set's own are, of the same lenses, and never of its lenses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensdist.data.config import PreprocessConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.data.packing.writer import PackedWriter
from lensdist.data.transforms import Preprocess
from lensdist.evaluate import robustness as hard
from lensdist.evaluate.run import open_subject
from lensdist.export.artifact import write_export
from lensdist.metrics import scores as metrics
from lensdist.models.config import SuperResolverConfig
from lensdist.models.super_resolution import SuperResolver
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import BLOCK
from lensdist.utils import rng
from lensdist.utils.errors import UserError
from tests.unit.data_files import add_all
from tests.unit.exported import LABELS, SHAPE, write_model

pytestmark = pytest.mark.unit


def write_packed_pairs(folder: Path) -> Path:
    write_packed(folder / "pairs", SimConfig(family="sr", classes=("no",)), 10, 0)
    return folder / "pairs"


def write_super_resolver(folder: Path, image_size: int = 75) -> Path:
    cfg = SuperResolverConfig(image_size=image_size, width=4, depth=0, encoder=SHAPE)
    preprocess = Preprocess(PreprocessConfig(), [0.0], [1.0])
    description = {
        "task": "sr", "preset": "test", "labels": [], "metrics": {},
        "model": cfg.model_dump(mode="json"), "preprocessing": preprocess.state(),
    }  # fmt: skip
    write_export(folder / "export", SuperResolver(cfg), description)
    return folder


def everything(images: hard.Simulated) -> dict[str, torch.Tensor]:
    starts = range(0, len(images), BLOCK)
    parts = [images.gather(np.arange(s, min(s + BLOCK, len(images)))) for s in starts]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(
    ("cfg", "n"),
    [
        (SimConfig(family="model_ii", noise="euclid"), 50),  # two blocks, the last one short
        (SimConfig(family="common"), 3),
        (SimConfig(family="model_ii", classes=("cdm", "axion")), 3),
    ],
)
def test_images_are_those_of_a_packed_set(cfg: SimConfig, n: int, tmp_path: Path) -> None:
    write_packed(tmp_path / "set", cfg, n, 7)
    packed = PackedSet(tmp_path / "set")
    want = packed.gather(np.arange(len(packed)))
    labels = tuple(packed.manifest.labels)
    found = everything(hard.Simulated(cfg, n, rng.key(7, "simulate"), labels))
    assert found["image"].dtype == torch.float32
    assert torch.equal(found["image"], want["image"])
    assert torch.equal(found["label"], want["label"])
    turned = everything(hard.Simulated(cfg, n, rng.key(7, "simulate"), labels[::-1]))
    assert torch.equal(turned["label"], len(labels) - 1 - want["label"])
    rounded = hard.Simulated(cfg, n, rng.key(7, "simulate"), labels, "float16")
    assert torch.equal(everything(rounded)["image"], want["image"].half().float())


def test_lenses_are_the_same_throughout_and_not_the_sets_own(
    tiny_set: Path, tmp_path: Path
) -> None:
    plan = hard.plan(open_subject(write_model(tmp_path), tiny_set), 4)
    found = {
        name: everything(hard.Simulated(cfg, 4, plan.key, LABELS))
        for name, cfg in plan.variants.items()
    }
    plain = found["plain"]
    smooth = plain["label"] == LABELS.index("no_sub")
    for name in ("mass_third", "mass_tenth"):
        assert torch.equal(found[name]["image"][smooth], plain["image"][smooth])
        assert not torch.equal(found[name]["image"][~smooth], plain["image"][~smooth])
    wrong = [(found[k]["image"] - plain["image"])[~smooth].abs().mean() for k in list(found)[1:3]]
    assert 0 < wrong[0] < wrong[1]  # the less mass, the further from the full one
    sharp = [found[k]["image"].amax() for k in ("psf_wide", "plain", "psf_narrow")]
    assert sharp[0] < sharp[1] < sharp[2]

    packed = PackedSet(tiny_set)
    theirs = packed.gather(np.arange(len(packed)))["image"].flatten(1)
    assert torch.cdist(plain["image"].flatten(1), theirs).min() > 1e-3
    for seed in range(1000):
        assert hard.Plan({}, 1, seed).key not in (
            rng.key(seed, "simulate"),
            rng.key(seed, "stream"),
        )


def test_the_sets_own_settings_are_kept_and_scaled(tmp_path: Path) -> None:
    cfg = SimConfig(family="model_ii", noise="euclid", source_mag=22, substructure_scale=0.5)
    write_packed(tmp_path / "set", cfg, 10, 3)
    plan = hard.plan(open_subject(write_model(tmp_path), tmp_path / "set"), 5)
    assert plan.variants["plain"] == cfg.model_copy(update={"classes": LABELS})
    assert plan.variants["mass_third"].substructure_scale == pytest.approx(1 / 6)
    assert plan.variants["psf_wide"].psf_scale == pytest.approx(1.3)
    assert plan.variants["psf_wide"].substructure_scale == 0.5
    assert (plan.seed, plan.n_per_class) == (3, 5)


def test_scores_of_every_variant_are_written(tmp_path: Path) -> None:
    write_packed(tmp_path / "set", SimConfig(family="model_ii", noise="euclid"), 10, 0)
    subject = open_subject(write_model(tmp_path), tmp_path / "set")
    plan = hard.plan(subject, 50)
    scores, written = hard.score_hard(subject, plan)
    assert list(scores) == ["plain", "mass_third", "mass_tenth", "psf_wide", "psf_narrow"]
    path, figure = written
    assert path == tmp_path / "export" / "eval" / "hard.json"
    assert figure.read_bytes().startswith(b"\x89PNG")
    kept = json.loads(path.read_text())
    assert kept["data"]["fingerprint"] == subject.packed.manifest.fingerprint
    assert (kept["n_per_class"], kept["chance"]) == (50, pytest.approx(1 / 3))
    assert kept["simulated"]["family"] == "model_ii"
    found = kept["variants"]
    for name, each in found.items():
        assert each["n"] == 150
        assert each["accuracy_ci"][0] < each["accuracy"] < each["accuracy_ci"][1]
        assert [len(ci) for ci in each["auc_per_class_ci"]] == [2, 2, 2]
        if name != "plain":
            difference = each["accuracy"] - found["plain"]["accuracy"]
            assert each["accuracy_change"] == pytest.approx(difference)
    assert "accuracy_change" not in found["plain"]

    images = everything(hard.Simulated(plan.variants["psf_wide"], 50, plan.key, LABELS))
    logits = torch.from_numpy(subject.model.predict(images["image"].numpy())["logits"])
    want = metrics.classification(logits, images["label"], LABELS)
    for key in ("accuracy", "auc_per_class", "nll"):  # the noise, too, is that of whole blocks
        assert found["psf_wide"][key] == pytest.approx(want[key], rel=1e-5), key
    assert want["accuracy"] != found["plain"]["accuracy"]

    hard.score_hard(subject, plan)
    assert json.loads(path.read_text()) == kept


def a_set(path: Path, shape: tuple[int, int, int], source: dict[str, Any]) -> Path:
    """Images from elsewhere."""
    images = np.random.default_rng(0).random((30, *shape))
    with PackedWriter(path, labels=LABELS, seed=0, source=source) as writer:
        add_all(writer, images, np.arange(30) % 3, [f"{i}.npy" for i in range(30)])
        writer.finish()
    return path


def test_a_set_from_elsewhere_needs_a_family(tmp_path: Path) -> None:
    data = a_set(tmp_path / "set", (1, 64, 64), {"folder": "somewhere"})
    subject = open_subject(write_model(tmp_path), data)
    with pytest.raises(UserError, match=r"does not say how .* give --family with one of model_i"):
        hard.plan(subject, 10)
    assert hard.plan(subject, 10, "model_iii").variants["plain"].family == "model_iii"
    with pytest.raises(UserError, match=r"images of 1x150x150 with model_i, but .* 1x64x64"):
        hard.plan(subject, 10, "model_i")
    with pytest.raises(UserError, match=r"cannot simulate .* classes: common has no"):
        hard.plan(subject, 10, "common")


@pytest.mark.parametrize(
    ("simulated", "sentence"),
    [
        ({"family": "model_ii", "psf_scale": 9.0}, "cannot simulate .*psf_scale"),
        ({"family": "model_ii", "of_another_version": 1}, "cannot simulate .*of_another_version"),
    ],
)
def test_settings_that_cannot_be_made_harder(
    simulated: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    data = a_set(tmp_path / "set", (1, 64, 64), {"simulated": simulated})
    with pytest.raises(UserError, match=sentence):
        hard.plan(open_subject(write_model(tmp_path), data), 10)


def test_what_makes_no_sense_is_refused_before_anything_is_computed(
    tiny_set: Path, tmp_path: Path
) -> None:
    subject = open_subject(write_model(tmp_path / "a"), tiny_set)
    for n in (0, -1, 10**6):
        with pytest.raises(UserError, match="--hard takes 1 to"):
            hard.plan(subject, n)
    with pytest.raises(UserError, match="was simulated as model_ii, not model_iii"):
        hard.plan(subject, 10, "model_iii")
    with pytest.raises(UserError, match="--hard is for classifiers and super-resolution"):
        hard.plan(open_subject(write_model(tmp_path / "b", "mae"), tiny_set), 10)
    pairs = write_packed_pairs(tmp_path)
    sr = open_subject(write_super_resolver(tmp_path / "c"), pairs)
    assert hard.plan(sr, 4).variants.keys() == {"plain", "psf_wide", "psf_narrow"}
    assert hard.plan(sr, 4).variants["plain"].classes == ("no",)  # the set's own
    (tmp_path / "a" / "export" / "eval").mkdir()
    other = tmp_path / "a" / "export" / "eval" / "hard.json"
    other.write_text('{"data": {"fingerprint": "another"}}')
    with pytest.raises(UserError, match="holds the scores of other data"):
        hard.plan(subject, 10)


def test_pairs_that_nothing_simulates(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "set", labels=[], seed=0, source={}, kind="pairs") as writer:
        draw = np.random.default_rng(0)
        lr, hr = draw.random((10, 1, 64, 64)), draw.random((10, 1, 128, 128))
        add_all(writer, lr, target=hr)
        writer.finish()
    subject = open_subject(write_super_resolver(tmp_path, 64), tmp_path / "set")
    with pytest.raises(UserError, match=r"give --family with one of sr$"):
        hard.plan(subject, 4)
    for family in ("sr", "model_ii"):
        with pytest.raises(UserError, match="no simulator makes such pairs"):
            hard.plan(subject, 4, family)
