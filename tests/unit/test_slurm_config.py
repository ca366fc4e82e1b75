"""Chains and clusters: what a file may say, and what contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lensdist.config import load
from lensdist.config.presets import FOLDER
from lensdist.utils.errors import UserError
from slurm.config.chain import TAKEN, Chain
from slurm.config.cluster import Cluster
from slurm.config.request import read_request
from slurm.config.source import chain_source, train_file
from tests.chains import write_cluster

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"nodes": 2}, "nodes: executor local"),
        ({"setup": ["module load x"]}, "executor local"),
        ({"executor": "slurm", "nodes": "4-2"}, "not a number of nodes"),
        ({"executor": "slurm", "sbatch": {"nodes": "2"}}, "cluster's nodes"),
        ({"executor": "slurm", "sbatch": {"gres": "gpu:2"}}, "gpus_per_node"),
        ({"executor": "slurm", "sbatch": {"array": "0-2"}}, "sbatch: array"),
        ({"gpus_per_node": 4, "processes_per_node": 2}, "is not gpus_per_node"),
        ({"walltime": 2, "save_before_end": 120}, "walltime"),
        ({"env": {"A": 1}}, "env.A"),
        ({"partition": "gpu\n#SBATCH --uid=0"}, "partition.*: has a control character"),
        ({"account": "a\u2028b"}, "account.*: has a control character"),
        ({"executor": "slurm", "sbatch": {"comment": "a\nb"}}, "comment.*: has a control"),
        ({"executor": "slurm", "sbatch": {"comment\n": "a"}}, "not a flag's name"),
        ({"executor": "slurm", "sbatch": {"comment --uid": "0"}}, "not a flag's name"),
        ({"executor": "slurm", "srun": {"x;id": ""}}, "not a flag's name"),
        ({"executor": "slurm", "setup": ["module load x\rid"]}, "setup.*: has a control"),
        ({"exclude": ["a\nb"]}, "exclude.*: has a control character"),
        ({"env": {"A": "1\n2"}}, "env.A.*: has a control character"),
        ({"env": {"A B": "1"}}, "not a variable's name"),
    ],
)  # fmt: skip
def test_refused_clusters(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(write_cluster(tmp_path, **settings), schema=Cluster)


@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        (
            {"a": {"train": "x.yaml", "after": ["b"]}, "b": {"train": "x.yaml"}},
            "phase a: needs 'b'",
        ),
        ({"a": {"train": "x.yaml"}, "b": {"train": "x.yaml", "set": ["encoder={a}"]}}, "after"),
        ({"a": {"train": "x.yaml", "evaluate": "b"}}, "exactly one of"),
        ({"a": {}}, "exactly one of"),
        ({"a": {"simulate": {"n_per_class": 9}, "set": ["seed=1"]}}, "settings of its own"),
        ({"a": {"pack": {"src": "x"}}, "b": {"report": ["a"]}}, "phase b: a must be"),
        (
            {"a": {"simulate": {"n_per_class": 9, "lens_light": {"magnitude": 18, "n": 1}}}},
            "magnitude",
        ),
        ({"optim": {"train": "x.yaml"}}, "rename it"),
        (
            {"a": {"train": "x.yaml"}, "b": {"evaluate": "a"}, "c": {"evaluate": "b"}},
            "phase c: b must be",
        ),
    ],
)
def test_a_chain_that_cannot_be(tmp_path: Path, phases: dict[str, Any], sentence: str) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(json.dumps({"name": "x", "runs": "runs", "phases": phases}))
    with pytest.raises(UserError, match=sentence):
        load(file, schema=Chain)


@pytest.mark.parametrize("runs", ["a%j", "a:b", "a\\\\b", "a\nb"])
def test_a_folder_that_no_quoting_helps_is_refused(runs: str, tmp_path: Path) -> None:
    (tmp_path / runs).mkdir()
    file = tmp_path / "chain.yaml"
    phases = {"a": {"train": "x.yaml"}}
    folder = str(tmp_path / runs / "runs")
    file.write_text(json.dumps({"name": "x", "runs": folder, "phases": phases}))
    with pytest.raises(UserError, match="rename it"):
        read_request(file, [])


def test_a_phase_may_have_fewer_processes(tmp_path: Path) -> None:
    gpus = Cluster(executor="slurm", nodes="2-4", gpus_per_node=4)
    shapes = {n: gpus.at_most(n) for n in (1, 3, 8, 12, 99)}
    assert {n: (c.nodes, c.gpus_per_node) for n, c in shapes.items()} == {
        1: (1, 1), 3: (1, 3), 8: (2, 4), 12: ("2-3", 4), 99: ("2-4", 4)
    }  # fmt: skip
    cpus = Cluster(executor="slurm", nodes=2, processes_per_node=2).at_most(1)
    assert (cpus.nodes, cpus.per_node, cpus.on_cpu) == (1, 1, True)


def test_names_of_settings_are_no_names_of_phases() -> None:
    assert {"train", "data", "encoder", "mask", "cluster", "runs"} <= TAKEN


def test_a_path_with_a_blank_must_be_quoted() -> None:
    with pytest.raises(UserError, match="or quote a path with blanks"):
        chain_source(None, None, ["data.path=/my", "images/packed"])


def test_a_chain_takes_names_of_presets(tmp_path: Path) -> None:
    debug = (FOLDER / "common" / "debug.yaml").resolve()
    for name in ("common/debug", "common/debug.yaml"):
        assert train_file(tmp_path, Path(name)).resolve() == debug
    with pytest.raises(UserError, match="unknown preset 'common/debgu'; did you mean common/debug"):
        train_file(tmp_path, Path("common/debgu"))
    own = tmp_path / "common" / "debug.yaml"  # a file of the user's comes first
    own.parent.mkdir()
    own.touch()
    assert train_file(tmp_path, Path("common/debug.yaml")) == own
    assert train_file(tmp_path, Path("mine.yaml")) == tmp_path / "mine.yaml"
