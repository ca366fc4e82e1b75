"""What each phase asks SLURM for: in proportion, by its own keys, and by any site's options."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lensdist.config import load
from lensdist.utils.errors import UserError
from slurm.config.chain import Chain
from slurm.config.cluster import Cluster
from slurm.config.walltime import minutes
from slurm.plan.builder import make_plan
from slurm.plan.plan import Plan
from slurm.plan.render import batch_scripts
from tests.chains import write_chain, write_cluster
from tests.fakes.slurm_commands import directives

pytestmark = pytest.mark.unit

NODE: dict[str, Any] = {
    "executor": "slurm",
    "partition": "gpu",
    "gpus_per_node": 8,
    "cpus_per_task": 96,
    "mem_gb": 960,
    "walltime": 1440,
}


def _plan(
    folder: Path,
    *words: str,
    phases: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
    **cluster: Any,
) -> Plan:
    """images, pretrain, finetune, evaluate, table; `own` are the cluster's keys for phases."""
    chain = write_chain(folder, folder / "packed")
    text = json.loads(chain.read_text())
    images = {"images": {"simulate": {"family": "model_ii", "n_per_class": 40}}}
    text["phases"] = images | text["phases"] | {"table": {"report": ["finetune"]}}
    for name, more in (phases or {}).items():
        text["phases"][name] |= more
    chain.write_text(json.dumps(text))
    file = write_cluster(folder, **(NODE | cluster), phases=own or {})
    return make_plan(chain, file, [*words, "train.micro_batch=2"])  # eight for 16 images


def _asked(plan: Plan) -> dict[str, dict[str, str]]:
    """sbatch's options, by phase."""
    return {name: directives(text) for name, text in batch_scripts(plan).items()}


def _sizes(plan: Plan) -> dict[str, tuple[str | None, ...]]:
    keys = ("gpus-per-node", "cpus-per-task", "mem", "time")
    return {name: tuple(map(flags.get, keys)) for name, flags in _asked(plan).items()}


def test_a_phase_asks_for_what_it_needs(tmp_path: Path) -> None:
    plan = _plan(tmp_path, phases={"pretrain": {"processes": 1}, "finetune": {"processes": 4}})
    assert _sizes(plan) == {
        "images": (None, "4", "40960M", "240"),
        "pretrain": ("1", "12", "122880M", "1440"),
        "finetune": ("4", "48", "491520M", "1440"),
        "evaluate": (None, "4", "40960M", "120"),
        "table": (None, "1", "10240M", "15"),
    }
    small = _sizes(_plan(tmp_path, cpus_per_task=None, mem_gb=8, walltime=10, save_before_end=599))
    assert small["table"] == (None, None, "4096M", "10")
    assert small["evaluate"] == (None, None, "8192M", "10")
    assert small["pretrain"][2] == "8192M"


def test_without_slurm_phases_keep_the_machine(tmp_path: Path) -> None:
    here: dict[str, Any] = {"executor": "local", "partition": None, "gpus_per_node": 2}
    here |= {"walltime": 600}
    steps = {step.name: step.cluster for step in _plan(tmp_path, **here).steps}
    assert (steps["evaluate"].gpus, steps["evaluate"].walltime) == (1, 600)
    assert steps["pretrain"].gpus == 2


def test_phases_have_keys_of_their_own(tmp_path: Path) -> None:
    """A later one wins: the cluster's by kind, by name, the chain's, the command line's."""
    phases: dict[str, Any] = {
        "images": {"cluster": {"partition": "cpu", "walltime": "0-01:30:00", "account": "chain"}},
        "pretrain": {"cluster": {"gpus_per_node": 2, "sbatch": {"mem": None, "comment": "x y"}}},
        "evaluate": {"cluster": {"gpus_per_node": "a100:1", "mem_gb": 20}},
    }
    own = {"simulate": {"partition": "long", "qos": "low", "account": "kind"}}
    own |= {"report": {"partition": "cpu"}, "table": {"qos": "debug"}}
    words = ["images.cluster.qos=high", "cluster.account=all", "cluster.sbatch={nice: '5'}"]
    asked = _asked(_plan(tmp_path, *words, phases=phases, own=own))
    images, pretrain = asked["images"], asked["pretrain"]
    assert [images[key] for key in ("partition", "account", "qos", "time")] == [
        "cpu", "chain", "high", "90"
    ]  # fmt: skip
    assert (pretrain["gpus-per-node"], pretrain["cpus-per-task"]) == ("2", "24")
    assert "mem" not in pretrain
    assert (pretrain["comment"], pretrain["nice"], pretrain["account"]) == ("x y", "5", "all")
    assert (asked["evaluate"]["gpus-per-node"], asked["evaluate"]["mem"]) == ("a100:1", "20480M")
    assert (asked["table"]["partition"], asked["table"]["qos"]) == ("cpu", "debug")
    assert asked["finetune"]["partition"] == "gpu"
    assert "qos" not in asked["finetune"]


