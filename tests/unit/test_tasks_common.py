"""The common task: what trains when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.tasks.build import build_task
from lensdist.tasks.ensemble import share_out
from lensdist.tasks.registry import AnyTask
from lensdist.utils.errors import UserError
from tests.runs import CommonRun

pytestmark = pytest.mark.unit
LABELS = ("no", "sphere", "vort")


def _task(**settings: Any) -> AnyTask:
    raw = {"task": "common", "run": {"dir": "x"}, "data": {"path": "x"}, "init": "random"}
    cfg = CommonRun(**{**raw, "unfreeze": "progressive", **settings})
    return build_task(cfg, LABELS, Preprocess(PreprocessConfig(), [0.0], [1.0]), None)


def test_the_recipe_s_ensemble_shares_30_epochs_by_parameters() -> None:
    stages = _task(train={"epochs": 30}).stages(30)
    assert [s.epochs for s in stages] == [2, 13, 11, 2, 1, 1]
    # DenseNet-161's and ResNet-18's heads, as published: 2208 and 512 to 1024, 64 and 3.
    assert [s.trains("members.0.sections.head.0.weight") for s in stages] == [True] * 6
    deep = "members.1.sections.stem.0.weight"
    assert [s.trains(deep) for s in stages] == [False] * 5 + [True]
    late = "members.0.sections.block4.0.denselayer1.norm1.weight"
    assert [s.trains(late) for s in stages] == [False] + [True] * 5


def test_listed_epochs_are_taken_as_they_are() -> None:
    epochs = (5, 3, 7, 15, 2, 1)
    stages = _task(unfreeze_epochs=epochs, train={"epochs": 33}).stages(33)
    assert tuple(s.epochs for s in stages) == epochs


def test_all_at_once_is_one_stage() -> None:
    (stage,) = _task(unfreeze="all").stages(15)
    assert stage.epochs == 15
    assert stage.trains("anything")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"unfreeze_epochs has 2 stages .* 6 sections"):
        _task(unfreeze_epochs=(1, 2), train={"epochs": 3}).stages(3)
    with pytest.raises(UserError, match=r"train\.epochs 5 .* each of the 6"):
        _task(train={"epochs": 5}).stages(5)
    with pytest.raises(ValueError, match=r"adds up to 3, not to train\.epochs 10"):
        _task(unfreeze_epochs=(1, 2))
    with pytest.raises(ValueError, match="unfreeze: progressive"):
        _task(unfreeze="all", unfreeze_epochs=(10,))
    with pytest.raises(ValueError, match=r"weights: resnet50 is not one of model\.members"):
        _task(weights={"resnet50": "x.pth"})
    with pytest.raises(ValueError, match="init: imagenet"):
        _task(weights={"resnet18": "x.pth"})
    with pytest.raises(ValueError, match="micro-batches of 2 images or more"):
        _task(train={"micro_batch": 1, "epochs": 30})
    with pytest.raises(ValueError, match="members_from names 1 runs for 2 members"):
        _task(members_from=("a",))


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=12), st.integers(0, 60))
def test_shares_add_up_and_follow_the_weights(weights: list[int], spare: int) -> None:
    total = len(weights) + spare
    shares = share_out(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 1
    quotas = [total * w / sum(weights) for w in weights]
    if min(quotas) >= 1:  # nobody had to be raised: the largest-remainder rule, off by less than 1
        assert all(abs(s - q) < 1 for s, q in zip(shares, quotas, strict=True))
    order = sorted(range(len(weights)), key=lambda i: (weights[i], shares[i]))
    assert [shares[i] for i in order] == sorted(shares)
