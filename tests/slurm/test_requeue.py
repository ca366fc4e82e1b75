"""A run on a real SLURM that is stopped, by every means, goes on by itself to the same bits.

Every run here computes the same: what it logs is compared with a run that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lensdist.phases import completed
from tests.chains import jobs_of, submit, write_chain, write_cluster
from tests.conftest import forked, settings, start
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.watch import attempts_of, log_of, losses, wait_step

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

STEPS = 200
RUN = {
    "train.max_steps": STEPS,
    "train.epochs": 1000,
    "train.log_every": 2,
    "train.eval_every_epochs": 100,
    "checkpoint.every_steps": 20,
    # The same bits on any number of nodes.
    "train.reproducible": "true",
    "train.micro_batch": 8,
}
ONE = {"executor": "slurm", "cpus_per_task": 1}


@pytest.fixture(scope="module")
def undisturbed(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = forked("lensdist.train", *settings("mae", tiny_set, run, **RUN))
    assert done.returncode == 0, done.stderr
    return losses(run)


class Sent:
    """A pretraining on the cluster."""

    def __init__(
        self, cluster: MiniSlurm, data: Path, folder: Path, *words: str, **where: object
    ) -> None:
        self.slurm = cluster
        self.env = cluster.environment
        self.chain = write_chain(folder, data)
        self.runs = folder / "runs"
        self.run = self.runs / "pretrain"
        self.where = write_cluster(folder, **{**ONE, **where})
        given = [f"{key}={value}" for key, value in RUN.items()]
        submit("submit", self.chain, self.where, "pretrain", *given, *words, env=self.env)
        self.job = jobs_of(self.runs)["pretrain"]

    def text(self) -> str:
        return log_of(self.runs, self.job)

    def completes(self, losses_of: dict[int, float], timeout: float = 800) -> None:
        """Wait for the end: complete, with the losses of the run that nobody disturbed."""
        state = self.slurm.finished(self.job, timeout)
        assert state == "COMPLETED", self.text()
        record = completed(self.run)
        assert record is not None
        assert record["steps"] == STEPS
        assert losses(self.run) == losses_of

    def ends(self) -> list[str | None]:
        """The verdict on each attempt; None on those that SLURM took away."""
        return [a.ended.verdict if a.ended else None for a in attempts_of(self.runs, "pretrain")]


def test_a_run_outlives_its_time_limit(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    # The signal must not come before the run can have begun, which takes as long as importing here.
    began = time.monotonic()
    start([sys.executable, "-c", "import lensdist.runs.phase, lensdist.distributed.device_check"])
    until = max(20, math.ceil(5 * (time.monotonic() - began)))
    walltime = until // 60 + 2
    sent = Sent(
        cluster, tiny_set, tmp_path, walltime=walltime, save_before_end=60 * walltime - until
    )
    wait_step(sent.run, 4)
    # However fast the machine is: the run stands still until SLURM has sent its signal.
    with contextlib.suppress(OSError, ValueError):  # it may have heard the signal, and be gone
        words = b"lensdist.train"
        (run,) = (p for p in cluster.tasks(sent.job, "127.0.0.1") if words in _command(p))
        os.kill(run, signal.SIGSTOP)
        try:
            end = time.monotonic() + until + 90
            while not _is_pending(run, signal.SIGUSR2):
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            os.kill(run, signal.SIGCONT)
    sent.completes(undisturbed)
    ends = sent.ends()
    assert len(ends) > 1
    assert ends == ["requeue"] * (len(ends) - 1) + ["done"]
    # Once for each: by us, not by SLURM and us.
    assert int(cluster.job(sent.job)["Restarts"]) == len(ends) - 1
    assert "asked to stop, and saved at step" in sent.text()


def _command(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def _is_pending(process: int, number: int) -> bool:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_a_preempted_run_comes_back_and_keeps_off_drained_nodes(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    sent = Sent(cluster, tiny_set, tmp_path, nodes=2)
    wait_step(sent.run, 4)
    cluster.drain("127.0.0.1")
    drained_at = wait_step(sent.run, 8)  # and the run goes on
    cluster.run(
        "sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null",
        "--wrap=sleep 1",
    )  # fmt: skip
    sent.completes(undisturbed)
    first, second = attempts_of(sent.runs, "pretrain")
    assert first.started.nodes == ("127.0.0.1", "127.0.0.2")
    assert first.ended is not None
    assert (first.ended.verdict, first.ended.kind) == ("requeue", "saved")
    assert first.ended.step >= drained_at
    assert second.started.step == first.ended.step
    assert len(second.started.nodes) == 2
    assert "127.0.0.1" not in second.started.nodes


@pytest.mark.parametrize("requeue", [1, 0])
def test_a_run_that_is_preempted_by_cancelling_goes_on(
    cluster: MiniSlurm,
    tiny_set: Path,
    tmp_path: Path,
    undisturbed: dict[int, float],
    requeue: int,
) -> None:
    """Without a grace; and where nothing may be requeued, a new job takes over (F1).

    The job runs two phases, of which the first is complete by then. Runs read a copy of the set.
    """
    chain = write_chain(tmp_path, tiny_set)
    text = json.loads(chain.read_text())
    images = {"simulate": {"family": "model_i", "n_per_class": 3}, "together": True}
    text["phases"] = {"images": images, **text["phases"]}
    text["phases"]["pretrain"]["together"] = True
    chain.write_text(json.dumps(text))
    disk = tmp_path / "disk"
    disk.mkdir()
    where = write_cluster(tmp_path, **ONE, partition="scavenge", stage="data", stage_to=str(disk))
    runs, given = tmp_path / "runs", [f"pretrain.{key}={value}" for key, value in RUN.items()]
    names = ("images", "pretrain", "finetune")
    submit("submit", chain, where, *names, *given, env=cluster.environment)
    old = jobs_of(runs)
    assert old["images"] == old["pretrain"]
    cluster.run("scontrol", "update", f"JobId={old['pretrain']}", f"Requeue={requeue}")
    wait_step(runs / "pretrain", 30)
    cluster.run(
        "sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null",
        "--wrap=sleep 1",
    )  # fmt: skip
    assert cluster.finished(old["finetune"], 800) == "COMPLETED"  # it was never sent again
    new = jobs_of(runs)
    assert (new["pretrain"] == old["pretrain"]) == bool(requeue)
    assert new["finetune"] == old["finetune"]
    assert new["images"] == old["images"]
    assert len([*disk.glob("lensdist-*/*/manifest.json")]) == 1
    (made,) = attempts_of(runs, "images")
    assert made.ended is not None
    assert made.ended.verdict == "done"
    told = submit("logs", chain, where, "images", env=cluster.environment).stdout
    assert "images: complete" in told
    first, second = attempts_of(runs, "pretrain")
    assert first.ended is not None
    assert (first.ended.verdict, first.ended.kind) == ("requeue", "saved")
    assert first.ended.reason.startswith("preempted; saved at step")
    assert second.started.step == first.ended.step >= 30
    assert second.started.job == new["pretrain"]
    assert losses(runs / "pretrain") == undisturbed


def test_a_cancelled_run_saves_and_stays_cancelled_until_it_is_resumed(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    sent = Sent(cluster, tiny_set, tmp_path, nodes=2)
    wait_step(sent.run, 4)
    told = submit("cancel", sent.chain, sent.where, env=sent.env).stdout
    assert f"pretrain: job {sent.job} cancelled" in told
    assert cluster.finished(sent.job, 60) == "CANCELLED"
    (attempt,) = attempts_of(sent.runs, "pretrain")
    assert attempt.ended is not None
    assert attempt.ended.verdict == "leave"
    assert "cancelled; saved at step" in attempt.ended.reason
    assert attempt.ended.step >= 4
    assert int(cluster.job(sent.job)["Restarts"]) == 0

    # The same samples in the same order, on another number of nodes.
    submit("resume", sent.chain, sent.where, "pretrain", "--nodes", "1", env=sent.env)
    sent.job = jobs_of(sent.runs)["pretrain"]
    sent.completes(undisturbed)
    assert attempts_of(sent.runs, "pretrain")[1].started.nodes == ("127.0.0.1",)
    assert attempts_of(sent.runs, "pretrain")[1].started.step == attempt.ended.step


def test_killed_tasks_of_a_node_are_a_crash_that_is_tried_again(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    sent = Sent(cluster, tiny_set, tmp_path, nodes=2, requeue={"backoff": 1})
    wait_step(sent.run, 30)
    for process in cluster.tasks(sent.job, "127.0.0.2"):
        os.kill(process, signal.SIGKILL)
    sent.completes(undisturbed)
    first, second = attempts_of(sent.runs, "pretrain")
    assert first.ended is not None
    assert (first.ended.verdict, first.ended.kind) == ("requeue", "silent")
    assert "process 1 on 127.0.0.2 left no exit report" in first.ended.reason
    assert second.started.step >= 20


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    sent = Sent(cluster, tiny_set, tmp_path)
    wait_step(sent.run, 30)
    cluster.node_crash("127.0.0.1")
    sent.completes(undisturbed)
    assert sent.ends() == [None, "done"]  # it could not say good-bye; SLURM queued it again
    second = attempts_of(sent.runs, "pretrain")[1]
    assert second.started.nodes != ("127.0.0.1",)
    assert second.started.step >= 20


def test_a_node_that_fails_its_check_is_left_out(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    check = 'test "$SLURMD_NODENAME" != 127.0.0.1 || { echo the fan is broken; false; }'
    # As many nodes as are free, of which two can share two micro-batches evenly.
    sent = Sent(cluster, tiny_set, tmp_path, nodes="1-3", preflight={"command": check})
    sent.completes(undisturbed)
    first, second = attempts_of(sent.runs, "pretrain")
    assert first.started.nodes == ("127.0.0.1", "127.0.0.2")
    assert first.ended is not None
    assert first.ended.excluded == ("127.0.0.1",)
    assert "the fan is broken" in first.ended.reason
    assert cluster.job(sent.job)["ExcNodeList"] == "127.0.0.1"
    assert cluster.job(sent.job)["NodeList"] == "127.0.0.[2-4]"
    assert second.started.nodes == ("127.0.0.2", "127.0.0.3")
    assert "2 of 3 nodes share the step evenly" in sent.text()
    assert "on 2 process(es)" in sent.text()


def test_nodes_without_the_environment_are_left_out(
    cluster: MiniSlurm, tiny_set: Path, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    """F2: the first node of a job, before any Python, and another one, which is silent."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("hiding the system's own Python would hide all else")
    for bad in ("127.0.0.1", "127.0.0.3"):
        cluster.hide(bad, Path(sys.prefix))
    sent = Sent(cluster, tiny_set, tmp_path, nodes=2, srun={"wait": "5"})
    sent.completes(undisturbed)
    assert "127.0.0.1 does not see" in sent.text()
    first, second = attempts_of(sent.runs, "pretrain")
    assert first.started.nodes == ("127.0.0.2", "127.0.0.3")
    assert first.ended is not None
    assert first.ended.excluded == ("127.0.0.3",)
    assert second.started.nodes == ("127.0.0.2", "127.0.0.4")
    assert cluster.job(sent.job)["ExcNodeList"] == "127.0.0.1,127.0.0.3"