@pytest.mark.parametrize(
    ("phase", "own", "words", "sentence"),
    [
        ("images", {"partiton": "x"}, [], "images: partiton .*: .*did you mean 'partition'"),
        ("pretrain", {"nodes": "two"}, [], "pretrain: nodes .*: .*'two' is not a number of nodes"),
        ("table", {}, ["table.cluster.nodse=2"], "table: nodse .*did you mean 'nodes'"),
        ("table", {}, ["tabel.cluster.nodes=2"], "no phase 'tabel'; did you mean 'table'"),
        ("images", {"walltime": "soon"}, [], "'soon' is not a time"),
        ("pretrain", {"walltime": 1}, ["cluster.save_before_end=60"], "save_before_end 60 s"),
    ],
)
def test_wrong_keys_of_a_phase(
    tmp_path: Path, phase: str, own: dict[str, Any], words: list[str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        _plan(tmp_path, *words, phases={phase: {"cluster": own}})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (90, 90), ("90", 90), ("90:00", 90), ("1:30:00", 90), ("01:29:01", 90), ("36:00:00", 2160),
        ("0-1", 60), ("2-00:30", 2910), ("1-12:00:00", 2160), ("7-00:00:00", 10080),
    ],
)  # fmt: skip
def test_walltimes_as_slurm_writes_them(tmp_path: Path, written: object, read: int) -> None:
    assert minutes(written) == read
    file = tmp_path / "cluster.yaml"
    file.write_text(f"executor: slurm\nwalltime: {written}\n")
    assert load(file, schema=Cluster).walltime == read
    assert load(file, [f"walltime={written}"], schema=Cluster).walltime == read
    file.write_text(f"name: x\nruns: r\nphases: {{a: {{train: x.yaml, walltime: {written}}}}}\n")
    assert load(file, schema=Chain).phases["a"].walltime == read


@pytest.mark.parametrize("wrong", ["1:30:00:00", "1-", "2h", "-5", "0", "0:10", "'1:3'", "1.5"])
def test_what_is_no_walltime(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"executor: slurm\nwalltime: {wrong}\n")
    if wrong == "0:10":  # ten seconds, rounded up
        assert load(file, ["save_before_end=1"], schema=Cluster).walltime == 1
        return
    with pytest.raises(UserError, match="walltime"):
        load(file, schema=Cluster)


@pytest.mark.parametrize(
    ("cluster", "flags"),
    [
        ({"gpus_per_node": 4}, {"gpus-per-node": "4"}),
        ({"gpus_per_node": "a100:4"}, {"gpus-per-node": "a100:4"}),
        ({"gpus_per_node": "gpu:a100:4"}, {"gpus-per-node": "a100:4"}),
        ({"gpus_per_node": "a100:4", "gpu_request": "gres"}, {"gres": "gpu:a100:4"}),
        ({"gpus_per_node": 4, "gpu_request": "gpus-per-task"}, {"gpus-per-task": "4"}),
        ({"gpus_per_node": 4, "gpu_request": "none"}, {"exclusive": ""}),
        ({"gpus_per_node": 4, "sbatch": {"gres": "tmpfs:100G"}},
         {"gpus-per-node": "4", "gres": "tmpfs:100G"}),
        ({"gpus_per_node": 4, "gpu_request": "gres", "sbatch": {"gres": "tmpfs:100G"}},
         {"gres": "gpu:4,tmpfs:100G"}),
        ({"gpus_per_node": None, "sbatch": {"exclusive": ""}}, {"exclusive": ""}),
    ],
)  # fmt: skip
def test_gpus_are_asked_for_as_the_site_wants(
    tmp_path: Path, cluster: dict[str, Any], flags: dict[str, str]
) -> None:
    plan = _plan(tmp_path, **cluster)
    asked = _asked(plan)["pretrain"]
    keys = {"gpus-per-node", "gpus-per-task", "gres", "exclusive"}
    assert {key: asked[key] for key in keys & asked.keys()} == flags
    pretrain = next(step for step in plan.steps if step.name == "pretrain")
    used = 4 if cluster["gpus_per_node"] else 0
    assert (pretrain.cluster.gpus, pretrain.cluster.on_cpu) == (used, not used)


