"""Evaluation, stopping, state and the comparison of settings."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lensdist.config import load
from lensdist.config.differences import differences
from lensdist.config.schema import schema_of
from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.distributed.micro_batches import plan_steps
from lensdist.distributed.strategies import ParallelStrategy, StrategySettings, build_strategy
from lensdist.runs.finish import best_model
from lensdist.runs.lock import held
from lensdist.training.checkpoint import Checkpoint
from lensdist.training.loop import Outcome
from lensdist.training.state import TrainState, describe, machine_changes, restore
from lensdist.training.stopping import Stopper
from lensdist.training.validation import evaluate, outputs_of
from lensdist.utils.errors import RunError, UserError
from tests.unit.worlds import FakeWorld, on_all

pytestmark = pytest.mark.unit


# ---- evaluation


class Numbers:
    """A split whose sample i is the number i."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def gather(self, rows: Any) -> dict[str, Tensor]:
        return {"image": torch.from_numpy(rows).float()[:, None]}


class Doubling:
    """A task whose outputs are of several types; its score counts every sample once."""

    incomplete = ()

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert not model.training
        x = model(batch["image"])[:, 0]
        return {"twice": 2 * x, "pair": torch.stack([x, x], 1).double(), "odd": x.long() % 2 == 1}

    def score(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        return {"sum": float(outputs["twice"].sum()), "n": float(len(outputs["twice"]))}


@pytest.mark.parametrize("n", [1, 4, 5, 17])
@pytest.mark.parametrize("size", [1, 2, 3, 5])  # 5 processes: more than there are batches
def test_every_sample_counts_once_and_keeps_its_place(n: int, size: int) -> None:
    task, view = Doubling(), Numbers(n)

    def work(world: Any) -> Any:
        return outputs_of(task, nn.Identity(), view, 4, world)  # type: ignore[arg-type]

    for outputs in on_all(size, work):
        assert outputs["twice"].tolist() == [2.0 * i for i in range(n)]
        assert outputs["pair"][:, 1].tolist() == list(map(float, range(n)))
        assert outputs["odd"].tolist() == [i % 2 == 1 for i in range(n)]
    scores = evaluate(task, nn.Identity(), view, 4, FakeWorld())  # type: ignore[arg-type]
    assert scores == {"sum": float(n * (n - 1)), "n": float(n)}


def test_all_processes_take_the_scores_of_the_main_one() -> None:
    world: Any = FakeWorld()
    world.from_main = lambda value: {name: value[name] + 1 for name in value}
    scores = evaluate(Doubling(), nn.Identity(), Numbers(3), 2, world)  # type: ignore[arg-type]
    assert scores == {"sum": 7.0, "n": 4.0}


def test_evaluation_leaves_frozen_parts_as_they_were() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Dropout(), nn.Identity()))
    model.train()
    model[1].eval()
    before = [m.training for m in model.modules()]
    evaluate(Doubling(), model, Numbers(3), 2, FakeWorld())  # type: ignore[arg-type]
    assert [m.training for m in model.modules()] == before


def test_validation_computes_in_the_precision_of_training() -> None:
    class Raw(Doubling):
        def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"x": model(batch["image"])}

    world: Any = FakeWorld()
    world.accelerator.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    found = outputs_of(Raw(), nn.Linear(1, 1), Numbers(3), 2, world)  # type: ignore[arg-type]
    assert found["x"].dtype == torch.bfloat16


def test_an_image_that_is_no_number_is_named() -> None:
    class Pictures(Numbers):
        def gather(self, rows: Any) -> dict[str, Tensor]:
            number = torch.from_numpy(rows)
            image = torch.where(number == 1, math.nan, 0.0)[:, None, None, None]
            return {"image": image.expand(-1, 1, 2, 2), "sample": number}

        def name_of(self, sample: int) -> str:
            return f"sample {sample}"

    task: Any = SimpleNamespace(
        outputs=lambda model, batch: {"mean": batch["image"].mean((1, 2, 3))}, incomplete=(),
        preprocess=Preprocess(PreprocessConfig(scale="none"), [0.0], [1.0]),
    )  # fmt: skip
    view: Any = Pictures(3)
    with pytest.raises(RunError, match="sample 1"):
        outputs_of(task, nn.Identity(), view, 2, FakeWorld())  # type: ignore[arg-type]


# ---- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
@pytest.mark.usefixtures("handlers")
def test_a_signal_is_a_wish_not_an_end(number: signal.Signals, tmp_path: Path) -> None:
    stopper = Stopper(tmp_path, FakeWorld())  # type: ignore[arg-type]
    assert not stopper.agreed()
    os.kill(os.getpid(), number)
    if number != signal.SIGINT:  # launchers deliver some twice
        os.kill(os.getpid(), number)
    assert stopper.agreed()
    assert stopper.asked() == number.name


@pytest.mark.usefixtures("handlers")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    Stopper(tmp_path, FakeWorld())  # type: ignore[arg-type]
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
def test_one_process_speaks_for_all(tmp_path: Path) -> None:
    stoppers = [Stopper(tmp_path, FakeWorld(rank, 3), 0) for rank in range(3)]  # type: ignore[arg-type]
    stoppers[2]._hear(signal.SIGUSR2, "SIGUSR2")

    def work(world: Any) -> tuple[bool, str | None]:
        stopper = stoppers[world.rank]
        stopper._world = world
        return stopper.agreed(), stopper.asked()

    assert on_all(3, work) == [(True, None), (True, None), (True, "SIGUSR2")]
    (tmp_path / "STOP").touch()
    stoppers[2]._reason = None
    assert on_all(3, work) == [(True, "STOP file"), (True, None), (True, None)]


