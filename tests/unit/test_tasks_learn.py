"""What tasks learn, against formulas written out here: losses, freezing, the weights exported."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lensdist.config.schema import FinetuneRun, MaeRun, SuperResolutionRun, schema_of
from lensdist.data.transforms import Preprocess
from lensdist.engine import checkpoint
from lensdist.engine.finish import best_model
from lensdist.engine.loop import Outcome
from lensdist.engine.stages import stages_in_steps
from lensdist.engine.state import TrainState
from lensdist.tasks.base import Batch, Stage
from lensdist.tasks.build import build_task

pytestmark = pytest.mark.unit

LABELS = ("no_sub", "cdm", "axion")


def run(task: str, **more: Any) -> Any:
    raw = {"task": task, "run": {"dir": "x"}, "data": {"path": "x"}, "augment": {"rot180": False}}
    return schema_of(raw).model_validate(raw | more)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


class Constant(nn.Module):
    """Draws the same whatever it sees, and keeps what it was given."""

    def __init__(self, drawn: Tensor) -> None:
        super().__init__()
        self.drawn = drawn
        self.given: tuple[Any, ...] = ()

    def forward(self, *given: Any) -> Tensor:
        self.given = given
        return self.drawn


@pytest.mark.parametrize("loss", ["image", "masked"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_mae_learns_the_pixels_that_its_loss_names(loss: str, damaged: bool) -> None:
    model = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    cfg: MaeRun = run(
        "mae", model=model, loss=loss, preprocess={"scale": "none"}, mask={"ratio": 0.5}
    )
    batch: Batch = {"image": images(3, 1, 16, 16), "sample": torch.arange(3)}
    if damaged:
        batch["badpix"] = images(3, 16, 16) < 0.2
        batch["weight"] = images(3, 16, 16)
    network = Constant(images(3, 1, 16, 16).flip(-1))
    found = float(
        build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0])).loss(network, batch, 7)
    )
    seen, mask, hidden = network.given
    assert mask.shape == (3, 16)
    assert (mask.sum(1) == hidden).all()
    assert hidden == 8
    count = np.ones((3, 1, 16, 16))
    if loss == "masked":  # patches row by row, each of 4 x 4 pixels; the mask is True where hidden
        count = mask.numpy().reshape(3, 1, 4, 4).repeat(4, 2).repeat(4, 3).astype(float)
    if damaged:
        count = count * (batch["weight"] * ~batch["badpix"]).numpy()[:, None]
    error = (network.drawn - seen).numpy().astype(float) ** 2
    assert found == pytest.approx((error * count).sum() / count.sum(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_labels_are_smoothed_as_much_as_asked(smoothing: float) -> None:
    cfg: FinetuneRun = run("finetune", label_smoothing=smoothing, preprocess={"scale": "none"})
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.3, 0.1]])
    batch = {
        "image": images(2, 1, 8, 8),
        "label": torch.tensor([0, 2]),
        "sample": torch.arange(2),
    }
    task = build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), None)
    wanted = 0.0
    for row, label in zip(logits.double(), batch["label"], strict=True):
        ln_p = row - torch.logsumexp(row, 0)
        wanted -= float((1 - smoothing) * ln_p[label] + smoothing * ln_p.mean()) / 2
    assert float(task.loss(Constant(logits), batch, 0)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("loss", "floor"), [("mse", 0.02), ("poisson", 0.02), ("poisson", 0.5)])
@pytest.mark.parametrize("sigma", [False, True])
def test_super_resolution_learns_the_error_that_its_loss_names(
    loss: str, floor: float, sigma: bool
) -> None:
    model = {"image_size": 12, "decoder": "residual", "sigma": sigma, "width": 4, "depth": 1}
    model["encoder"] = {"image_size": 12, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2}
    cfg: SuperResolutionRun = run(
        "sr", model=model, loss=loss, floor=floor, preprocess={"scale": "none"}
    )
    lr, hr = images(2, 1, 12, 12), images(2, 1, 24, 24).flip(0)
    drawn = images(2, 2 if sigma else 1, 24, 24).flip(-1)
    batch = {"image": lr, "target": hr, "sample": torch.arange(2)}
    task = build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), None)
    error = (drawn[:, :1] - hr).double().numpy() ** 2
    wanted = error
    if loss == "poisson":
        padded = np.pad(
            lr.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan
        )
        around = np.stack(
            [padded[:, :, i : i + 12, j : j + 12] for i in range(3) for j in range(3)]
        )
        bright = np.nanmean(around, 0).repeat(2, 2).repeat(2, 3)
        wanted = 1e3 * error / (bright + floor)
    total = wanted.mean()
    if sigma:
        ln_sigma = drawn[:, 1:].double().numpy()
        total += (0.5 * (error * np.exp(-2 * ln_sigma) + math.log(2 * math.pi)) + ln_sigma).mean()
    assert float(task.loss(Constant(drawn), batch, 0)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("more", "pretrained", "wanted"),
    [
        ({"frozen_epochs": 10}, True, [Stage(10, ("head.",)), Stage(20, ("",))]),
        ({"frozen_epochs": 0}, True, [Stage(30, ("",))]),
        ({"frozen_epochs": 40}, True, [Stage(30, ("head.",))]),
        ({"frozen_epochs": 10}, False, [Stage(30, ("",))]),
        ({"linear_probe": True}, True, [Stage(30, ("head.",))]),
    ],
)
def test_an_encoder_is_frozen_as_long_as_asked(
    more: dict[str, Any], pretrained: bool, wanted: list[Stage]
) -> None:
    cfg: FinetuneRun = run("finetune", preprocess={"scale": "none"}, **more)
    task = build_task(
        cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), {} if pretrained else None
    )
    assert task.stages(30) == wanted


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        (None, [(0, 8), (8, 20)]),
        (6, [(0, 6)]),
        (8, [(0, 8)]),
        (15, [(0, 8), (8, 15)]),
        (50, [(0, 8), (8, 50)]),  # more than the epochs hold: the last stage goes on
    ],
)
def test_stages_last_their_epochs_in_steps(
    limit: int | None, wanted: list[tuple[int, int]]
) -> None:
    stages = [Stage(2, ("head.",)), Stage(3, ("",))]
    task: Any = SimpleNamespace(stages=lambda epochs: stages)
    found = stages_in_steps(task, run("mae", train={"max_steps": limit, "epochs": 5}).train, 4)
    assert [(one.start, one.end) for one in found] == wanted
    assert [one.stage for one in found] == stages[: len(wanted)]


@pytest.mark.parametrize("averaged", [False, True])
def test_the_weights_that_validation_chose_are_exported(tmp_path: Path, averaged: bool) -> None:
    network = nn.Linear(2, 1, bias=False)
    raw, mean = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    saved = {"model/weight": raw, "average/weight": mean}
    checkpoint.write(tmp_path, 4, saved, {})
    model, step = best_model(
        tmp_path, Outcome("finished", TrainState(step=9, best=0.1, best_step=4), network), averaged
    )
    assert step == 4
    assert torch.equal(model.state_dict()["weight"], mean if averaged else raw)
