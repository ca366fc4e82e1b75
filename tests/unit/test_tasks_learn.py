"""What tasks learn, against formulas written out here: losses, freezing, the weights exported."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lensdist.config.schema import schema_of
from lensdist.data.config import PreprocessConfig
from lensdist.data.smooth import principal
from lensdist.data.transforms import Preprocess
from lensdist.distributed.config import ScheduleConfig
from lensdist.models.config import MaskConfig
from lensdist.models.masking import make_mask
from lensdist.runs.finish import best_model
from lensdist.tasks.build import build_task
from lensdist.tasks.types import Batch, Stage
from lensdist.training import checkpoint
from lensdist.training.loop import Outcome
from lensdist.training.stages import StageSteps, check_warmup, stages_in_steps
from lensdist.training.state import TrainState
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit

LABELS = ("no_sub", "cdm", "axion")


def run(task: str, **more: Any) -> Any:
    raw = {"task": task, "run": {"dir": "x"}, "data": {"path": "x"}, "augment": {"rot180": False}}
    return schema_of(raw).model_validate(raw | more)


def task_of(cfg: Any, weights: dict[str, Tensor] | None = None) -> Any:
    return build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0]), weights)


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
    cfg = run("mae", model=model, loss=loss, preprocess={"scale": "none"}, mask={"ratio": 0.5})
    batch: Batch = {"image": images(3, 1, 16, 16), "sample": torch.arange(3)}
    if damaged:
        batch["badpix"] = images(3, 16, 16) < 0.2
        batch["weight"] = images(3, 16, 16)
    network = Constant(images(3, 1, 16, 16).flip(-1))
    found = float(task_of(cfg).loss(network, batch, 7))
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


@pytest.mark.parametrize("scale", ["none", "residual"])
@pytest.mark.parametrize("sky", [0.0, 3000.0])
def test_a_mae_reports_what_it_explains_of_hidden_pixels(scale: str, sky: float) -> None:
    """Beside it, what the basis alone explains, which draws those pixels from themselves."""
    model = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    how = {"scale": scale, "components": 3}
    cfg = run("mae", model=model, loss="masked", preprocess=how, mask={"ratio": 0.5})
    raw = images(6, 1, 16, 16) + sky
    smooth = principal(raw, 3) if scale == "residual" else None
    task = build_task(cfg, LABELS, Preprocess(cfg.preprocess, [0.0], [1.0], smooth))
    network = Constant(images(6, 1, 16, 16).flip(-1))
    scores = task.score(task.outputs(network, {"image": raw, "sample": torch.arange(6)}))
    seen, mask, _ = network.given
    hidden = mask.numpy().reshape(6, 1, 4, 4).repeat(4, 2).repeat(4, 3)

    def explained(drawn: Tensor, truth: Tensor) -> float:
        off, true = (t.double().numpy()[hidden] for t in (drawn - truth, truth))
        return float(1 - (off**2).mean() / true.var())

    assert scores["explained_masked"] == pytest.approx(explained(network.drawn, seen), rel=1e-4)
    assert ("explained_by_basis" in scores) == (scale == "residual")
    if smooth is not None:
        wanted = explained(smooth.of(raw), raw)
        assert 0 < wanted < 1
        assert scores["explained_by_basis"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_labels_are_smoothed_as_much_as_asked(smoothing: float) -> None:
    cfg = run("finetune", label_smoothing=smoothing, preprocess={"scale": "none"})
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.3, 0.1]])
    batch = {
        "image": images(2, 1, 8, 8),
        "label": torch.tensor([0, 2]),
        "sample": torch.arange(2),
    }
    task = task_of(cfg)
    wanted = 0.0
    for row, label in zip(logits.double(), batch["label"], strict=True):
        ln_p = row - torch.logsumexp(row, 0)
        wanted -= float((1 - smoothing) * ln_p[label] + smoothing * ln_p.mean()) / 2
    assert float(task.loss(Constant(logits), batch, 0)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("loss", "floor"), [("mse", 0.02), ("poisson", 0.02), ("poisson", 0.5)])
@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_super_resolution_learns_the_error_that_its_loss_names(
    loss: str, floor: float, sigma: bool, weighted: bool
) -> None:
    model = {"image_size": 12, "decoder": "residual", "sigma": sigma, "width": 4, "depth": 1}
    model["encoder"] = {"image_size": 12, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2}
    cfg = run("sr", model=model, loss=loss, floor=floor, preprocess={"scale": "none"})
    lr, hr = images(2, 1, 12, 12), images(2, 1, 24, 24).flip(0)
    drawn = images(2, 2 if sigma else 1, 24, 24).flip(-1)
    batch = {"image": lr, "target": hr, "sample": torch.arange(2)}
    task = task_of(cfg)
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
    if sigma:
        ln_sigma = drawn[:, 1:].double().numpy()
        wanted = wanted + 0.5 * (error * np.exp(-2 * ln_sigma) + math.log(2 * math.pi)) + ln_sigma
    count = np.ones_like(wanted)
    if weighted:
        batch["weight"] = images(2, 1, 12, 12).flip(2)
        count = batch["weight"].double().numpy().repeat(2, 2).repeat(2, 3)
    total = ((wanted * count).sum((1, 2, 3)) / count.sum((1, 2, 3))).mean()
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
    cfg = run("finetune", preprocess={"scale": "none"}, **more)
    assert task_of(cfg, {} if pretrained else None).stages(30) == wanted


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


@pytest.mark.parametrize(
    ("per_stage", "steps", "refused"),
    [
        (False, 20, None),
        (False, 21, "20 steps of the run"),
        (True, 8, None),
        (True, 9, "8 steps of stage 1 of 2"),
        (True, 13, "8 steps of stage 1 of 2"),
    ],
)
def test_a_warm_up_ends_within_its_run_or_stage(
    per_stage: bool, steps: int, refused: str | None
) -> None:
    schedule = ScheduleConfig(warmup_steps=steps, per_stage=per_stage)
    stages = [StageSteps(Stage(2, ("head.",)), 0, 8), StageSteps(Stage(3, ("",)), 8, 20)]
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        check_warmup(schedule, stages)


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


TINY = {"image_size": 16, "patch_size": 4, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
PAIRS = {"image_size": 16, "encoder": TINY, "width": 4, "depth": 1, "exact_means": False}
ALL_TURNS = {"rot180": True, "rot90": True, "flip": True}


def bright_and_bad(n: int) -> Batch:
    """Pixels whose weight, badness and target follow from their brightness."""
    image = images(n, 1, 16, 16)
    large = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return {
        "image": image, "weight": image[:, 0] ** 2, "badpix": image[:, 0] > 0.9,
        "target": large**3, "truth": large**4, "label": torch.arange(n) % 3,
        "sample": torch.arange(n),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("mae", {"model": TINY}),
        ("finetune", {"model": TINY}),
        ("sr", {"model": PAIRS, "loss": "poisson"}),
        ("sr", {"model": PAIRS, "learn": "truth"}),
    ],
)
def test_all_that_belongs_to_an_image_turns_with_it_in_training_alone(
    task: str, more: dict[str, Any]
) -> None:
    batch = bright_and_bad(40)
    drawn = torch.full((40, 3), 0.5) if task == "finetune" else images(40, 1, 1, 1)
    side = 32 if task == "sr" else 16
    network = Constant(drawn if task == "finetune" else drawn.expand(-1, 1, side, side))
    of = task_of(run(task, preprocess={"scale": "none"}, augment=ALL_TURNS, **more))
    loss = of.loss(network, batch, 5)
    turned = network.given[0]
    still = run(task, preprocess={"scale": "none"}, **more)
    assert float(loss) == pytest.approx(float(task_of(still).loss(network, batch, 5)), rel=1e-5)
    of.outputs(network, batch)
    image = network.given[0]
    assert torch.equal(image[:, 0], torch.where(batch["badpix"], 0.0, batch["image"][:, 0]))
    assert torch.equal(turned.flatten(1).sort().values, image.flatten(1).sort().values)
    assert 0 < sum(map(torch.equal, turned, image)) < 20  # an eighth keeps its place


@pytest.mark.parametrize(("task", "model"), [("mae", TINY), ("finetune", TINY), ("sr", PAIRS)])
def test_images_are_turned_anew_in_each_epoch(task: str, model: dict[str, Any]) -> None:
    of = task_of(run(task, model=model, preprocess={"scale": "none"}, augment=ALL_TURNS))
    drawn = torch.zeros(40, 3) if task == "finetune" else torch.zeros(40, 1, 1, 1)
    network, seen = Constant(drawn), []
    for key in (5, 6, 5):
        of.loss(network, bright_and_bad(40), key)
        seen.append(network.given[0])
    assert torch.equal(seen[0], seen[2])
    assert sum(map(torch.equal, seen[0], seen[1])) < 20


def test_masks_are_drawn_anew_for_training_and_kept_for_validation() -> None:
    def masks(seed: int, key: int | None) -> Tensor:
        cfg = run("mae", seed=seed, model=TINY, mask={"ratio": 0.5, "informative": 0.0})
        task, network = task_of(cfg), Constant(torch.zeros(20, 1, 16, 16))
        batch = {"image": images(20, 1, 16, 16), "sample": torch.arange(20)}
        _ = task.outputs(network, batch) if key is None else task.loss(network, batch, key)
        return network.given[1]  # type: ignore[no-any-return]

    assert torch.equal(masks(0, 1), masks(0, 1))
    assert not torch.equal(masks(0, 1), masks(0, 2))
    assert torch.equal(masks(0, None), masks(0, None))
    assert not torch.equal(masks(0, None), masks(1, None))
    assert len(set(map(str, masks(0, None).int().tolist()))) == 20  # each image has its own


@pytest.mark.parametrize(("ratio", "hidden"), [(0.05, 1), (0.19, 3), (0.75, 12), (0.8, 12)])
@pytest.mark.parametrize("informative", [0.0, 0.4, 1.0])
def test_as_many_patches_are_hidden_as_asked(ratio: float, hidden: int, informative: float) -> None:
    """Rounded down; of them, the share of the brightest patches is rounded to the nearest."""
    mask = MaskConfig(ratio=ratio, informative=informative)
    flat = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    rows = make_mask(flat.expand(200, 1, 16, 16), 4, mask, 3, torch.arange(200))
    assert (rows.sum(1) == hidden).all()
    always = round(informative * hidden)  # patches of one grey level rank by their brightness
    assert rows[:, 16 - always :].all()
    assert not rows.all(0)[: 16 - always].any()


@pytest.mark.parametrize(
    ("task", "more", "wanted"),
    [
        ("mae", {}, ("mse", "min")),
        ("mae", {"loss": "masked"}, ("mse_masked", "min")),
        ("finetune", {"select": "accuracy"}, ("accuracy", "max")),
        ("finetune", {"select": "nll"}, ("nll", "min")),
        ("finetune", {"select": "auc"}, ("auc_macro", "max")),
        ("sr", {}, ("error", "min")),
    ],
)
def test_the_score_that_selects(task: str, more: dict[str, Any], wanted: tuple[str, str]) -> None:
    assert task_of(run(task, preprocess={"scale": "none"}, **more)).select == wanted


@pytest.mark.parametrize(
    ("task", "model"), [("finetune", {**TINY, "head_dims": [6]}), ("sr", PAIRS)]
)
def test_training_starts_from_the_encoder_that_is_given(task: str, model: dict[str, Any]) -> None:
    cfg = run(task, model=model, preprocess={"scale": "none"})
    names = task_of(cfg).build().encoder.state_dict()
    given = {name: torch.full_like(value, 0.25) for name, value in names.items()}
    found = task_of(cfg, given).build().encoder.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in found.items())


def test_each_linear_layer_of_the_head_is_behind_dropout() -> None:
    model = {**TINY, "head_dims": [6, 7], "head_dropout": 0.6}
    head = list(task_of(run("finetune", model=model)).build().head)
    before = [head[place - 1] for place, one in enumerate(head) if isinstance(one, nn.Linear)]
    assert [getattr(one, "p", None) for one in before] == [0.6, 0.6, 0.6]


COMMON: dict[str, Any] = {
    "init": "random", "train": {"epochs": 30},
    "model": {"members": ["lensnet", "lensnet"], "image_size": 32, "combine": "learned"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("mae", {"model": TINY}),
        ("finetune", {"model": TINY}),
        ("sr", {"model": PAIRS}),
        ("common", COMMON),
        ("common", COMMON | {"unfreeze": "progressive"}),
    ],
)
def test_the_last_stage_trains_every_parameter(task: str, more: dict[str, Any]) -> None:
    of = task_of(run(task, **more), {})
    stages = of.stages(30)
    assert sum(stage.epochs for stage in stages) == 30
    if task != "mae":
        of = task_of(run(task, **more))
    names = [name for name, _ in of.build().named_parameters()]
    trained = [{name for name in names if stage.trains(name)} for stage in stages]
    assert trained[-1] == set(names)
    assert all(before < after for before, after in pairwise(trained))


def test_unfreezing_goes_from_the_heads_to_the_stems() -> None:
    stages = task_of(run("common", **COMMON, unfreeze="progressive")).stages(30)
    sections = ["head", "block2", "block1", "stem"]
    for count, stage in enumerate(stages, start=1):
        assert stage.trains("mix")  # the weights of the members learn from the start
        for place, section in enumerate(sections):
            found = {stage.trains(f"members.{k}.sections.{section}.0.weight") for k in (0, 1)}
            assert found == {place < count}


@pytest.mark.parametrize("decoder", ["residual", "upconv"])
def test_sigma_reads_what_is_drawn_and_changes_nothing_of_it(decoder: str) -> None:
    network = task_of(run("sr", model={**PAIRS, "decoder": decoder, "sigma": True})).build()
    network(images(2, 1, 16, 16))[:, 1:].square().sum().backward()
    learns = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns
    assert all(name.startswith("decoder.spread.") for name in learns), learns


def test_softening_is_the_share_of_the_standard_deviation_below_which_asinh_is_linear() -> None:
    cfg = PreprocessConfig(scale="asinh", softening=0.5)
    x = images(2, 1, 8, 8)
    found = Preprocess(cfg, [0.3], [2.0])(x)
    torch.testing.assert_close(found, torch.asinh(x / (2.0 * 0.5)))
