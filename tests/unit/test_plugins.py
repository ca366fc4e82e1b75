"""Networks of the user's own and of timm as members, and which programs are never run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lensdist
from lensdist.config.schema import recorded_schema, schema_of
from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.export.artifact import write_export
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import task_class
from lensdist.utils import plugins
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit
NETS = """
from pathlib import Path
from torch import nn

Path("ran").touch()

class Small(nn.Module):
    def __init__(self, bands, classes):
        super().__init__()
        pool = nn.AdaptiveAvgPool2d(1)
        self.layers = nn.Sequential(nn.Conv2d(bands, 4, 3, 2), pool, nn.Flatten())
        self.last = nn.Linear(4, classes)

    def forward(self, x):
        return self.last(self.layers(x))

number = lambda bands, classes: 3
"""


@pytest.fixture
def mynets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder, which nobody has named yet."""
    name = f"mynets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_named", set())
    return name


def run(*members: str, **more: Any) -> Any:
    raw: dict[str, Any] = {
        "task": "common", "run": {"dir": "x"}, "data": {"path": "x"}, "init": "random",
        "model": {"members": list(members), "image_size": 64, "head_dims": [8], "grey": "fold"},
    }  # fmt: skip
    return schema_of(raw | more)(**(raw | more))


def task(*members: str) -> Any:
    return build_task(run(*members), ("a", "b"), Preprocess(PreprocessConfig(), [0.0], [1.0]))


def test_a_network_of_the_user_s_is_a_member_beside_torchvision_s(mynets: str) -> None:
    ours = task(f"{mynets}:Small", "resnet18")
    torch.manual_seed(0)
    network = ours.build().eval()
    x = torch.rand(3, 1, 64, 64)
    each = [member(member.prepare(x)) for member in network.backbones]
    torch.testing.assert_close(network(x), (each[0] + each[1]) / 2)
    # Unfrozen with the heads, at the first stage: its parameters are one section.
    ours.cfg = ours.cfg.model_copy(update={"unfreeze": "progressive"})
    assert ours.stages(30)[0].trains("members.0.sections.head.layers.0.weight")


def test_its_export_runs_only_where_its_module_is_named(
    mynets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = task(f"{mynets}:Small")
    description = {
        "task": "common", "preset": "x", "labels": ["a", "b"], "metrics": {},
        "preprocessing": ours.preprocess.state(), **ours.describe(),
    }  # fmt: skip
    network = ours.build().eval()
    write_export(tmp_path / "export", network, description)
    (tmp_path / "ran").unlink()
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.delitem(sys.modules, mynets)
    with pytest.raises(plugins.Untrusted, match=f"--trust {mynets}"):
        lensdist.load(tmp_path / "export")
    assert not (tmp_path / "ran").exists()
    x = torch.rand(2, 1, 64, 64)
    found = lensdist.load(tmp_path / "export", trust=mynets).predict(x)["logits"]
    torch.testing.assert_close(torch.from_numpy(found), network(ours.preprocess(x)).detach())


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("{}:Large", "has no 'Large'"),
        ("{}:Smal", "did you mean Small"),
        ("{}_gone:Small", "ModuleNotFoundError"),
        ("{}:number", "made a int"),
        ("resnet19", "mylab.nets:MyNet"),
    ],
)
def test_what_is_no_network_is_said(mynets: str, member: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        task(member.format(mynets)).build()


def test_weights_of_imagenet_are_refused_for_networks_that_have_none(mynets: str) -> None:
    cfg = run(f"{mynets}:Small", init="imagenet")
    with pytest.raises(UserError, match="init=random"):
        task_class("common").check_settings(cfg, cfg.preprocess, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["os:system", "mylab.masses:MassTask"])
def test_a_run_on_file_names_no_program_that_is_run(path: str) -> None:
    with pytest.raises(plugins.Untrusted):
        recorded_schema(json.loads(json.dumps({"task": path})))
    with pytest.raises(UserError, match=r"not a subclass|cannot import|has no"):
        schema_of({"task": path})


def test_a_network_of_timm(mynets: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    network = task("timm/resnet10t").build().eval()
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 2)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("settings = S", "lacks loss, network, outputs, score, answer"),
        ("settings = S; answer = 'x'; network = loss = outputs = score = 1", "lack the property"),
        ("settings = Chosen; answer = 'x'; network = loss = outputs = score = 1", "a field model"),
        ("answer = 'x'", "class attribute `settings`"),
    ],
)
def test_a_task_that_lacks_something_is_refused_before_it_trains(
    mynets: str, tmp_path: Path, body: str, told: str
) -> None:
    name = f"mytask_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from lensdist.tasks import Task, TaskSettings\n"
        "class S(TaskSettings): pass\n"
        "class Chosen(TaskSettings):\n    selects = property(lambda self: ('x', 'min'))\n"
        f"class T(Task):\n    {body}\n"
    )
    with pytest.raises(UserError, match=told):
        schema_of({"task": f"{name}:T"})
