"""A chain of phases on a real SLURM of two nodes, two processes on each, gloo between them."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
from pathlib import Path

import pytest

from lensdist.phases import completed
from tests.chains import ODD, jobs_of, start_submit, submit, write_chain, write_cluster
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.watch import attempts_of, log_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

TWO_BY_TWO = {"executor": "slurm", "nodes": 2, "processes_per_node": 2, "cpus_per_task": 2}


def test_a_chain_runs_on_two_nodes(cluster: MiniSlurm, tiny_set: Path, tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tiny_set)
    with socket.socket() as other:  # another program has every second port that jobs may use (F9)
        port = _two_ports(other)
        where = write_cluster(tmp_path, **TWO_BY_TWO, ports=f"{port}-{port + 1}")
        _run_on_two_nodes(cluster, chain, where, tmp_path / "runs")


def _two_ports(other: socket.socket) -> int:
    """Listen on a port after which another one is free; return it."""
    for port in range(10_000, 20_000, 2):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("", port + 1))
            other.bind(("", port))
            other.listen()
            return port
    raise RuntimeError("no free ports")


def _run_on_two_nodes(cluster: MiniSlurm, chain: Path, where: Path, runs: Path) -> None:
    planned = submit("plan", chain, where, env=cluster.environment).stdout
    # Options in the shell of the user, or from a module of the centre, change nothing (F4).
    theirs = {"SBATCH_PARTITION": "high", "SBATCH_TIMELIMIT": "1", "SBATCH_EXPORT": "NONE"}
    submit("submit", chain, where, env=cluster.environment | theirs)
    jobs = jobs_of(runs)
    assert {cluster.job(job)["Partition"] for job in jobs.values()} == {"main"}
    assert list(jobs) == ["pretrain", "finetune", "evaluate"]
    states = {phase: cluster.finished(job, 400) for phase, job in jobs.items()}
    logs = {phase: log_of(runs, job) for phase, job in jobs.items()}
    assert states == dict.fromkeys(jobs, "COMPLETED"), logs

    for phase in ("pretrain", "finetune"):
        record = completed(runs / phase)
        assert record is not None
        assert record["steps"] == 6
        if phase == "finetune":
            assert record["config"]["encoder"] == str(runs / "pretrain")
        # Four processes that found each other, on the two nodes that SLURM gave.
        assert "on 4 process(es)" in logs[phase]
        assert cluster.job(jobs[phase])["NodeList"] == "127.0.0.[1-2]"
        assert log_of(runs, jobs[phase], task=1) is not None
    assert (
        "accuracy" in json.loads((runs / "finetune" / "eval" / "test.json").read_text())["metrics"]
    )
    assert cluster.job(jobs["evaluate"])["NumNodes"] == "1"
    ended, began = (
        cluster.job(jobs["pretrain"])["EndTime"],
        cluster.job(jobs["finetune"])["StartTime"],
    )
    assert began >= ended

    # What the plan showed is what sbatch was given.
    (folder,) = runs.glob(".submit/2*-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    (code,) = (runs / ".submit" / "code").iterdir()
    for phase, job in jobs.items():
        text = planned.split(f"---- batch script of {phase}\n")[1].split("\n\n----")[0].strip()
        text = text.replace("/NEW", f"/{folder.name}").replace("/CODE", f"/{code.name}")
        for other, number in jobs.items():
            text = text.replace(f"JOB_OF_{other}", number)
        assert (folder / f"{job}_submission.sh").read_text().strip() == text

    rows = submit("status", chain, where, env=cluster.environment).stdout.splitlines()
    assert rows[1].split()[:5] == ["pretrain", jobs["pretrain"], "COMPLETED", "1", "6/6"]
    assert [row.split()[-1] for row in rows[1:4]] == ["yes"] * 3
    assert [row.endswith(" node-h") for row in rows[4:]] == [True]
    again = submit("submit", chain, where, env=cluster.environment).stdout
    assert again.count("complete already, skipped") == 3
    assert jobs_of(runs) == jobs


def test_resume_sends_dependents_again(cluster: MiniSlurm, tiny_set: Path, tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, executor="slurm", cpus_per_task=1)
    runs, there = tmp_path / "runs", tmp_path / "later"
    words = ["--data-on-nodes", f"data.path={there}"]
    submit("submit", chain, where, *words, env=cluster.environment)
    jobs = jobs_of(runs)
    assert cluster.finished(jobs["pretrain"], 400) == "FAILED"
    assert cluster.finished(jobs["finetune"], 300) == "CANCELLED"
    assert cluster.finished(jobs["evaluate"], 300) == "CANCELLED"
    (attempt,) = attempts_of(runs, "pretrain")  # bad input is not tried twice
    assert attempt.ended is not None
    assert (attempt.ended.verdict, attempt.ended.kind) == ("stop", "input")
    assert "Traceback" not in log_of(runs, jobs["pretrain"])
    page = submit("why", chain, where, env=cluster.environment).stdout
    assert "is not a packed set" in page
    assert "resume pretrain" in page

    there.symlink_to(tiny_set)
    told = submit("resume", chain, where, "pretrain", env=cluster.environment).stdout
    again = jobs_of(runs)
    assert [*again] == ["pretrain", "finetune", "evaluate"]
    assert f"finetune: job {again['finetune']}, after {again['pretrain']}" in told
    states = {phase: cluster.finished(job, 400) for phase, job in again.items()}
    assert states == dict.fromkeys(again, "COMPLETED"), told


def test_a_sweep_is_an_array_and_a_table(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    tmp_path = tmp_path / ODD  # whatever the folder is called
    tmp_path.mkdir()
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, executor="slurm", cpus_per_task=1)
    sweep = ["--sweep", "finetune.optim.lr=1e-3,-1e-3,2e-3"]
    told = submit("submit", chain, where, *sweep, code=2, env=cluster.environment).stderr
    assert "optim.lr (command line): must be greater than 0, got -0.001" in told
    # One point fails on the node: it costs itself, not the others or the table.
    sweep = ["--sweep", f"finetune.data.path={tiny_set},{tmp_path / 'nothing'}"]
    submit("submit", chain, where, *sweep, "--data-on-nodes", env=cluster.environment)
    jobs = jobs_of(tmp_path / "runs")
    array = jobs[next(name for name in jobs if name.startswith("finetune@"))].split("_")[0]
    table = next(name for name in jobs if name.startswith("sweep-"))
    assert cluster.finished(jobs[table], 400) == "COMPLETED"
    states = {job: cluster.job(job)["JobState"] for job in jobs.values()}
    assert [states[f"{array}_{i}"] for i in (0, 1)] == ["COMPLETED", "FAILED"]
    assert sorted(s for n, j in jobs.items() if "evaluate@" in n for s in [states[j]]) == [
        "CANCELLED",
        "COMPLETED",
    ]
    failed = next(name for name, job in jobs.items() if job == f"{array}_1")
    told = submit("logs", chain, where, failed, env=cluster.environment).stdout
    assert "is not a packed set" in told
    told = submit("why", chain, where, failed, env=cluster.environment).stdout
    assert shlex.quote(str(chain)) in told
    rows = json.loads((tmp_path / "runs" / table / "results.json").read_text())["rows"]
    assert len(rows) == 2
    assert "accuracy" in rows[0]
    assert rows[1]["complete"] is False


def test_a_controller_that_does_not_answer_loses_no_job(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    """F3: sbatch times out, and the controller takes the job when it goes on."""
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, executor="slurm", cpus_per_task=1)
    with cluster.no_answer():
        sending = start_submit(chain, where, "pretrain", env=cluster.environment)
        assert sending.stdout is not None
        said = ""
        while "SLURM does not answer" not in said and sending.poll() is None:
            said += sending.stdout.readline()
        assert "SLURM does not answer" in said
    said += sending.communicate(timeout=400)[0]
    assert sending.returncode == 0, said
    job = jobs_of(tmp_path / "runs")["pretrain"]
    assert f"pretrain: job {job}" in said
    assert cluster.finished(job, 400) == "COMPLETED", log_of(tmp_path / "runs", job)
    assert len(attempts_of(tmp_path / "runs", "pretrain")) == 1


def test_sbatch_s_refusal_is_shown(cluster: MiniSlurm, tiny_set: Path, tmp_path: Path) -> None:
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, executor="slurm", partition="nope")
    told = submit("submit", chain, where, code=1, env=cluster.environment).stderr
    assert "error: pretrain was refused, so nothing is queued" in told
    assert "invalid partition" in told
    assert "Traceback" not in told
