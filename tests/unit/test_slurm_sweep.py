"""Sweeps: which points, which phases, and one array a phase."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensdist.utils.errors import UserError
from slurm.config.sweep import points, without_limit
from slurm.plan.builder import make_plan
from slurm.plan.render import batch_scripts
from tests.chains import write_chain, write_cluster

pytestmark = pytest.mark.unit


def test_all_combinations_in_order() -> None:
    found = points(["optim.lr=1e-4,3e-4", "seed=1,2"])
    assert [p.label for p in found] == [
        "optim.lr=1e-4,seed=1",
        "optim.lr=1e-4,seed=2",
        "optim.lr=3e-4,seed=1",
        "optim.lr=3e-4,seed=2",
    ]
    assert found[1].settings == ("optim.lr=1e-4", "seed=2")
    assert points([]) == []


def test_commas_in_brackets_belong_to_a_value() -> None:
    assert [p.settings for p in points(["data.classes=[a,b],[c]"])] == [
        ("data.classes=[a,b]",),
        ("data.classes=[c]",),
    ]


def test_labels_are_names_of_folders_and_differ() -> None:
    labels = [p.label for p in points(["data.path=/a/b,/a_b," + "x" * 300 + "," + "x" * 299])]
    assert len(set(labels)) == 4
    assert all("/" not in label and len(label) < 100 for label in labels)


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        (["optim.lr"], "give key=value,value"),
        (["optim.lr=1,,2"], "give key=value,value"),
        (["seed=1,1"], "a value stands there twice"),
        (["seed=1", "seed=2"], "a key stands there twice"),
        (["seed=" + ",".join(map(str, range(40))), "a=" + ",".join(map(str, range(40)))], "1000"),
    ],
)
def test_what_is_no_sweep_is_told(sweep: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        points(sweep)


def test_a_percent_sign_limits_how_many_run_at_once() -> None:
    assert without_limit(["seed=1,2%2", "a=[x%1]"]) == (["seed=1,2", "a=[x%1]"], 2)
    assert without_limit(["seed=1,2"]) == (["seed=1,2"], None)
    for wrong in (["seed=1,2%0"], ["seed=1,2%1", "a=1,2%2"]):
        with pytest.raises(UserError, match="give it once"):
            without_limit(wrong)


def test_what_comes_before_is_shared_and_what_follows_is_swept_too(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    cluster = write_cluster(tmp_path, executor="slurm")
    plan = make_plan(chain, cluster, (), ["finetune.optim.lr=1e-4,3e-4"])
    names = [step.name for step in plan.steps]
    assert names[:-1] == [
        "pretrain",
        "finetune@finetune.optim.lr=1e-4",
        "finetune@finetune.optim.lr=3e-4",
        "evaluate@finetune.optim.lr=1e-4",
        "evaluate@finetune.optim.lr=3e-4",
    ]
    first, second = plan.steps[1:3]
    assert first.config is not None
    assert second.config is not None
    assert (first.config.optim.lr, second.config.optim.lr) == (1e-4, 3e-4)
    assert first.config.run.dir != second.config.run.dir
    assert [need.phase for need in plan.steps[4].needs] == ["finetune@finetune.optim.lr=3e-4"]
    table = plan.steps[-1]
    assert {*table.follows} == {*names[1:-1]}
    assert table.argv is not None
    assert str(second.config.run.dir) in table.argv

    shown = batch_scripts(plan)
    assert [*shown] == ["pretrain", "finetune", "evaluate", table.name]
    assert "#SBATCH --array=0-1%2" in shown["finetune"]
    assert "--dependency=afterok:JOB_OF_pretrain" in shown["finetune"]
    assert "--dependency=aftercorr:JOB_OF_finetune" in shown["evaluate"]
    assert "afterany:JOB_OF_finetune,afterany:JOB_OF_evaluate" in shown[table.name]


def test_a_setting_of_all_phases_sweeps_the_whole_chain(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    plan = make_plan(chain, write_cluster(tmp_path), (), ["seed=1,2"])
    assert sum(step.point is not None for step in plan.steps) == 6
    encoder = plan.steps[2].config.encoder  # type: ignore[union-attr]
    assert encoder == tmp_path / "runs" / "pretrain@seed=1"


def test_a_mistake_in_a_swept_value_is_told_once_a_phase(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    with pytest.raises(UserError) as e:
        make_plan(chain, write_cluster(tmp_path), (), ["pretrain.optim.lr=-1,1e-3"])
    assert len(str(e.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"evaluate\.split=val: .* has no settings"):
        make_plan(chain, write_cluster(tmp_path), (), ["evaluate.split=val,test"])
