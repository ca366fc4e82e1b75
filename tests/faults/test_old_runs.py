"""What commit e08eb66 wrote, before anything but checkpoints was sealed, can still be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import lensdist
from lensdist import train
from lensdist.evaluate.run import open_subject, score_split
from lensdist.export.artifact import read_export
from lensdist.metrics.report import collect
from lensdist.phases import completed
from lensdist.training import checkpoint
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json
from tests.conftest import ROOT

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

OLD = ROOT / "tests" / "golden" / "e08eb66"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`set`, `mae`, `finetune` (from it) and `stopped` (the same, killed after step 2)."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_an_old_run_is_loaded_reported_and_scored_as_then(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = completed(old / "finetune")
    assert record is not None
    assert record["steps"] == 4
    assert lensdist.load(old / "finetune").labels == ("no_sub", "cdm", "axion")
    (row,) = collect([old / "finetune"])
    assert "problem" not in row
    then = read_json(old / "finetune" / "eval" / "test.json")["metrics"]
    now, _ = score_split(open_subject(old / "finetune", old / "set"), "test")
    assert row["nll"] == then["nll"]
    assert now["nll"] == pytest.approx(then["nll"], rel=1e-5)
    assert capsys.readouterr().err == ""  # COMPLETE.json vouches for the export


def test_an_old_export_alone_is_used_with_a_warning(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old / "mae" / "export").rename(old / "given")
    found = lensdist.load(old / "given").predict(np.ones((1, 16, 16)))
    assert found["recon"].shape == (1, 1, 16, 16)
    warning = capsys.readouterr().err
    assert "before exports were sealed" in warning
    assert warning.count("\n") == 1


def test_an_altered_old_export_is_still_told_by_its_run(old: Path) -> None:
    path = old / "finetune" / "export" / "config.json"
    path.write_text(path.read_text().replace('"no_sub"', '"no_sun"'))
    with pytest.raises(UserError, match="altered since its run"):
        lensdist.load(old / "finetune")


@pytest.mark.usefixtures("handlers")
def test_an_old_run_that_was_killed_goes_on_to_the_same_end(old: Path) -> None:
    assert train.main(["--config=stopped/config.yaml"]) == 0
    mine, theirs = (
        checkpoint.read(old / run / "checkpoints" / "step-00000004")
        for run in ("stopped", "finetune")
    )
    assert mine.meta["state"]["step"] == theirs.meta["state"]["step"] == 4
    for name, tensor in theirs.tensors.items():
        learned = np.ones(tensor.shape, bool)
        if name.endswith("qkv.bias"):
            # Keys' offsets have no gradient but rounding, which Adam makes steps of, and which
            # differs between processors.
            learned[len(tensor) // 3 : -(len(tensor) // 3)] = False
        found, wanted = mine.tensors[name].numpy()[learned], tensor.numpy()[learned]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert read_export(old / "stopped")[0]["labels"] == ["no_sub", "cdm", "axion"]
    assert "seal" in read_json(old / "stopped" / "COMPLETE.json")
