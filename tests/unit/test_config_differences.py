"""Which settings may change between a run's beginning and its resume."""

from __future__ import annotations

from typing import Any

import pytest

from lensdist.config.differences import differences
from tests.runs import CommonRun, MaeRun

pytestmark = pytest.mark.unit


def _run(**settings: Any) -> dict[str, Any]:
    cfg = MaeRun(**{"task": "mae", "run": {"dir": "x"}, "data": {"path": "y"}, **settings})
    return cfg.model_dump(mode="json")


def _common(epochs: int) -> dict[str, Any]:
    raw = {"task": "common", "run": {"dir": "x"}, "data": {"path": "y"}}
    cfg = CommonRun(**raw, train={"epochs": epochs}, unfreeze="progressive")
    return cfg.model_dump(mode="json")


COSINE = {"schedule": {"kind": "cosine"}}


@pytest.mark.parametrize(
    ("old", "now", "told"),
    [
        (_run(), _run(optim={"lr": 1e-3}), ["optim.lr: 0.0001 -> 0.001"]),
        (_run(), _run(cache={"max_gb": 0}), ["cache.max_gb: 4.0 -> 0.0"]),
        (_run(), _run(run={"dir": "z"}, train={"log_every": 7, "epochs": 99}), []),
        # The length is part of a cosine, and of stages that share it out.
        (_run(optim=COSINE), _run(optim=COSINE, train={"epochs": 99}), ["train.epochs: 10 -> 99"]),
        (_common(30), _common(60), ["train.epochs: 30 -> 60"]),
        # What is computed together decides on last bits.
        (_run(), _run(train={"eval_batch": 64}), ["train.eval_batch: 256 -> 64"]),
        ({**_run(), "magic": 1}, _run(), ["magic: 1 -> None"]),
    ],
)
def test_what_changes_a_step_is_named(
    old: dict[str, Any], now: dict[str, Any], told: list[str]
) -> None:
    assert differences(old, now) == told


def test_a_setting_that_the_run_did_not_know_yet_has_its_default() -> None:
    old = _run()
    del old["cache"], old["model"]["block"]
    assert differences(old, _run()) == []
    postnorm = _run(model={"block": "postnorm"})
    assert differences(old, postnorm) == ["model.block: prenorm -> postnorm"]
