"""Every number of every setting: what is odd is refused with a sentence, or a run takes it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from lensdist import train
from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.utils.errors import UserError
from tests.runs import TASKS

pytestmark = pytest.mark.unit

HUGE = "9" * 31
# What no number may be: it overflows, is none, or is something else.
ODD = ("-1", HUGE, "1e308", ".nan", ".inf", "-.inf", "true", "'3'", "[1]")
ODD_LISTS = ("[-1, -1]", f"[{HUGE}, {HUGE}]", "[.nan, 0]", "[.inf, 0]", "[true, 0]", "['3', 0]")


def numbers(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted names of all settings that hold numbers, and whether they hold a list of them."""
    for name, field in model.model_fields.items():
        for kind in _kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, f"{prefix}{name}.")
            elif kind in (int, float):
                yield prefix + name, False
            elif get_origin(kind) is tuple and set(_kinds(get_args(kind)[0])) & {int, float}:
                yield prefix + name, True


def _kinds(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _kinds(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [inner for one in get_args(kind) for inner in _kinds(one)]
    return [kind]


@pytest.mark.parametrize("task", TASKS)
def test_odd_numbers_are_refused(task: str) -> None:
    found, taken = dict(numbers(TASKS[task])), []
    assert {"optim.lr", "optim.betas", "data.sim.psf_scale"} <= found.keys()
    known = set[str]() if task == "mae" else dict(numbers(TASKS["mae"])).keys()
    for name in sorted(found.keys() - known):  # each once, for there are many
        is_list = found[name]
        for value in ODD_LISTS if is_list else ODD:
            words = ["run.dir=x", f"{name}={value}"]
            if name.startswith("data.sim.lens_light.") and not name.endswith(".magnitude"):
                words.append("data.sim.lens_light.magnitude=18")  # which it cannot do without
            told = ""
            try:
                load(Path(f"configs/{task}/debug.yaml"), words, schema=schema_of)
            except UserError as e:
                told = str(e)
            if name.rpartition(".")[2] not in told:
                taken.append(f"{name}={value}: {told}")
    assert not taken


@pytest.mark.parametrize("value", ["[]", "[0.9]", "[0.9, 0.9, 0.9]", "[0.9, 1]", "[1.5, 0.9]"])
def test_betas_are_two_below_one(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "configs/mae/debug.yaml", f"optim.betas={value}"]) == 2
    assert "optim.betas" in capsys.readouterr().err


def test_the_largest_numbers_that_are_taken(tmp_path: Path, tiny_set: Path) -> None:
    counts = ("epochs", "early_stop", "eval_batch", "log_every")
    words = [f"train.{name}={10**12}" for name in counts]
    words += [f"checkpoint.keep={10**12}", f"speed.bucket_mb={10**12}"]
    words += ["train.eval_every_epochs=1e9", "checkpoint.every_epochs=1e9", "cache.max_gb=1e9"]
    words += ["optim.schedule.kind=step", "optim.schedule.step_epochs=1e9", "optim.clip_norm=1e30"]
    words += ["train.max_steps=1", "train.global_batch=8", "model.depth=1", "optim.betas=[0, 0]"]
    words += [f"data.path={tiny_set}", f"run.dir={tmp_path}"]
    assert train.main(["--config", "configs/mae/debug.yaml", *words]) == 0
