"""Separately trained networks become one ensemble: the mean of what they say by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lensdist
from lensdist import cli
from lensdist.data.config import PreprocessConfig
from lensdist.data.smooth import principal
from lensdist.data.transforms import Preprocess
from lensdist.export.artifact import read_export, write_export
from lensdist.export.likeness import fit
from lensdist.export.several import restored, together
from lensdist.models.config import EncoderConfig, EnsembleConfig
from lensdist.models.ensemble import Ensemble
from lensdist.tasks.combine import combined
from lensdist.tasks.encoder import encoder_of
from lensdist.tasks.types import Described
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.sealed import sealed, unsealed

pytestmark = pytest.mark.unit

IMAGES = np.random.default_rng(0).random((5, 32, 32)) * 40 - 3
ONE = "shufflenet_v2_x0_5"


def export(
    folder: Path,
    *members: str,
    labels: str = "abc",
    seed: int = 0,
    preprocess: Preprocess | None = None,
    data: str = "1",
    **model: Any,
) -> Path:
    torch.manual_seed(seed)
    model = {"image_size": 32, "head_dims": (8,), **model}
    cfg = EnsembleConfig(members=members or (ONE,), **model)
    how = preprocess or scaled("asinh")
    description = {
        "task": "common", "preset": "test", "labels": list(labels), "metrics": {"val": seed},
        "preprocessing": how.state(), "model": cfg.model_dump(mode="json"),
        "data": {"fingerprint": data},
    }  # fmt: skip
    write_export(folder, Ensemble(cfg, len(labels)), description, how.tensors())
    return folder


def scaled(scale: str, std: float = 2.0, seed: int | None = None) -> Preprocess:
    smooth = None
    if seed is not None:
        draw = torch.Generator().manual_seed(seed)
        smooth = principal(torch.rand(9, 1, 32, 32, generator=draw), 2)
    return Preprocess(PreprocessConfig(scale=scale), [5.0], [std], smooth)  # type: ignore[arg-type]


def test_the_mean_of_the_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [export(tmp_path / "one"), export(tmp_path / "two", ONE, "mobilenet_v3_small", seed=1)]
    out = tmp_path / "out"
    words = ["export", *map(str, runs), "--out", str(out)]
    assert cli.main(words) == 0
    assert "largest difference" in capsys.readouterr().out
    one, two = (lensdist.load(run).predict(IMAGES)["logits"] for run in runs)
    found = lensdist.load(out)
    np.testing.assert_allclose(found.predict(IMAGES)["logits"], (one + 2 * two) / 3, atol=1e-5)
    assert np.abs(one - two).max() > 1e-3
    facts = json.loads((out / "config.json").read_text())
    assert facts["init"] == "separately trained"
    assert facts["model"]["members"] == [ONE, ONE, "mobilenet_v3_small"]
    assert [s["sha256"] for s in facts["sources"]] == [
        sha256(run / "model.safetensors") for run in runs
    ]
    assert [s["path"] for s in facts["sources"]] == [str(run) for run in runs]
    assert [s["metrics"] for s in facts["sources"]] == [{"val": 0}, {"val": 1}]


def test_the_mean_of_probabilities(tmp_path: Path) -> None:
    runs = [export(tmp_path / "one"), export(tmp_path / "two", seed=1)]
    words = ["--combine", "probabilities", "--out", str(tmp_path / "out")]
    assert cli.main(["export", *map(str, runs), *words]) == 0
    one, two = (lensdist.load(run).predict(IMAGES)["probs"] for run in runs)
    found = lensdist.load(tmp_path / "out").predict(IMAGES)["probs"]
    np.testing.assert_allclose(found, (one + two) / 2, atol=1e-6)


def _combined(runs: list[Path], how: str) -> Described:
    return combined([(run, read_export(run)) for run in runs], how)


def test_what_minmax_does_not_use_may_differ(tmp_path: Path) -> None:
    runs = [
        export(tmp_path / name, preprocess=scaled("minmax", std), data=name)
        for name, std in (("one", 2.0), ("two", 3.0))
    ]
    description, _ = _combined(runs, "logits")
    assert description["data"] is None
    same, _ = _combined([runs[0], runs[0]], "logits")
    assert same["data"] == {"fingerprint": "one"}


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": "acb"}, r"labels is \['a', 'b', 'c'\] in the one and \['a', 'c', 'b'\]"),
    "scale": ({"preprocess": scaled("standard")}, r"preprocessing\.scale is asinh in the one"),
    "statistics": ({"preprocess": scaled("asinh", 3.0)}, r"preprocessing\.std is \[2\.0\]"),
    "size": ({"image_size": 40}, r"model\.image_size is 32 in the one and 40 in the other"),
    "resize": ({"resize": 48}, r"model\.resize is None in the one and 48"),
    "bands": ({"in_channels": 3}, r"model\.in_channels is 1 in the one and 3"),
    "heads": ({"head_dims": ()}, r"model\.head_dims is \[8\] in the one and \[\]"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_runs_that_do_not_go_together(name: str, tmp_path: Path) -> None:
    more, sentence = DIFFERENT[name]
    runs = [export(tmp_path / "one"), export(tmp_path / "two", **more)]
    with pytest.raises(UserError, match=sentence):
        _combined(runs, "logits")


def test_another_smooth_part(tmp_path: Path) -> None:
    runs = [
        export(tmp_path / name, preprocess=scaled("residual", seed=seed))
        for name, seed in (("one", 1), ("same", 1), ("two", 2))
    ]
    _, weights = _combined(runs[:2], "logits")
    assert "preprocess.smooth_rows" in weights
    with pytest.raises(UserError, match="different smooth"):
        _combined([runs[0], runs[2]], "logits")


def test_learned_weights_have_no_place(tmp_path: Path) -> None:
    one = export(tmp_path / "one", combine="learned")
    two = export(tmp_path / "two", ONE, ONE, combine="learned")
    _, weights = _combined([one, one], "logits")
    assert "mix" not in weights
    with pytest.raises(UserError, match=f"{two} has learned weights"):
        _combined([one, two], "logits")


def test_a_description_that_is_none(tmp_path: Path) -> None:
    run = export(tmp_path / "one")
    facts = unsealed(json.loads((run / "config.json").read_text()))
    for model in (None, [], {"members": 3}, {"unknown": 1}):
        (run / "config.json").write_text(json.dumps(sealed({**facts, "model": model})))
        with pytest.raises(UserError, match="cannot be used"):
            _combined([run, run], "logits")


def test_an_ensemble_is_not_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of task common; give a run of task mae"):
        encoder_of(export(tmp_path / "one"), read_export(export(tmp_path / "one")), EncoderConfig())


def test_an_ensemble_says_what_its_networks_say_of_unlike_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    images = [torch.from_numpy(draw.random((n, 1, 32, 32), np.float32)) for n in (60, 30, 4)]
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, members in zip(runs, (("lensnet",), ("lensnet", "lensnet")), strict=True):
        model = lensdist.load(export(run, *members, seed=len(members)))
        layers = model.does.compared(model.network)
        assert layers is not None
        train, val = (
            iter([{"image": each, "sample": torch.arange(len(each))}]) for each in images[:2]
        )
        found = fit(
            layers, model.network, lambda net, b: net(scaled("asinh")(b["image"])), train, val
        )
        assert found is not None
        description, _ = read_export(run)
        write_export(run, model.network, description, scaled("asinh").tensors(), found)
    out = tmp_path / "out"
    assert cli.main(["export", *map(str, runs), "--out", str(out)]) == 0
    ensemble = lensdist.load(out)
    like, odd = images[2].numpy(), 30 * draw.random((4, 1, 32, 32)) ** 8
    for stack, flagged in ((like, False), (odd, True)):
        one, two = (lensdist.load(run).predict(stack)["unlike"] for run in runs)
        answer = ensemble.predict(stack)
        np.testing.assert_allclose(answer["unlike"], (one + two) / 2, rtol=1e-4)
        assert (answer["flag"] == flagged).all()
    nested = together([read_export(out), read_export(runs[0])])
    assert nested is not None
    assert len(nested.members) == 3
    # A network that knows nothing, and damage.
    assert together([read_export(out), read_export(export(tmp_path / "silent"))]) is None
    for damaged in ({"members": 1}, {"members": []}, {"members": [{"parts": {"input": 1.0}}]}):
        with pytest.raises(ValueError, match="likeness"):
            restored(damaged, {})
