"""What is checked and shown before anything is sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensdist.data.packing.writer import PackedWriter
from lensdist.utils.errors import UserError
from slurm.plan.builder import make_plan
from slurm.plan.plan import Plan
from slurm.plan.render import render_plan
from tests.chains import SUBMIT, submit, write_chain, write_cluster
from tests.conftest import ROOT
from tests.unit.data_files import add_all

pytestmark = pytest.mark.unit

GOLDEN = ROOT / "tests" / "golden"
CHAIN = ROOT / "configs" / "chains" / "vi_a.yaml"
CLUSTERS = ROOT / "configs" / "clusters"


def _refused(chain: Path, cluster: Path, *words: str) -> list[str]:
    with pytest.raises(UserError) as e:
        make_plan(chain, cluster, words)
    return str(e.value).splitlines()


def test_a_warm_up_longer_than_the_run_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    chain, cluster = write_chain(tmp_path, tiny_set, steps=6), write_cluster(tmp_path)
    make_plan(chain, cluster, ["optim.schedule.warmup_steps=6"])
    told = _refused(chain, cluster, "optim.schedule.warmup_steps=7")
    assert [line.split(":")[0] for line in told] == ["pretrain", "finetune"]
    assert all("6 steps" in line for line in told)


@pytest.mark.parametrize("name", ["local", "slurm-cpu", "slurm-gpu"])
def test_the_shown_plan_is_golden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `UPDATE_GOLDEN=1` the files are written anew: read their difference before a commit."""
    monkeypatch.chdir(ROOT)
    words = ["runs=/scratch/me/vi_a", "data.path=/scratch/me/packed", "seed=1"]
    text = render_plan(make_plan(CHAIN, CLUSTERS / f"{name}.yaml", words)) + "\n"
    text = text.replace(sys.executable, "/venv/python").replace(str(ROOT), "/clone")
    file = GOLDEN / f"plan_{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("cluster", sorted(p.stem for p in CLUSTERS.glob("*.yaml")))
@pytest.mark.parametrize("chain", sorted(p.stem for p in CHAIN.parent.glob("*.yaml")))
def test_every_chain_can_be_sent_to_every_cluster(chain: str, cluster: str) -> None:
    plan = make_plan(CHAIN.parent / f"{chain}.yaml", CLUSTERS / f"{cluster}.yaml", ())
    assert f"chain {chain}:" in render_plan(plan)


def test_a_plan_is_quick_and_torch_free_from_anywhere(tmp_path: Path) -> None:
    code = "import runpy, sys\n"
    code += (
        f"sys.argv = [{SUBMIT[1]!r}, 'plan', '--cluster', {str(CLUSTERS / 'slurm-gpu.yaml')!r}]\n"
    )
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit as e: assert e.code == 0, e.code\n"
    code += "sys.exit('torch imported' if 'torch' in sys.modules else 0)"
    before = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/runs/vi_a/pretrain" in done.stdout
    assert os.times().children_user - before < 5  # 0.4 s of a core, however busy the machine is
    assert not list(tmp_path.iterdir())  # a plan writes nothing


def test_the_trainer_knows_no_submitit() -> None:
    for file in (ROOT / "lensdist").rglob("*.py"):
        assert "submitit" not in file.read_text(), file


