"""1, 2 and 4 processes compute the same: to rounding, or to the bit with train.reproducible.

Each task, and each variant of it, on one process and on 2 or 4; if LONG, on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import command, environment, forked, free_port, settings, start
from tests.distributed.worker import STEPS, TASKS, paired
from tests.runs import newest, rows

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]


def on_several(*variants: str) -> pytest.MarkDecorator:
    """Parameters: every task and variant on several processes, most of them `long`."""
    each = product(TASKS, variants, (2, 4))
    marked = [pytest.param(*one, marks=() if paired(*one) else pytest.mark.long) for one in each]
    return pytest.mark.parametrize(("task", "variant", "processes"), marked)


@pytest.fixture(scope="module")
def worlds(
    tiny_set: Path, pairs_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """Folders of the runs of `worker.py` on 1, 2 and 4 processes."""
    root = tmp_path_factory.mktemp("worlds")
    for processes in (1, 2, 4):
        words = ("tests.distributed.worker", root, tiny_set, pairs_set)
        done = forked(*words, processes=processes, port=free_port(), timeout=1000)
        assert done.returncode == 0, done.stderr[-3000:]
    return {n: root / str(n) for n in (1, 2, 4)}


def _end(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    saved = newest(run)
    assert saved.step == STEPS
    return saved.tensors, rows(run, "train", "val")


@on_several("", "-auto")
def test_losses_agree(worlds: dict[int, Path], task: str, variant: str, processes: int) -> None:
    """With a number for train.micro_batch; and under auto, with what does not depend on it."""
    (alone, log), (shared, others) = (_end(worlds[n] / (task + variant)) for n in (1, processes))
    losses, same = ([r["loss"] for r in x if r["kind"] == "train"] for x in (log, others))
    assert len(losses) == STEPS
    assert same == pytest.approx(losses, rel=1e-5)
    # As one vector: single weights with a gradient of exactly 0 in theory (the attention's key
    # biases) are rounding noise, which Adam scales up to full steps.
    names = [k for k in alone if k.startswith(("model/", "average/")) and "tracked" not in k]
    a, b = (torch.cat([t[k].double().flatten() for k in names]) for t in (alone, shared))
    assert float((a - b).norm() / a.norm()) < 1e-4


@on_several("-reproducible")
def test_reproducible_gives_the_same_bits(
    worlds: dict[int, Path], task: str, variant: str, processes: int
) -> None:
    (alone, log), (shared, others) = (_end(worlds[n] / (task + variant)) for n in (1, processes))
    assert alone.keys() == shared.keys()
    for name, tensor in alone.items():
        assert torch.equal(tensor, shared[name]), name
    assert log == others


def _all(worlds: dict[int, Path], task: str) -> Iterator[tuple[int, Path]]:
    return ((n, folder / task) for n, folder in worlds.items() if (folder / task).exists())


def test_batchnorm_statistics_move_once_a_step(worlds: dict[int, Path]) -> None:
    for processes, run in _all(worlds, "batchnorm"):
        tensors, _ = _end(run)
        assert int(tensors["model/4.num_batches_tracked"]) == STEPS, processes
        # Frozen in the first stage, so it moved in the second only.
        assert 0 < int(tensors["model/1.num_batches_tracked"]) < STEPS, processes


def test_kept_features_and_unfrozen_layers_were_both_trained_on(worlds: dict[int, Path]) -> None:
    for processes, run in _all(worlds, "common"):
        events = [r for r in rows(run, "event") if r["what"] == "frozen layers"]
        frozen = [(r["step"], r["detail"]) for r in events]
        assert [step for step, _ in frozen][:2] == [0, 9], processes
        assert "2 view(s) of 48 images" in frozen[0][1]
        assert "not cached: 2 epoch(s)" in frozen[1][1]


def test_an_uneven_share_is_refused(tiny_set: Path, tmp_path: Path, port: int) -> None:
    words = ["lensdist.train", "--config=configs/mae/debug.yaml", f"data.path={tiny_set}"]
    words += [f"run.dir={tmp_path / 'run'}", "train.global_batch=12", "train.micro_batch=4"]
    done = forked(*words, processes=2, port=port)
    assert done.returncode == 2
    assert "3 micro-batches of 4, which 2 processes cannot share evenly" in done.stderr
    assert not (tmp_path / "run").exists()


def test_auto_goes_on_with_another_number_of_processes_and_says_so(
    tiny_set: Path, tmp_path: Path, port: int
) -> None:
    changes = {"train.micro_batch": "auto", "train.max_steps": 4, "checkpoint.every_steps": 2}
    words = ["lensdist.train", *settings("finetune", tiny_set, tmp_path / "run", **changes)]
    assert forked(*words).returncode == 0
    begun = tmp_path / "run" / "checkpoints" / "step-00000002"
    words = ["lensdist.train", *settings("finetune", tiny_set, tmp_path / "two", **changes)]
    done = forked(*words, "--resume", begun, processes=2, port=port)
    assert done.returncode == 0, done.stderr
    assert "the result depends on the number of processes (dropout), unless" in done.stderr
    (said,) = [r for r in rows(tmp_path / "two", "event") if "resumed elsewhere" in r["what"]]
    assert said["what"] == "resumed elsewhere, the result may differ"
    assert said["detail"] == "processes 1 -> 2"


def test_processes_on_a_cpu_find_each_other_without_a_word_of_the_user(
    tiny_set: Path, tmp_path: Path, port: int
) -> None:
    words = ["lensdist.train", "--config=configs/mae/debug.yaml", f"data.path={tiny_set}"]
    launch = command(*words, f"run.dir={tmp_path / 'run'}", processes=2, port=port)
    # accelerate alone would let each of the two processes take itself for the only one.
    alone = environment(CUDA_VISIBLE_DEVICES="")
    del alone["ACCELERATE_USE_CPU"]
    done = start(launch, env=alone)
    assert done.returncode == 0, done.stderr
    assert "on 2 process(es)" in done.stderr
