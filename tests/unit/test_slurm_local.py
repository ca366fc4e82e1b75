"""The chain that SLURM runs, on this machine without it: one process, the same job function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lensdist.phases import completed
from tests.chains import jobs_of, submit, write_chain, write_cluster

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]


def test_a_chain_here_is_skipped_once_complete_and_refused_once_changed(
    tiny_set: Path, tmp_path: Path
) -> None:
    chain, here = write_chain(tmp_path, tiny_set), write_cluster(tmp_path)
    runs = tmp_path / "runs"
    submit("submit", chain, here, "cluster.executor=debug", "pretrain")
    assert completed(runs / "pretrain") is not None
    assert not (runs / "finetune").exists()

    done = submit("submit", chain, here).stdout
    assert "pretrain: complete already, skipped" in done
    record = completed(runs / "finetune")
    assert record is not None
    assert record["config"]["encoder"] == str(runs / "pretrain")
    scores = json.loads((runs / "finetune" / "eval" / "test.json").read_text())
    assert scores["data"]["path"] == str(tiny_set)
    assert list(jobs_of(runs)) == ["finetune", "evaluate"]

    rows = submit("status", chain, here).stdout.splitlines()
    assert rows[0].split() == ["phase", "job", "state", "step", "last", "val", "complete"]
    assert rows[1].split()[3] == "6/6"
    assert rows[1].split()[4] == "mse"
    assert rows[2].split()[4] == "accuracy"
    assert [row.split()[-1] for row in rows[1:]] == ["yes"] * 3
    other = submit("status", chain, here, "finetune", "cluster.nodes=9", "seed=4").stdout
    assert len(other.splitlines()) == 2  # how it was sent need not be said again

    told = submit("submit", chain, here, "pretrain.optim.lr=0.5", code=2).stderr
    assert "was completed with other settings (optim.lr: 0.001 -> 0.5)" in told


@pytest.mark.parametrize("executor", ["local", "debug"])
def test_a_failed_phase_ends_the_chain_with_its_reason(
    executor: str, tmp_path: Path, tiny_set: Path
) -> None:
    chain = write_chain(tmp_path, tiny_set)
    here = write_cluster(tmp_path, executor=executor)
    done = submit("submit", chain, here, f"data.path={tmp_path / 'nothing'}", code=1)
    everything = done.stdout + done.stderr
    assert "is not a packed set" in everything
    assert "pretrain ended with code 2 and is not complete" in everything
    assert "error: pretrain is not complete; what needs it was not started" in done.stderr
    assert "Traceback" not in everything
    assert not (tmp_path / "runs" / "finetune").exists()