@pytest.mark.parametrize(
    ("words", "cluster", "told"),
    [
        (
            ["pretrain.mask.ration=0.5", "finetune.optim.lr=-1", "seed=one"],
            {},
            [
                "pretrain: mask.ration (command line): unknown key; did you mean 'ratio'?",
                "pretrain: seed (command line)",
                "finetune: optim.lr (command line)",
                "finetune: seed (command line)",
            ],
        ),
        (["run.dir=x"], {}, ["pretrain: run.dir=x: ", "finetune: run.dir=x: "]),
        (["evaluate.split=val"], {}, ["evaluate.split=val: a phase with `evaluate` has no"]),
        (["runs=/x/a%j"], {}, ["runs=/x/a%j: SLURM replaces %"]),
        # Contradictions, once for each training phase.
        ([], {"env": {"ACCELERATE_MIXED_PRECISION": "bf16"}}, ["pretrain: pre", "finetune: pre"]),
        ([], {"env": {"ACCELERATE_USE_FSDP": "true"}}, ["pretrain: ", "finetune: "]),
        (["precision=fp16"], {"executor": "slurm"}, ["pretrain: precision: fp16", "finetune: pre"]),
    ],
)
def test_all_errors_are_reported(
    tmp_path: Path, words: list[str], cluster: dict[str, Any], told: list[str]
) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    found = _refused(chain, write_cluster(tmp_path, **cluster), *words)
    assert len(found) == len(told)
    for one, start in zip(sorted(found), sorted(told), strict=True):
        assert one.startswith(start)
    assert not (tmp_path / "runs").exists()


def test_a_typo_in_a_cluster_file_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("executor: slurm\npartiton: gpu\nnodes: two\n")
    bad_chain = tmp_path / "chain.yaml"
    bad_chain.write_text(
        "name: x\nruns: runs\nphases:\n  pretrain:\n    train: a.yaml\n    aftr: [b]\n"
    )
    told = _refused(bad_chain, file)
    assert any("chain.yaml:6" in one and "did you mean 'after'" in one for one in told)
    assert any("mine.yaml:2" in one and "did you mean 'partition'" in one for one in told)
    assert any("mine.yaml:3" in one for one in told)


