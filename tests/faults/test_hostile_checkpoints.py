"""Checkpoints that are damaged, or sealed by a stranger: the run goes on from the one before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lensdist import train
from lensdist.training import checkpoint
from lensdist.utils.sealed import seal
from lensdist.utils.tensors import write_safetensors
from tests.conftest import settings
from tests.faults.test_bit_flips import SET, TINY

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900), pytest.mark.usefixtures("handlers")]

WEIGHT = "model/head.1.weight"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after step 4; the checkpoint of step 2 is there too."""
    run = tmp_path_factory.mktemp("hostile") / "run"
    assert train.main(words(run)) == 0
    (run / "COMPLETE.json").unlink()
    shutil.rmtree(run / "export")
    return run


def words(run: Path) -> list[str]:
    """Of the command that goes on with it."""
    return settings("finetune", SET, run, **TINY)


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run"


def write_header(folder: Path, header: bytes, length: int | None = None) -> None:
    """Weights with this header, sealed."""
    size = len(header) if length is None else length
    forge(folder, data=size.to_bytes(8, "little") + header)


def forge(
    folder: Path,
    tensors: Callable[[dict[str, Tensor]], Any] | None = None,
    meta: Callable[[dict[str, Any]], Any] | None = None,
    data: bytes | None = None,
    **changes: Any,
) -> None:
    """Change a checkpoint, and seal it as whoever knows how could do."""
    saved = checkpoint.read(folder)
    path = folder / "state.safetensors"
    for change, value in ((tensors, saved.tensors), (meta, saved.meta)):
        if change is not None:
            change(value)
    if data is None:
        write_safetensors(path, saved.tensors)
    else:
        path.write_bytes(data)
    digest = __import__("hashlib").sha256(path.read_bytes()).hexdigest()
    files = {"state.safetensors": {"bytes": path.stat().st_size, "sha256": digest}}
    manifest = {"format": 1, "step": saved.step, "files": files, "meta": saved.meta, **changes}
    text = json.dumps({**manifest, "seal": seal(manifest)})
    (folder / "checkpoint.json").write_text(text)