# ---- one writer a folder


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        held(tmp_path),
        pytest.raises(UserError, match="another run is writing"),
        held(tmp_path),
    ):
        pass
    with held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


# ---- state


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def strategy(build: Any = net) -> ParallelStrategy:
    words = ["run.dir=unused", "train.ema=0.5", "train.global_batch=8", "optim.clip_norm=1"]
    cfg = load(Path("configs/mae/debug.yaml"), words, schema=schema_of)
    settings = StrategySettings(cfg.optim, cfg.shard, cfg.speed, "no", 0.5, reproducible=False)
    return build_strategy("ddp", settings, FakeWorld(), plan_steps(8, 8, 8, 0, 1), build)  # type: ignore[arg-type]


def begin(strategy: ParallelStrategy, tensors: dict[str, Tensor]) -> None:
    strategy.freeze(lambda name: True, tensors)
    strategy.wrap(strategy.unwrapped, tensors)


def step(strategy: ParallelStrategy, updates: int) -> None:
    torch.manual_seed(updates)
    with strategy.micro_batch(0):
        strategy.backward(strategy.wrapped(torch.randn(8, 3)).square().sum())
    strategy.step(1e-2, updates)


def trained() -> ParallelStrategy:
    found = strategy()
    begin(found, {})
    step(found, 1)
    return found


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    one, world = trained(), FakeWorld()
    state = TrainState(step=7, best=0.25, best_step=5, bad_evals=2, window=[1.5, 2.5])
    tensors, meta = one.state_dict(), describe(state, world, {})  # type: ignore[arg-type]
    saved = Checkpoint(7, {k: v.clone() for k, v in tensors.items()}, meta, tmp_path)
    again = strategy()
    assert restore(saved, again, world) == state  # type: ignore[arg-type]
    begin(again, saved.tensors)
    for _ in range(2):
        back = again.state_dict()
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[k], v) for k, v in tensors.items())
        step(one, 2), step(again, 2)  # and both go on alike
        tensors = one.state_dict()
    state.window.append(9.0)  # what was captured is a copy
    assert meta["state"]["window"] == [1.5, 2.5]


def test_the_average_stands_in_for_the_weights_and_gives_them_back() -> None:
    one = trained()
    before = {k: v.clone() for k, v in one.state_dict().items()}
    with one.ema_weights() as model:
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[f"average/{name}"]), name
    after = one.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not torch.equal(before["model/0.weight"], before["average/0.weight"])
    exported = one.export_model({}).state_dict()
    assert all(torch.equal(v, before[f"average/{k}"]) for k, v in exported.items())


def test_a_run_with_nothing_left_to_do_exports_what_was_saved() -> None:
    saved = {k: v.clone() for k, v in trained().state_dict().items()}
    found = strategy().export_model(saved).state_dict()
    assert all(torch.equal(v, saved[f"average/{k}"]) for k, v in found.items())


def test_another_network_is_refused(tmp_path: Path) -> None:
    meta = describe(TrainState(), FakeWorld(), {})  # type: ignore[arg-type]
    saved = Checkpoint(1, trained().state_dict(), meta, tmp_path)
    with pytest.raises(RunError, match="another network"):
        restore(saved, strategy(lambda: nn.Linear(3, 3)), FakeWorld())  # type: ignore[arg-type]


def test_changes_of_the_machine_are_told() -> None:
    assert machine_changes({"threads": 1, "cpu": "a"}, {"threads": 1, "cpu": "a"}) is None
    assert machine_changes({"threads": 1}, {"threads": 2}) == "threads 1 -> 2"


def test_a_lost_best_checkpoint_is_not_passed_off_as_the_best(tmp_path: Path) -> None:
    state = TrainState(step=9, best=0.1, best_step=4)
    _, step = best_model(tmp_path, Outcome("finished", state, net()), averaged=False)
    assert step == 9


# ---- settings


SETTINGS: dict[str, Any] = {
    "run": {"dir": "a"}, "seed": 0, "preset": "p", "preprocess": {"scale": "minmax"},
    "optim": {"lr": 0.1, "schedule": {"kind": "constant"}},
    "train": {"epochs": 3, "max_steps": None, "log_every": 5, "ema": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change", "cosine", "expected"),
    [
        ("run", {"dir": "b"}, False, []),
        ("train", {"log_every": 9}, False, []),
        ("train", {"epochs": 30}, False, []),
        ("train", {"epochs": 30}, True, ["train.epochs: 3 -> 30"]),
        ("train", {"max_steps": 30}, True, ["train.max_steps: None -> 30"]),
        ("train", {"ema": 0.9}, False, ["train.ema: None -> 0.9"]),
        ("preprocess", {"scale": "none"}, False, ["preprocess.scale: minmax -> none"]),
        ("optim", {"lr": 0.2}, False, ["optim.lr: 0.1 -> 0.2"]),
    ],
)
def test_what_changes_a_step_may_not_change_on_resume(
    part: str, change: dict[str, Any], cosine: bool, expected: list[str]
) -> None:
    schedule = {"kind": "cosine" if cosine else "constant"}
    saved = {**SETTINGS, "optim": {**SETTINGS["optim"], "schedule": schedule}}
    assert differences(saved, {**saved, part: {**saved[part], **change}}) == expected


def test_a_setting_that_is_new_or_gone_is_a_difference() -> None:
    assert differences(SETTINGS, {**SETTINGS, "loss": "image"}) == ["loss: None -> image"]
    assert differences({**SETTINGS, "loss": "image"}, SETTINGS) == ["loss: image -> None"]
