"""Every engine, in every precision that a CPU has, on 1, 2 and 4 processes: the same losses, and
checkpoints that any other goes on from. Each two of the three meet; all, if LONG."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lensdist.training import checkpoint
from tests.conftest import forked, free_port
from tests.distributed.engines_worker import (
    ENGINES,
    GOES_ON,
    HALF,
    PRECISIONS,
    STEPS,
    UNLIKE,
    paired,
)
from tests.runs import newest, record, rows

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

WORLDS = (4, 2, 1)
UNLIKES = [pytest.param(e, marks=() if e in UNLIKE else pytest.mark.long) for e in ENGINES]
# Rounding of another order of sums, over 20 steps. In bfloat16 it turns single weights over.
TOLERANCE = {"no": 1e-5, "bf16": 1e-3}


@pytest.fixture(scope="module")
def runs(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `engines_worker.py` leaves."""
    out = tmp_path_factory.mktemp("engines")
    for processes in WORLDS:
        words = ("tests.distributed.engines_worker", out, tiny_set)
        done = forked(*words, processes=processes, port=free_port(), timeout=1000)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


def _logged(run: Path, name: str, kind: str = "train") -> list[float]:
    return [row[name] for row in rows(run, kind)]


def _end(run: Path) -> dict[str, torch.Tensor]:
    saved = newest(run)
    assert saved.step == STEPS
    return saved.tensors


def _same_state(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Names, shapes, types, and values to what rounding makes of them in 20 steps of Adam."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
    for kind in ("model/", "average/", "exp_avg", "exp_avg_sq", "step", "running_", "tracked"):
        names = [n for n in wanted if kind in n]
        a, b = (torch.cat([t[n].double().flatten() for n in names]) for t in (found, wanted))
        assert float((a - b).norm() / b.norm()) < 1e-4, kind


@pytest.mark.parametrize(
    ("processes", "engine", "precision"),
    [
        pytest.param(*each, marks=() if paired(*each) else pytest.mark.long)
        for each in product(WORLDS, ENGINES, PRECISIONS)
    ],
)
def test_losses_are_those_of_one_process(
    runs: Path, engine: str, precision: str, processes: int
) -> None:
    alone, run = runs / "1" / f"ddp-{precision}", runs / str(processes) / f"{engine}-{precision}"
    wanted, found = _logged(alone, "loss"), _logged(run, "loss")
    assert len(found) == STEPS
    assert wanted[-1] < wanted[0]
    assert found == pytest.approx(wanted, rel=TOLERANCE[precision])
    assert _logged(run, "grad_norm") == pytest.approx(
        _logged(alone, "grad_norm"), rel=100 * TOLERANCE[precision]
    )
    assert _logged(run, "nll", "val") == pytest.approx(
        _logged(alone, "nll", "val"), rel=10 * TOLERANCE[precision]
    )
    if precision == "no":
        _same_state(_end(run), _end(alone))


@pytest.mark.parametrize("engine", UNLIKES)
def test_synchronised_batchnorm_gives_the_losses_of_one_process(runs: Path, engine: str) -> None:
    alone, run = runs / "1" / "ddp-auto", runs / "2" / f"{engine}-auto"
    assert _logged(run, "loss") == pytest.approx(_logged(alone, "loss"), rel=TOLERANCE["no"])
    assert _logged(run, "grad_norm") == pytest.approx(
        _logged(alone, "grad_norm"), rel=100 * TOLERANCE["no"]
    )  # not clipped
    # Without dropout, biases before BatchNorm have no gradient but rounding: weights say nothing.
    found, wanted = _end(run), _end(alone)
    for name in (n for n in wanted if n.startswith("model/") and "running_var" in n):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("engine", UNLIKES[1:])  # ddp has no shares
def test_shares_in_the_machines_memory_make_no_difference(runs: Path, engine: str) -> None:
    alone, run = runs / "1" / "ddp-no", runs / "2" / f"{engine}-offload"
    assert _logged(run, "loss") == pytest.approx(_logged(alone, "loss"), rel=TOLERANCE["no"])
    _same_state(_end(run), _end(alone))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_export_is_the_average_of_the_best_checkpoint(runs: Path, engine: str) -> None:
    run = runs / "4" / f"{engine}-no"
    best = record(run)["metrics"]["step"]
    saved = checkpoint.read(run / "checkpoints" / f"step-{best:08d}").tensors
    exported = load_file(run / "export" / "model.safetensors")
    for name, tensor in exported.items():
        if f"average/{name}" in saved:
            assert torch.equal(tensor, saved[f"average/{name}"]), name
    assert any(f"average/{name}" in saved for name in exported)


@pytest.mark.parametrize(("before", "after"), GOES_ON.items())
def test_an_engine_goes_on_from_what_another_has_saved(runs: Path, before: str, after: str) -> None:
    run, alone = runs / "2" / f"{after}-from-{before}", runs / "1" / "ddp-no"
    assert _logged(run, "loss") == pytest.approx(_logged(alone, "loss")[HALF:], rel=1e-5)
    _same_state(_end(run), _end(alone))
    saved = runs / "4" / f"{before}-no" / "checkpoints" / f"step-{HALF:08d}"
    assert len(list(saved.glob("state*.safetensors"))) == (1 if before == "ddp" else 4)
    (event,) = [row for row in rows(run, "event") if "resumed elsewhere" in row["what"]]
    assert "processes 4 -> 2" in event["detail"]
