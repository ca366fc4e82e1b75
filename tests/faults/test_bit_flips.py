"""One flipped bit in a file of a finished run or an export is refused, or changes nothing of use.

Figures are not covered: people look at them, but no command reads them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from lensdist.evaluate.run import open_subject, score_split
from lensdist.export.artifact import read_export
from lensdist.metrics.report import collect, hard_rows
from lensdist.phases import completed
from lensdist.tracking.metrics_log import read
from lensdist.training import checkpoint
from lensdist.utils.errors import UserError
from lensdist.utils.files import to_json
from tests.conftest import ROOT, forked, settings

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

OTHER = ROOT / "tests" / "golden" / "e08eb66" / "finetune"
SET = OTHER.with_name("set")
TINY: dict[str, Any] = {
    "model.image_size": 16, "model.patch_size": 4, "model.dim": 16, "model.heads": 2,
    "model.head_dims": "[8]", "train.max_steps": 4, "train.global_batch": 8,
    "checkpoint.every_steps": 2, "checkpoint.keep": 2, "train.eval_every_epochs": 99,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with scores."""
    run = tmp_path_factory.mktemp("flips") / "run"
    done = forked("lensdist.train", *settings("finetune", SET, run, **TINY))
    assert done.returncode == 0, done.stderr
    score_split(open_subject(run, SET), "test")
    return run


def used(run: Path) -> str:
    """All that commands take from a run, as text.

    Raises:
        UserError, Damaged: it is refused.
    """
    rows = collect([run])
    problems = [row["problem"] for row in [*rows, *hard_rows([run])] if "problem" in row]
    if problems:
        raise UserError("; ".join(problems))
    description, weights = read_export(run)
    states = [checkpoint.read(path) for _, path in checkpoint.steps(run / "checkpoints")]
    tensors = [weights, *(state.tensors for state in states)]
    return to_json(
        {
            "rows": rows,
            "log": read(run / "metrics.jsonl"),
            "record": completed(run),
            "description": description,
            "meta": [state.meta for state in states],
            "tensors": [sha256(save(each)).hexdigest() for each in tensors],
        }
    )


def flip(path: Path, use: Callable[[], Any]) -> None:
    """60 bits of a file, one at a time: it is refused, or what is used is the same."""
    wanted, data, refused = use(), path.read_bytes(), 0
    for bit in random.Random(path.name).sample(range(8 * len(data)), 60):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert use() == wanted, (path, bit)
        except (UserError, checkpoint.Damaged):
            refused += 1
    assert refused >= 30  # of JSON, flips between one space and another blank are harmless


NAMES = (
    "COMPLETE.json", "config.yaml", "metrics.jsonl", "eval/test.json", "export/config.json",
    "export/model.safetensors", "checkpoints/step-00000004/checkpoint.json",
    "checkpoints/step-00000002/state.safetensors",
)  # fmt: skip


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", NAMES)
def test_60_flips_in_a_file_of_a_run_are_refused_or_harmless(run: Path, name: str) -> None:
    flip(run / name, lambda: used(run))


def test_no_file_of_a_run_is_left_out(finished: Path) -> None:
    found = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    known = {name.replace("00000002", "00000004") for name in (*NAMES, ".lock")}
    known |= {"eval/test.safetensors"}  # its reader's: tests/unit/test_report_page.py
    figures = {name for name in found if name.startswith("figures/")}
    assert {name.replace("00000002", "00000004") for name in found - figures} <= known


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_60_flips_in_an_export_by_itself_are_refused_or_harmless(run: Path, name: str) -> None:
    given = (run / "export").rename(run.parent / "given")
    flip(given / name, lambda: read_export(given)[0])


def test_another_run_s_export_is_not_this_run_s(run: Path) -> None:
    shutil.rmtree(run / "export")
    shutil.copytree(OTHER / "export", run / "export")
    for path in (run, run / "export"):
        with pytest.raises(UserError, match="altered since its run was completed"):
            read_export(path)
        with pytest.raises(UserError, match="altered since its run was completed"):
            open_subject(path, SET)
    assert "altered" in collect([run])[0]["problem"]


def test_another_run_s_scores_are_not_this_run_s(run: Path) -> None:
    shutil.copy(OTHER / "eval" / "test.json", run / "eval")
    row = collect([run])[0]
    assert "not of the run's weights" in row["problem"]
    assert "accuracy" not in row
