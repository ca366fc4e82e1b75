"""Which images a run trains on and validates with, in which order, and what limits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensdist.config.schema import run_schema
from lensdist.data.config import PreprocessConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.limits import limits_of
from lensdist.data.sampler import PackedSource
from lensdist.data.stream import StreamSource
from lensdist.data.subset import View
from lensdist.data.transforms import Preprocess
from lensdist.distributed.micro_batches import plan_steps
from lensdist.export import likeness
from lensdist.export.likeness import Likeness
from lensdist.models.ensemble import Ensemble
from lensdist.runs import phase as phases
from lensdist.runs.learned import learn
from lensdist.sim.config import SimConfig
from lensdist.tasks.build import build_task
from tests.unit.worlds import FakeWorld, on_all

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
LABELS = ("axion", "no_sub", "cdm")


def phase_of(data: Path, scale: str, seed: int = 3) -> Any:
    cfg = run_schema("common")(
        task="common", run={"dir": "x"}, data={"path": str(data)}, init="random", seed=seed,
        preprocess={"scale": scale if scale != "lens_fit" else "none"},  # it wants 150 pixels
        model={"members": ["lensnet"], "image_size": 64},
    )  # fmt: skip
    packed = PackedSet(data)
    how = Preprocess(PreprocessConfig(scale=scale), [0.0], [1.0])  # type: ignore[arg-type]
    task = build_task(cfg, tuple(packed.manifest.labels), how, None)
    source = phases._source(cfg, task, packed, FakeWorld())  # type: ignore[arg-type]
    validation = View(packed, "val", cfg.data, cfg.seed, CPU)
    plan = plan_steps(16, 16, source.size, 0, 1)
    return phases.Phase(cfg, task, source, validation, plan, {}, lambda *_: None)


def test_images_are_those_of_the_train_split_in_the_order_of_the_seed(tiny_set: Path) -> None:
    packed = PackedSet(tiny_set)
    found = phase_of(tiny_set, "minmax").source
    assert np.array_equal(found.view.rows, packed.indices("train"))
    wanted = PackedSource(found.view, 3).places(1, 0, 40)
    assert np.array_equal(found.places(1, 0, 40), wanted)
    other = phase_of(tiny_set, "minmax", seed=4).source
    assert not np.array_equal(other.places(1, 0, 40), wanted)


def test_a_stream_is_simulated_by_the_seed(tiny_set: Path) -> None:
    sim = SimConfig(family="model_ii")
    cfg = run_schema("common")(
        task="common", run={"dir": "x"}, init="random", seed=3, model={"members": ["lensnet"]},
        data={"source": "stream", "stream_epoch": 24, "sim": sim.model_dump()},
    )  # fmt: skip
    task = build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), None)
    found = phases._source(cfg, task, PackedSet(tiny_set), FakeWorld())  # type: ignore[arg-type]
    wanted = StreamSource(sim, 24, LABELS, 3, CPU)
    assert found.size == 24
    for name, value in wanted.take(1, 4, 3).items():
        torch.testing.assert_close(found.take(1, 4, 3)[name], value, equal_nan=True)


class Prepared:
    """A prepared view whose columns are the numbers of its images."""

    def __init__(self, view: View, preprocess: Preprocess, *_: Any) -> None:
        self.view, self.gather, self.name_of = view, view.gather, view.name_of
        rows = torch.from_numpy(view.rows).double()
        self.columns = dict.fromkeys(preprocess.columns, rows)

    def __len__(self) -> int:
        return len(self.view)


def test_prepared_images_are_the_same_in_the_same_order(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "PreparedView", Prepared)
    before = phase_of(tiny_set, "lens_fit")
    after = phases._prepared(before, FakeWorld())  # type: ignore[arg-type]
    assert after.validation.view is before.validation
    assert after.source.view.view is before.source.view
    assert np.array_equal(after.source.places(1, 0, 40), before.source.places(1, 0, 40))
    rows = np.concatenate([before.validation.rows, before.source.view.rows])
    preprocess = before.task.preprocess
    numbers = dict.fromkeys(preprocess.columns, torch.from_numpy(rows).double())
    assert preprocess.limits == limits_of(numbers)


def test_validation_images_limit_what_is_not_prepared(tiny_set: Path) -> None:
    phase = phase_of(tiny_set, "none")
    assert phases._prepared(phase, FakeWorld()) is phase  # type: ignore[arg-type]
    images = phase.validation.gather(np.arange(len(phase.validation)))["image"]
    measured = Preprocess(PreprocessConfig(scale="none"), [0.0], [1.0]).examine(images).columns
    assert set(phase.task.preprocess.limits) == {"image_mean", "image_std", "image_max"}
    for name, ends in limits_of(measured).items():
        assert phase.task.preprocess.limits[name] == pytest.approx(ends, rel=1e-6)


@pytest.mark.parametrize("slow", [False, True])
def test_what_images_are_like_does_not_depend_on_the_processes(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Nor does it where the processes share slow preprocessing."""
    monkeypatch.setattr(likeness, "_LEAST", 5)
    monkeypatch.setattr(Preprocess, "slow", slow)
    torch.manual_seed(0)
    network = Ensemble(phase_of(tiny_set, "none").cfg.model, 3)

    def learned(world: Any) -> Likeness | None:
        phase = phases._prepared(phase_of(tiny_set, "none"), world)
        return learn(phase, network) if world.main else None

    (alone,), (shared, _) = (on_all(size, learned) for size in (1, 2))
    assert {*alone.parts} == {"input", "features", *(() if slow else ("image",))}
    assert shared.state() == alone.state()
    for name, tensor in alone.tensors().items():
        assert torch.equal(shared.tensors()[name], tensor), name