def one(name: str, **changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    return json.dumps({name: entry}).encode()


def replace_by(make: Callable[[Path], Any], name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def grow(path: Path) -> None:
    with path.open("ab") as f:
        f.truncate(10 * 2**30)


def manifest(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "checkpoint.json").write_text(text) and None


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "a header of length 2^63": lambda f: write_header(f, b"{}", 2**63),
    "a header longer than the file": lambda f: write_header(f, b"{}", 100),
    "no bytes": lambda f: forge(f, data=b""),
    "seven bytes": lambda f: forge(f, data=b"\0" * 7),
    "a name twice": lambda f: write_header(f, one("a")[:-1] + b"," + one("a")[1:] + b"    "),
    "a shape that overflows": lambda f: write_header(f, one("a", shape=[2**62, 2**62])),
    "an empty shape that overflows": lambda f: write_header(
        f, one("a", shape=[0, 2**62, 2**62], data_offsets=[0, 0])
    ),
    "a negative shape": lambda f: write_header(f, one("a", shape=[-1, -1]) + b"    "),
    "a shape of floats": lambda f: write_header(f, one("a", shape=[1.0]) + b"    "),
    "an unknown dtype": lambda f: write_header(f, one("a", dtype="F8_E8M0") + b"    "),
    "offsets beyond the end": lambda f: write_header(f, one("a", data_offsets=[4, 8]) + b"    "),
    "a deep header": lambda f: write_header(f, b"[" * 100_000),
    "a list for a header": lambda f: write_header(f, b"[]"),
    "10 GB of nothing": lambda f: grow(f / "state.safetensors"),
    "a manifest 100,000 deep": manifest("[" * 100_000),
    "a manifest of a number that is none": manifest('{"step": 1e400}'),
    "a manifest of too many digits": manifest('{"step": ' + "9" * 5000 + "}"),
    "a pipe for a manifest": replace_by(os.mkfifo, "checkpoint.json"),
    "a folder for a manifest": replace_by(os.mkdir, "checkpoint.json"),
    "a pipe for tensors": replace_by(os.mkfifo, "state.safetensors"),
    "a folder for tensors": replace_by(os.mkdir, "state.safetensors"),
    "a link to nothing": replace_by(lambda p: p.symlink_to("nowhere"), "state.safetensors"),
    "a link to itself": replace_by(lambda p: p.symlink_to(p), "checkpoint.json"),
    "no config": lambda f: forge(f, meta=lambda m: m.pop("config")),
    "no data": lambda f: forge(f, meta=lambda m: m.pop("data")),
    "a config that is text": lambda f: forge(f, meta=lambda m: m.update(config="x")),
    "an unknown state field": lambda f: forge(f, meta=lambda m: m["state"].update(more=1)),
    "a state without a window": lambda f: forge(f, meta=lambda m: m["state"].pop("window")),
    "a window of text": lambda f: forge(f, meta=lambda m: m["state"].update(window=["x"])),
    "a best step to come": lambda f: forge(f, meta=lambda m: m["state"].update(best_step=9)),
    "a state of another step": lambda f: forge(f, meta=lambda m: m["state"].update(step=3)),
    "a step of true": lambda f: forge(f, step=True),
    "a step of 4.0": lambda f: forge(f, step=4.0),
    "a negative step": lambda f: forge(f, step=-4),
    "a huge step": lambda f: forge(f, step=10**300),
    "the manifest of step 9": lambda f: forge(f, step=9),
    "files that are a list": lambda f: forge(f, files=[]),
    "meta that is a list": lambda f: forge(f, meta=None, files={}),
    "one more key": lambda f: forge(f, more=1),
    "a missing tensor": lambda f: forge(f, lambda t: t.pop(WEIGHT)),
    "no tensors": lambda f: forge(f, lambda t: t.clear()),
    "another shape": lambda f: forge(f, lambda t: t.update({WEIGHT: torch.zeros(2, 2)})),
    "another dtype": lambda f: forge(f, lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.int64)})),
    "one tensor more": lambda f: forge(f, lambda t: t.update({"model/more": torch.zeros(1)})),
    "a tensor of nobody": lambda f: forge(f, lambda t: t.update({"w": torch.zeros(1)})),
    "an average of one": lambda f: forge(f, lambda t: t.update({"average/x": torch.zeros(1)})),
    "NaN": lambda f: forge(f, lambda t: t[WEIGHT].fill_(torch.nan)),
    "an optimizer of nobody": lambda f: forge(
        f, lambda t: t.update({"optim/x/step": torch.zeros(())})
    ),
    "an optimizer of another shape": lambda f: forge(
        f, lambda t: t.update({"optim/head.1.weight/exp_avg": torch.zeros(3)})
    ),
    "half an optimizer": lambda f: forge(f, lambda t: t.pop("optim/head.1.weight/exp_avg_sq")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_run_goes_on_from_the_checkpoint_before(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ATTACKS[name](run / "checkpoints" / "step-00000004")
    assert train.main(words(run)) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if " WARNING " in line]
    assert len(said) == 1
    assert "passed over a damaged checkpoint" in said[0]
    assert "step-00000004" in said[0]


def test_a_checkpoint_that_is_a_link_is_read_and_what_it_leads_to_is_kept(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, away = run / "checkpoints" / "step-00000002", run.parent / "elsewhere"
    path.rename(away)
    path.symlink_to(away)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    assert train.main([*words(run), "checkpoint.keep=1"]) == 0
    assert "resumed: step-00000002" in capsys.readouterr().err
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000004"]
    assert (away / "state.safetensors").exists()


def test_checkpoints_that_are_a_file_are_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("notes")
    assert train.main(words(run)) == 2
    assert "where checkpoints are kept" in capsys.readouterr().err
    assert (run / "checkpoints").read_text() == "notes"