def test_uneven_shares_are_refused_for_every_phase(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    cluster = write_cluster(tmp_path, executor="slurm", nodes=3)
    told = _refused(chain, cluster)
    assert [one.split(":")[0] for one in told] == ["pretrain", "finetune"]
    assert "which 3 processes cannot share evenly" in told[0]
    assert len(make_plan(chain, cluster, ["train.global_batch=24"]).steps) == 3
    with pytest.raises(UserError, match=r"evenly by 3 processes; set train\.global_batch"):
        make_plan(chain, cluster, ["train.micro_batch=auto"])
    plan = make_plan(chain, cluster, ["train.global_batch=24", "train.micro_batch=auto"])
    assert "24 images = 3 micro-batches of 8" in render_plan(plan)


def _planned(tmp_path: Path, *words: str, **cluster: Any) -> Plan:
    chain = write_chain(tmp_path, tmp_path / "packed")
    return make_plan(chain, write_cluster(tmp_path, **cluster), words)


def test_settings_reach_the_phases_they_name(tmp_path: Path) -> None:
    plan = _planned(tmp_path, "seed=3", "pretrain.optim.lr=0.5", f"runs={tmp_path / 'else'}")
    pretrain, finetune, evaluate = plan.steps
    assert pretrain.config is not None
    assert finetune.config is not None
    assert (pretrain.config.seed, finetune.config.seed) == (3, 3)
    assert (pretrain.config.optim.lr, finetune.config.optim.lr) == (0.5, 1e-3)
    assert finetune.config.encoder == tmp_path / "else" / "pretrain"  # type: ignore[attr-defined]
    assert evaluate.target.run == finetune.config.run.dir == tmp_path / "else" / "finetune"
    for step, data in (
        (evaluate, tmp_path / "packed"),
        (_planned(tmp_path, "data.path=null").steps[2], tmp_path / "runs/finetune/data"),
    ):
        assert step.argv is not None
        assert step.argv[5] == str(data)


def test_a_range_of_nodes_is_those_that_share_evenly(tmp_path: Path) -> None:
    two = _planned(tmp_path, executor="slurm", nodes=2, processes_per_node=2)
    shapes = [(step.cluster.nodes, step.cluster.per_node) for step in two.steps]
    assert shapes == [(2, 2), (2, 2), (1, 1)]  # an evaluation is one process
    plan = _planned(tmp_path, executor="slurm", nodes="1-4")  # 16 images = 4 micro-batches
    assert plan.steps[0].counts == (1, 2, 4)
    assert "#SBATCH --nodes=1-4" in render_plan(plan)
    assert "1 or 2 or 4 node(s)" in render_plan(plan)


def test_a_phase_may_have_its_own_walltime(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    text = json.loads(chain.read_text())
    text["phases"]["pretrain"] |= {"walltime": 600}
    chain.write_text(json.dumps(text))
    cluster = write_cluster(tmp_path, executor="slurm")
    plan = make_plan(chain, cluster, ["cluster.nodes=2"])
    assert [(s.cluster.nodes, s.cluster.walltime) for s in plan.steps[:2]] == [(2, 600), (2, 20)]
    told = _refused(chain, cluster, "cluster.save_before_end=1200")
    assert "walltime 20 min" in told[0]


def test_sets_are_simulated_and_packed_with_the_chains_settings(tmp_path: Path) -> None:
    text = json.loads(write_chain(tmp_path, tmp_path / "packed").read_text())
    first = {"images": {"simulate": {"family": "model_ii", "n_per_class": 40, "noise": "euclid"}}}
    first |= {"files": {"pack": {"src": "raw", "labels": ["a", "b"]}}}
    text["phases"] = first | text["phases"] | {"table": {"report": ["finetune"]}}
    text["phases"]["pretrain"] |= {"after": ["images"]}
    text["phases"]["pretrain"]["set"] += ["data.path={images}"]
    chain = tmp_path / "chain.yaml"
    chain.write_text(json.dumps(text))
    steps = {
        step.name: step
        for step in make_plan(chain, write_cluster(tmp_path), ["images.n_per_class=50"]).steps
    }
    words = " ".join(steps["images"].argv or ())
    assert words.endswith(
        f"--n-per-class 50 --seed 0 --family model_ii --noise euclid {tmp_path}/runs/images"
    )
    words = " ".join(steps["files"].argv or ())
    assert "--labels a,b" in words
    assert words.endswith(f"{Path.cwd()}/raw {tmp_path}/runs/files")
    pretrain = steps["pretrain"]
    assert pretrain.config is not None
    assert pretrain.config.data.path == tmp_path / "runs" / "images"
    assert [need.phase for need in pretrain.needs] == ["images"]
    assert [need.phase for need in steps["table"].needs] == ["finetune", "evaluate"]
    told = _refused(chain, write_cluster(tmp_path), "images.n_per_clas=50")
    assert "did you mean 'n_per_class'" in told[0]


def test_without_slurm_nothing_is_written(tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tmp_path / "packed")
    (tmp_path / "packed").mkdir()
    cluster = write_cluster(tmp_path, executor="slurm")
    told = submit("submit", chain, cluster, code=2, env={"PATH": "/nowhere"}).stderr
    assert "submit from a login node" in told
    assert not (tmp_path / "runs").exists()


def test_a_chain_s_presets_are_fitted_to_the_set(tmp_path: Path) -> None:
    """Of 30 pixels, in place of 64; the encoder is that of the phase before, not yet trained."""
    images = np.random.default_rng(0).random((40, 1, 30, 30), np.float32)
    with PackedWriter(tmp_path / "set", labels=["a", "b"], seed=0, source={}) as writer:
        add_all(writer, images, np.arange(40) % 2)
        writer.finish()
    words = [f"runs={tmp_path}/runs", f"data.path={tmp_path}/set", "pretrain.model.dim=48"]
    plan = make_plan(CHAIN, write_cluster(tmp_path), words)
    pretrain, finetune = (step.config for step in plan.steps[:2])
    assert pretrain is not None
    assert finetune is not None
    shapes = [config.model_dump()["model"] for config in (pretrain, finetune)]
    for field in ("image_size", "patch_size", "in_channels", "dim", "depth"):
        assert shapes[0][field] == shapes[1][field], field
    assert (shapes[1]["image_size"], shapes[1]["dim"]) == (30, 48)
    assert "model.image_size=30" in render_plan(plan)
