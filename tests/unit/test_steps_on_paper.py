"""What a run does to its weights, read back from its checkpoints, against formulas written here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import lensdist
from lensdist import train
from lensdist.data.dataset import PackedSet
from lensdist.phases import completed
from lensdist.tracking.metrics_log import read
from lensdist.training import checkpoint, loop

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("handlers")]

STEPS, EPOCH = 14, 2  # steps of a run, and of an epoch
STAGES = {"head": (0, 6), "block2": (6, 8), "block1": (8, 10), "stem": (10, 14)}  # first, end
LR, CLIP, BETAS, DECAY, EMA = 0.03, 1e-2, (0.7, 0.8), 0.5, 0.8
WARMUP, FINAL = 2, 0.25


def words(data: Path, run: Path, **more: Any) -> list[str]:
    """A small network that unfreezes in four stages, from the head back to the stem."""
    given = {
        "run.dir": run, "data.path": data, "engine": "ddp", "precision": "no", "select": "nll",
        "init": "random", "label_smoothing": 0.1, "preprocess.scale": "standard",
        "model.members": "[lensnet]", "model.image_size": 64, "model.resize": 16,
        "model.head_dims": "[8]", "unfreeze": "progressive", "unfreeze_epochs": "[3, 1, 1, 2]",
        "optim.name": "adamw", "optim.lr": LR, "optim.betas": list(BETAS),
        "optim.weight_decay": DECAY, "optim.clip_norm": CLIP, "optim.schedule.kind": "cosine",
        "optim.schedule.warmup_steps": WARMUP, "optim.schedule.final": FINAL,
        "optim.schedule.per_stage": "true", "train.epochs": 7, "train.global_batch": 48,
        "train.micro_batch": 16, "train.ema": EMA, "train.log_every": 1, "train.eval_batch": 5,
        "train.eval_every_epochs": 1, "train.reproducible": "true", "train.select_from": "best",
        "checkpoint.every_steps": 1, "checkpoint.keep": 99,
    }  # fmt: skip
    changes = [f"{key}={value}" for key, value in {**given, **more}.items()]
    return ["--config=configs/common/reference.yaml", *changes]


@dataclass
class Run:
    path: Path
    states: dict[int, dict[str, Tensor]]  # step -> tensors of its checkpoint, in float64
    rows: list[dict[str, Any]]

    def of(self, step: int, prefix: str) -> dict[str, Tensor]:
        tensors = self.states[step].items()
        return {k.removeprefix(prefix): v for k, v in tensors if k.startswith(prefix)}

    def column(self, kind: str, name: str) -> list[float]:
        return [row[name] for row in self.rows if row["kind"] == kind]


def trained(*args: Any, **more: Any) -> Run:
    path = args[1]
    assert train.main(words(*args, **more)) == 0
    found = [checkpoint.read(folder) for _, folder in checkpoint.steps(path / "checkpoints")]
    states = {one.step: {k: v.double() for k, v in one.tensors.items()} for one in found}
    return Run(path, states, read(path / "metrics.jsonl"))


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = trained(tiny_set, tmp_path_factory.mktemp("paper") / "run")
    assert list(made.states) == list(range(1, STEPS + 1))
    return made


def trains(name: str, step: int) -> bool:
    """Whether the parameter of that name trains in a step, counted from 1."""
    return any(f".{section}." in name and step > first for section, (first, _) in STAGES.items())


def rate(step: int) -> float:
    first, end = next(one for one in STAGES.values() if step <= one[1])
    within, steps = step - 1 - first, end - first
    if within < WARMUP:
        return LR * (within + 1) / WARMUP
    turn = math.cos(math.pi * (within - WARMUP) / max(1, steps - WARMUP))
    return LR * (FINAL + (1 - FINAL) * (1 + turn) / 2)


def test_the_rate_begins_again_at_each_stage(run: Run) -> None:
    wanted = [rate(step) for step in range(1, STEPS + 1)]
    assert run.column("train", "lr") == pytest.approx(wanted)


def test_a_frozen_section_stays_as_it_is(run: Run) -> None:
    for step in range(2, STEPS + 1):
        before, after = run.of(step - 1, "model/"), run.of(step, "model/")
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        assert moved == {name for name in after if trains(name, step)}, step


def test_each_step_is_that_of_adamw(run: Run) -> None:
    (b1, b2), norms = BETAS, []
    for step in range(2, STEPS + 1):
        before, after = run.of(step - 1, "model/"), run.of(step, "model/")
        slots, old = run.of(step, "optim/"), run.of(step - 1, "optim/")
        names = {key.rpartition("/")[0] for key in slots}
        square = 0.0
        for name in names:
            assert trains(name, step)
            m, v, n = (slots[f"{name}/{slot}"] for slot in ("exp_avg", "exp_avg_sq", "step"))
            began = next(first for key, (first, _) in STAGES.items() if f".{key}." in name)
            assert int(n) == step - began, name  # goes on where more sections unfreeze
            decay = DECAY if after[name].ndim > 1 else 0.0
            move = (m / (1 - b1**n)) / ((v / (1 - b2**n)).sqrt() + 1e-8)
            wanted = before[name] * (1 - rate(step) * decay) - rate(step) * move
            torch.testing.assert_close(after[name], wanted, rtol=1e-5, atol=1e-7)
            zero = torch.zeros_like(m)
            g = (m - b1 * old.get(f"{name}/exp_avg", zero)) / (1 - b1)
            g_square = (v - b2 * old.get(f"{name}/exp_avg_sq", zero)) / (1 - b2)
            torch.testing.assert_close(g.square(), g_square, rtol=1e-3, atol=1e-3 * CLIP**2)
            square += float(g_square.sum())
        norms.append(math.sqrt(square))
    assert max(norms) == pytest.approx(CLIP, rel=1e-3)  # all are longer before they are clipped
    assert min(norms) == pytest.approx(CLIP, rel=1e-3)


def test_the_average_follows_the_weights_through_all_stages(run: Run) -> None:
    for step in range(2, STEPS + 1):
        before, after, weights = (
            run.of(step - 1, "average/"), run.of(step, "average/"), run.of(step, "model/"),
        )  # fmt: skip
        keep = min(EMA, (1 + step) / (10 + step))
        for name, value in after.items():
            buffer = "running" in name or "tracked" in name
            wanted = weights[name] if buffer else keep * before[name] + (1 - keep) * weights[name]
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-7)


def test_the_export_is_the_average_of_the_step_of_lowest_nll(run: Run, tiny_set: Path) -> None:
    values = run.column("val", "nll")
    step = EPOCH * (1 + values.index(min(values)))
    done = completed(run.path)
    assert done is not None
    assert done["metrics"] == {"selected_by": "val nll", "val": min(values), "step": step}
    found = load_file(run.path / "export/model.safetensors")
    assert all(torch.equal(v.double(), run.of(step, "average/")[k]) for k, v in found.items())
    packed = PackedSet(tiny_set)
    images = packed.gather(packed.indices("val"))
    logits = lensdist.load(run.path / "export").predict(images["image"].numpy())["logits"]
    log_p = torch.from_numpy(np.array(logits)).double().log_softmax(1)
    nll = -log_p.gather(1, images["label"][:, None]).mean()
    assert min(values) == pytest.approx(float(nll), rel=1e-4)


def test_what_is_logged_and_saved_less_often_is_the_same(
    run: Run, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = 3 * EPOCH
    values = iter([3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"nll": next(values)})
    rare = {"train.log_every": 4, "checkpoint.every_steps": 9, "checkpoint.keep": 1}
    other = trained(tiny_set, tmp_path / "run", **rare)
    each = run.column("train", "loss")
    means = [np.mean(each[i : i + 4]) for i in range(0, STEPS, 4)]
    assert other.column("train", "loss") == pytest.approx(means, rel=1e-6)
    assert set(other.states) == {best, STEPS}
    done = completed(other.path)
    assert done is not None
    assert done["metrics"]["step"] == best
    assert all(torch.equal(v, run.states[STEPS][k]) for k, v in other.states[STEPS].items())


def test_validation_stops_the_run_and_chooses_the_first_of_equals(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([math.nan, 2.0, 3.0, 1.0, 1.0, math.nan])  # one more would raise StopIteration
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"nll": next(values)})
    more = {"train.early_stop": 2, "checkpoint.keep": 1, "unfreeze": "all"}
    stopped = trained(tiny_set, tmp_path / "run", **more, unfreeze_epochs="null")
    assert set(stopped.states) == {4 * EPOCH, 6 * EPOCH}
    done = completed(stopped.path)
    assert done is not None
    assert (done["steps"], done["metrics"]["step"]) == (6 * EPOCH, 4 * EPOCH)