def test_of_a_node_that_is_taken_whole_all_is_taken(tmp_path: Path) -> None:
    plan = _plan(tmp_path, gpu_request="none", phases={"pretrain": {"processes": 2}})
    asked = _asked(plan)["pretrain"]
    assert (asked["cpus-per-task"], asked["mem"]) == ("96", "983040M")
    pretrain = next(step for step in plan.steps if step.name == "pretrain")
    assert pretrain.cluster.per_node == 2
    assert "exclusive" not in _asked(plan)["table"]


def test_options_are_dropped_and_added(tmp_path: Path) -> None:
    own = {"mem": None, "ntasks-per-node": None, "requeue": None, "wckey": "me", "no_kill": ""}
    scripts = batch_scripts(_plan(tmp_path, sbatch=own | {"cpus-per-task": None}))
    for script in scripts.values():
        flags = directives(script)
        assert not {"mem", "ntasks-per-node", "requeue", "cpus-per-task"} & flags.keys()
        assert (flags["wckey"], flags["no-kill"]) == ("me", "")
        assert "--cpus-per-task" not in script
    assert all("wckey" not in flags for flags in _asked(_plan(tmp_path)).values())
    with pytest.raises(UserError, match="sbatch: output: the launcher sets it"):
        _plan(tmp_path, sbatch={"output": None})
    with pytest.raises(UserError, match="gpus-per-task needs one number of nodes"):
        _plan(tmp_path, gpu_request="gpus-per-task", nodes="1-2")


@pytest.mark.parametrize("gpus", ["a100", "a100:0", "a100:x", "4:a100", 0, 1.5, "a b:2", True])
def test_what_is_no_number_of_gpus(tmp_path: Path, gpus: object) -> None:
    with pytest.raises(UserError, match="gpus_per_node"):
        _plan(tmp_path, gpus_per_node=gpus)


@pytest.mark.parametrize(
    ("lines", "code", "told"),
    [
        ([], 0, 0),
        (["A=1", "[ -e /nowhere ] && A=2", "if false; then A=3; fi", "ls /nowhere || true"], 0, 0),
        (["module() { return 3; }", "module load 'no such'", "echo on"], 3, 1),
        (["nothing_of_that_name -x", "echo on"], 127, 0),
        (["echo $(false) | grep -q x"], 1, 0),
        (["(exit 9)"], 9, 0),
        (["set -e", "false"], 1, 1),
    ],
)
def test_a_line_of_setup_that_fails_ends_the_job(
    tmp_path: Path, lines: list[str], code: int, told: int
) -> None:
    script = batch_scripts(_plan(tmp_path, setup=lines))["pretrain"]
    before, _, rest = script.partition("# the epilogue below")
    assert "slurm.job_side.prologue" in rest
    # The plan's code and job file are not there, as a node would say at once.
    lines_before = before.splitlines()
    before = "\n".join(one for one in lines_before if not one.startswith("for path in "))
    assert len(before.splitlines()) == len(lines_before) - 1
    # What follows may fail without that: its end is the epilogue's matter.
    (tmp_path / "script").write_text(f"{before}\nfalse\necho ends\n")
    words = ["bash", str(tmp_path / "script")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == ("ends\n" if code == 0 else "")
    if code:
        line = f"error: setup ended with exit code {code} at: {lines[told]}\n"
        assert done.stderr.endswith(line)
