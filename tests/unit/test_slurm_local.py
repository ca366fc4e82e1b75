"""The chain that SLURM runs, on this machine without it: one process, the same job function."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lensdist.phases import completed
from lensdist.track.log import read
from tests.chains import start_submit, submit, write_chain, write_cluster

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]


def test_a_chain_here_goes_on_and_is_looked_after(tiny_set: Path, tmp_path: Path) -> None:
    chain, here = write_chain(tmp_path, tiny_set), write_cluster(tmp_path)
    runs = tmp_path / "runs"
    submit("submit", chain, here, "cluster.executor=debug", "pretrain")
    assert completed(runs / "pretrain") is not None
    assert not (runs / "finetune").exists()

    # What needs mending is told, and what was sent goes on once it is mended.
    there = tmp_path / "packed"
    told = submit("submit", chain, here, f"finetune.data.path={there}", code=1)
    assert "pretrain: complete already, skipped" in told.stdout
    assert "is not a packed set" in told.stdout
    assert "error: finetune is not complete; what needs it was not started" in told.stderr
    page = submit("why", chain, here).stdout
    assert "is not a packed set" in page
    assert f"resume finetune --chain {chain}" in page
    there.symlink_to(tiny_set)
    submit("resume", chain, here, "finetune")
    record = completed(runs / "finetune")
    assert record is not None
    assert record["config"]["encoder"] == str(runs / "pretrain")
    # evaluate was sent as well, and needs nothing else: the same word heals it.
    assert "finetune: complete already" not in submit("resume", chain, here).stdout
    scores = json.loads((runs / "finetune" / "eval" / "test.json").read_text())
    assert scores["data"]["path"] == str(there)

    rows = submit("status", chain, here).stdout.splitlines()
    assert rows[0].split()[:4] == ["phase", "job", "state", "attempts"]
    assert [row.split()[2:5] for row in rows[1:3]] == [["done", "1", "6/6"], ["done", "2", "6/6"]]
    assert [row.split()[-1] for row in rows[1:]] == ["yes"] * 3
    other = submit("status", chain, here, "finetune", "cluster.nodes=9", "seed=4").stdout
    assert len(other.splitlines()) == 2  # how it was sent need not be said again
    assert "wrote" in submit("logs", chain, here, "evaluate").stdout

    shown = submit("plan", chain, here, "pretrain.optim.lr=0.5").stdout
    assert "runs again, for optim.lr: 0.001 -> 0.5; what is there is kept aside" in shown
    assert "runs again, for pretrain runs again" in shown


@pytest.mark.parametrize("executor", ["local", "debug"])
def test_a_failed_phase_ends_the_chain_with_its_reason(
    executor: str, tmp_path: Path, tiny_set: Path
) -> None:
    chain = write_chain(tmp_path, tiny_set)
    here = write_cluster(tmp_path, executor=executor)
    done = submit("submit", chain, here, f"data.path={tmp_path / 'nothing'}", code=1)
    everything = done.stdout + done.stderr
    assert "is not a packed set" in everything
    assert "given up: `python slurm/submit.py why pretrain` says more" in everything
    assert "error: pretrain is not complete; what needs it was not started" in done.stderr
    assert "Traceback" not in everything
    assert not (tmp_path / "runs" / "finetune").exists()


def test_a_crash_is_tried_again_and_then_given_up(tmp_path: Path, tiny_set: Path) -> None:
    chain = write_chain(tmp_path, tiny_set)
    here = write_cluster(tmp_path, requeue={"backoff": 0, "crashes": 2})
    # A node whose libraries are broken: the run dies before it can say anything.
    broken = "cluster.env={PYTHONHOME: /nowhere}"
    done = submit("submit", chain, here, "pretrain", broken, code=1)
    assert "pretrain: ended with code 1, without a word of why; queued again" in done.stdout
    assert "2 attempts in a row ended without a new checkpoint" in done.stdout
    page = submit("why", chain, here).stdout
    assert "2 attempts in a row" in page
    assert submit("status", chain, here, "pretrain").stdout.splitlines()[1].split()[2] == "stopped:"


def test_a_run_here_is_cancelled_from_another_terminal(tmp_path: Path, tiny_set: Path) -> None:
    chain, here = write_chain(tmp_path, tiny_set, steps=100_000), write_cluster(tmp_path)
    many = ["pretrain", "train.epochs=100000", "train.eval_every_epochs=1000"]
    with start_submit(chain, here, *many) as launcher:
        end = time.monotonic() + 120
        while not read(tmp_path / "runs" / "pretrain" / "metrics.jsonl"):
            assert time.monotonic() < end
            time.sleep(0.2)
        assert "told to save and leave" in submit("cancel", chain, here).stdout
        told = launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 1
    assert "cancelled; saved at step" in told
    assert list((tmp_path / "runs" / "pretrain" / "checkpoints").glob("step-*"))
    assert "none of these phases" in submit("cancel", chain, here).stdout
