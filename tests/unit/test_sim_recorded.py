"""Settings that sets recorded before calibration existed."""

import json
from pathlib import Path

import pytest

from lensdist.data.manifest import MANIFEST, Manifest
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig

# All that a set recorded then.
BEFORE = {
    "family": "model_ii", "classes": None, "noise": "native", "exposure_s": 2260.0,
    "sky_mag": 22.35, "read_noise": 4.2, "n_exposures": 4, "source_mag": None, "psf_scale": 1.0,
    "e1": None, "e2": None, "lens_light": None, "substructure_scale": 1.0, "vortex": "points",
}  # fmt: skip


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({}, {"family": "model_ii"}),
        ({"noise": "euclid"}, {"family": "model_ii", "noise": "deeplense_euclid"}),
        (
            {"noise": "euclid", "exposure_s": 565.0},
            {"family": "model_ii", "noise": "deeplense_euclid", "exposure_s": 565.0},
        ),
        ({"family": "common"}, {"family": "common", "calibration": "figures"}),
        ({"family": "sr"}, {"family": "sr", "calibration": "figures"}),
    ],
)
def test_words_mean_what_they_meant_then(then, now):
    assert SimConfig.recorded(BEFORE | then) == SimConfig(**now)


@pytest.mark.parametrize("now", [{"family": "common"}, {"family": "model_ii", "noise": "euclid"}])
def test_sets_of_today_are_taken_at_their_word(now):
    cfg = SimConfig(**now)
    assert SimConfig.recorded(cfg.model_dump(mode="json")) == cfg


def test_a_manifest_is_read_in_todays_words(tmp_path: Path):
    write_packed(tmp_path / "set", SimConfig(family="model_ii", noise="deeplense_euclid"), 10, 0)
    path = tmp_path / "set" / MANIFEST
    old = json.loads(path.read_text())
    old["source"]["simulated"] = BEFORE | {"noise": "euclid"}
    old["seal"] = ""
    path.write_text(json.dumps(old))
    assert Manifest.load(tmp_path / "set").source["simulated"] == SimConfig(
        family="model_ii", noise="deeplense_euclid"
    ).model_dump(mode="json")
