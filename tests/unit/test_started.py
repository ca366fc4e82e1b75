"""Processes of srun and mpirun: which run they belong to, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensdist import train
from lensdist.utils import errors, hostlist, launched, started
from lensdist.utils.errors import UserError
from tests.conftest import settings

pytestmark = pytest.mark.unit

# As a real SLURM 22.05 sets them in the last of `srun -n 4 -N 2`, in a batch script, and in salloc.
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
}
SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMIX_NAMESPACE": "x",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
TORCHRUN |= {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("given", "by", "rank", "size", "local", "here", "address"),
    [
        (STEP, "srun", "3", "4", "0", "1", "gpu07"),
        ({**STEP, "WORLD_SIZE": "4", "MASTER_ADDR": "x"}, "srun", "3", "4", "0", "1", "x"),
        ({**STEP, "PMI_SIZE": "4", "PMI_RANK": "3"}, "srun", "3", "4", "0", "1", "gpu07"),
        (MPI, "mpirun", "1", "2", "1", "2", "127.0.0.1"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
          "SLURM_JOB_NODELIST": "b2,a1"}, "mpirun", "1", "2", "0", "1", "b2"),
        # mpirun's own agents are a step of one task a node
        ({**STEP, "SLURM_STEP_NUM_TASKS": "2", **MPI}, "mpirun", "1", "2", "1", "2", "127.0.0.1"),
        ({**STEP, **HYDRA}, "mpirun", "1", "2", "1", "2", "127.0.0.1"),
    ],
)  # fmt: skip
def test_a_process_finds_its_place(
    given: dict[str, str], by: str, rank: str, size: str, local: str, here: str, address: str
) -> None:
    environment = {**given}
    assert started.adopt(environment) == by
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [environment[name] for name in names] == [rank, size, local, here, address]
    assert 10_000 <= int(environment["MASTER_PORT"]) < 30_000
    assert launched.rank_of(environment) == int(rank)


def test_a_port_belongs_to_a_step() -> None:
    found = []
    for change in ({}, {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}, {"SLURM_STEP_ID": "1"}):
        environment = {**STEP, **change}
        started.adopt(environment)
        found.append(environment["MASTER_PORT"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "given",
    [
        {},
        SCRIPT,
        SHELL,
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, **TORCHRUN},
        {**MPI, **TORCHRUN},
        {**STEP, "WORLD_SIZE": "1"},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
    ],
)
def test_one_process_and_those_of_another_launcher_stay(given: dict[str, str]) -> None:
    environment = {**given}
    assert started.adopt(environment) is None
    assert environment == given


@pytest.mark.parametrize(
    ("given", "lacks", "why"),
    [
        (STEP, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS.*rank is not known"),
        (STEP, "SLURM_STEP_NODELIST", "MASTER_ADDR"),
        ({**STEP, "SLURM_STEP_NODELIST": "a[1"}, "", "MASTER_ADDR"),
        ({**STEP, "SLURM_PROCID": "4"}, "", "rank is 4"),
        ({**STEP, "WORLD_SIZE": "3"}, "", "WORLD_SIZE is 3"),
        ({**STEP, "SLURM_NTASKS": "1"}, "", "left from another step"),
        ({**STEP, "SLURM_PTY_PORT": "1"}, "", "--pty"),
        (MPI, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE.*rank is not known"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "", "MASTER_ADDR"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "", "PMI_SIZE.*rank on its node is not known"),
    ],
)
def test_processes_that_cannot_find_each_other_are_not_runs_of_their_own(
    given: dict[str, str], lacks: str, why: str
) -> None:
    environment = {name: text for name, text in given.items() if name != lacks}
    with pytest.raises(UserError, match=f"started {given.get('PMI_SIZE', '.')}.*{why}"):
        started.adopt(environment)


def test_an_incomplete_launch_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert train.main(settings("mae", tmp_path, tmp_path / "run")) == 2
    assert "WORLD_SIZE=1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    errors.set_rank(0)


def test_a_number_that_deepspeed_adds_is_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")  # ends it after the command line was read
    for option in ("--local_rank=0", "--local-rank=0"):
        assert train.main([option, *settings("mae", tmp_path, tmp_path / "run")]) == 2
        assert "PMI_SIZE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("gpu[07-08,11],x1", "gpu07 gpu08 gpu11 x1"),
        ("127.0.0.[9-10]", "127.0.0.9 127.0.0.10"),
        ("a[1-2]-ib[0-1]", "a1-ib0 a1-ib1 a2-ib0 a2-ib1"),
        ("login", "login"),
        ("n[098-101]", "n098 n099 n100 n101"),
    ],
)
def test_a_list_of_nodes(nodes: str, names: str) -> None:
    assert hostlist.expand(nodes) == names.split()


@pytest.mark.parametrize("nodes", ["", "a[1-2", "a[3-1]", "a[]", "a,,b", "a b", "a[x]"])
def test_what_is_not_a_list_of_nodes(nodes: str) -> None:
    for read in (hostlist.expand, hostlist.repeated):
        with pytest.raises(ValueError, match=r"is not a list|ends before"):
            read(nodes)


def test_counts_of_tasks() -> None:
    assert hostlist.repeated("2(x3),1") == [2, 2, 2, 1]
