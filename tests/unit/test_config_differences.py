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


def test_what_changes_a_step_is_named() -> None:
    now = _run(optim={"lr": 1e-3}, cache={"max_gb": 0})
    assert differences(_run(), now) == ["cache.max_gb: 4.0 -> 0.0", "optim.lr: 0.0001 -> 0.001"]


def test_what_is_free_is_not() -> None:
    assert differences(_run(), _run(run={"dir": "z"}, train={"log_every": 7, "epochs": 99})) == []


def test_the_length_is_part_of_a_cosine() -> None:
    cosine = {"schedule": {"kind": "cosine"}}
    found = differences(_run(optim=cosine), _run(optim=cosine, train={"epochs": 99}))
    assert found == ["train.epochs: 10 -> 99"]


def test_the_length_is_part_of_stages_that_share_it_out() -> None:
    raw = {"task": "common", "run": {"dir": "x"}, "data": {"path": "y"}, "train": {"epochs": 30}}
    old = CommonRun(**raw, unfreeze="progressive").model_dump(mode="json")
    raw["train"] = {"epochs": 60}
    now = CommonRun(**raw, unfreeze="progressive").model_dump(mode="json")
    assert differences(old, now) == ["train.epochs: 30 -> 60"]


def test_what_is_computed_together_decides_on_last_bits() -> None:
    found = differences(_run(), _run(train={"eval_batch": 64}))
    assert found == ["train.eval_batch: 256 -> 64"]


def test_a_setting_that_the_run_did_not_know_yet_has_its_default() -> None:
    old = _run()
    del old["cache"], old["model"]["block"]
    assert differences(old, _run()) == []
    assert differences(old, _run(model={"block": "postnorm"})) == [
        "model.block: prenorm -> postnorm"
    ]


def test_a_setting_that_is_gone_is_named() -> None:
    assert differences({**_run(), "magic": 1}, _run()) == ["magic: 1 -> None"]
