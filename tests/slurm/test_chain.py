"""A chain of phases on a real SLURM of two nodes, two processes on each, gloo between them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lensdist.phases import completed
from lensdist.track.log import read
from tests.chains import jobs_of, submit, write_chain, write_cluster
from tests.slurm.minislurm import MiniSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TWO_BY_TWO = {"executor": "slurm", "nodes": 2, "processes_per_node": 2, "cpus_per_task": 2}


def _log(runs: Path, job: str, task: int = 0) -> str:
    return next(runs.glob(f".submit/*/{job}_{task}_log.out")).read_text()


def test_a_chain_runs_phase_after_phase_on_two_nodes(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, **TWO_BY_TWO)
    runs = tmp_path / "runs"
    planned = submit("plan", chain, where, env=cluster.environment).stdout
    submit("submit", chain, where, env=cluster.environment)
    jobs = jobs_of(runs)
    assert list(jobs) == ["pretrain", "finetune", "evaluate"]
    states = {phase: cluster.finished(job, 280) for phase, job in jobs.items()}
    logs = {phase: _log(runs, job) for phase, job in jobs.items()}
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
        assert _log(runs, jobs[phase], task=1) is not None
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
    folder = next(runs.glob(".submit/*"))
    assert folder.stat().st_mode & 0o777 == 0o700
    for phase, job in jobs.items():
        text = planned.split(f"---- batch script of {phase}\n")[1].split("\n\n----")[0].strip()
        text = text.replace("/NEW", f"/{folder.name}")
        for other, number in jobs.items():
            text = text.replace(f"JOB_OF_{other}", number)
        assert (folder / f"{job}_submission.sh").read_text().strip() == text

    rows = submit("status", chain, where, env=cluster.environment).stdout.splitlines()
    assert rows[1].split()[:4] == ["pretrain", jobs["pretrain"], "COMPLETED", "6/6"]
    assert [row.split()[-1] for row in rows[1:]] == ["yes"] * 3
    again = submit("submit", chain, where, env=cluster.environment).stdout
    assert again.count("complete already, skipped") == 3
    assert jobs_of(runs) == jobs


def test_what_needs_a_failed_phase_is_cancelled(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, executor="slurm")
    wrong = f"pretrain.data.path={tmp_path / 'nothing'}"
    submit("submit", chain, where, wrong, env=cluster.environment)
    jobs = jobs_of(tmp_path / "runs")
    assert cluster.finished(jobs["pretrain"], 100) == "FAILED"
    assert cluster.finished(jobs["finetune"], 60) == "CANCELLED"
    assert cluster.finished(jobs["evaluate"], 60) == "CANCELLED"
    log = _log(tmp_path / "runs", jobs["pretrain"])
    assert "is not a packed set" in log
    assert "pretrain ended with code 2 and is not complete" in log
    assert "Traceback" not in log


def test_what_sbatch_refuses_is_told_in_its_words(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    chain = write_chain(tmp_path, tiny_set)
    where = write_cluster(tmp_path, executor="slurm", partition="nope")
    told = submit("submit", chain, where, code=1, env=cluster.environment).stderr
    assert "error: pretrain was refused, so nothing is queued" in told
    assert "invalid partition" in told
    assert "Traceback" not in told


def test_a_run_told_to_stop_saves_and_goes_on_when_submitted_again(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path
) -> None:
    chain = write_chain(tmp_path, tiny_set, steps=100_000)
    where = write_cluster(tmp_path, **TWO_BY_TWO)
    run = tmp_path / "runs" / "pretrain"
    many = ["pretrain", "train.epochs=100000", "train.eval_every_epochs=1000"]
    submit("submit", chain, where, *many, env=cluster.environment)
    job = jobs_of(tmp_path / "runs")["pretrain"]
    end = time.monotonic() + 120
    while not read(run / "metrics.jsonl"):
        assert time.monotonic() < end, _log(tmp_path / "runs", job)
        time.sleep(0.5)
    cluster.run("scancel", "--signal=USR2", job)
    # Saved, but not complete: whatever waits for it with afterok must not start.
    assert cluster.finished(job, 60) == "FAILED"
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved, _log(tmp_path / "runs", job)
    assert completed(run) is None

    stop = int(saved[-1].removeprefix("step-"))
    submit("submit", chain, where, *many, f"train.max_steps={stop + 2}", env=cluster.environment)
    job = jobs_of(tmp_path / "runs")["pretrain"]
    assert cluster.finished(job, 200) == "COMPLETED", _log(tmp_path / "runs", job)
    record = completed(run)
    assert record is not None
    assert record["steps"] == stop + 2
