"""What a run of the common task starts from: ImageNet's weights, or members trained before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist.api import load
from lensdist.data.dataset import PackedSet
from lensdist.export.artifact import read_export
from lensdist.models.ensemble import Ensemble
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import task_class
from lensdist.tasks.types import Inputs
from lensdist.utils.errors import UserError
from lensdist.utils.torchvision_compat import import_torchvision
from tests.conftest import forked, settings
from tests.runs import CommonRun
from tests.unit.worlds import FakeWorld

pytestmark = pytest.mark.unit
LABELS = ("no", "sphere", "vort")


def _run(**more: Any) -> CommonRun:
    raw: dict[str, Any] = {
        "task": "common", "run": {"dir": "x"}, "data": {"path": "x"},
        "model": {"members": ["resnet18"], "head_dims": [8], "grey": "fold", "resize": 32},
    }  # fmt: skip
    return CommonRun(**{**raw, **more})


def _start(cfg: CommonRun, data: Path) -> Any:
    kind = task_class(cfg.task)
    start = kind.start(
        cfg, Inputs(cfg.preprocess, PackedSet(data), LABELS, FakeWorld(), read_export)
    )
    return start.preprocess, start.weights, start.digest


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as torchvision's are, 1,000 classes and all; but with random numbers."""
    torch.manual_seed(2)
    state = import_torchvision().models.get_model("resnet18", weights=None).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path, state


def test_imagenet_s_weights_from_a_file(
    weights: tuple[Path, dict[str, torch.Tensor]], common_set: Path
) -> None:
    path, state = weights
    cfg = _run(weights={"resnet18": path})
    preprocess, initial, _ = _start(cfg, common_set)
    model = build_task(cfg, LABELS, preprocess, initial).build()
    assert isinstance(model, Ensemble)
    ours = model.state_dict()
    folded = state["conv1.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(ours["members.0.sections.stem.0.weight"], folded)
    name = "members.0.sections.block4.0.1.bn2.weight"
    assert torch.equal(ours[name], state["layer4.1.bn2.weight"])
    assert build_task(cfg, LABELS, preprocess, initial).describe()["init"] == "imagenet"


def test_without_network_the_sentence_says_what_to_get_and_where_to_put_it(
    common_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as told:
        _start(_run(), common_set)
    for part in ("resnet18-f37072fd.pth", str(tmp_path), "weights.resnet18=PATH", "init=random"):
        assert part in str(told.value)


def test_weights_of_another_architecture(
    weights: tuple[Path, dict[str, torch.Tensor]], common_set: Path
) -> None:
    cfg = _run(model={"members": ["resnet50"], "resize": 32}, weights={"resnet50": weights[0]})
    with pytest.raises(UserError, match="the weights are not those of resnet50: missing"):
        _start(cfg, common_set)


@pytest.fixture(scope="module")
def members(common_set: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks, trained for two steps by themselves."""
    root = tmp_path_factory.mktemp("members")
    for name in ("lensnet", "shufflenet_v2_x0_5"):
        more = {
            "model.members": f"[{name}]", "model.image_size": 150, "model.resize": 32,
            "unfreeze": "all", "unfreeze_epochs": "null", "train.max_steps": 2,
        }  # fmt: skip
        words = settings("common", common_set, root / name, **more)
        done = forked("lensdist.train", *words)
        assert done.returncode == 0, done.stderr
    return [root / "lensnet", root / "shufflenet_v2_x0_5"]


def _joint(runs: list[Path], **model: Any) -> CommonRun:
    names = [path.name for path in runs]
    shape = {"members": names, "head_dims": [], "grey": "fold", "resize": 32}
    return _run(model={**shape, **model}, members_from=runs)


@torch.no_grad()
def test_members_that_were_trained_before_go_on_together(
    members: list[Path], common_set: Path
) -> None:
    cfg = _joint(members)
    preprocess, initial, digest = _start(cfg, common_set)
    task = build_task(cfg, LABELS, preprocess, initial)
    x = torch.rand(3, 1, 150, 150)
    joint = task.build().eval()(preprocess(x))
    apart = [torch.from_numpy(load(run).predict(x.numpy())["logits"]) for run in members]
    torch.testing.assert_close(joint, torch.stack(apart).mean(0), rtol=1e-5, atol=1e-5)
    assert task.describe()["init"] == "runs"
    assert digest != _start(_joint(members[::-1]), common_set)[2]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"members": ["lensnet", "resnet18"]}, "hold lensnet, shufflenet_v2_x0_5, not lensnet, re"),
        ({"head_dims": [8]}, "another shape"),
    ],
)
def test_members_of_another_shape(
    model: dict[str, Any], said: str, members: list[Path], common_set: Path
) -> None:
    with pytest.raises(UserError, match=said):
        _start(_joint(members, **model), common_set)


def test_members_that_are_not_finished(members: list[Path], common_set: Path) -> None:
    record = members[0] / "COMPLETE.json"
    kept = record.read_bytes()
    record.unlink()
    try:
        with pytest.raises(UserError, match=r"members_from: .*lensnet is not finished"):
            _start(_joint(members), common_set)
    finally:
        record.write_bytes(kept)


def test_what_a_lens_fit_is_for() -> None:
    with pytest.raises(ValueError, match="fits one band of 150x150 pixels"):
        _run(preprocess={"scale": "lens_fit"}, model={"image_size": 64})
