"""The page that says why a phase failed or does not run: what is on it, and what to type next."""

from __future__ import annotations

import os
import time

import pytest

from slurm.monitor import diagnose
from slurm.monitor.urgency import neediest
from tests.unit.standing import Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["standing"]

_OOM = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
_HERE = "/home/me/runs/.submit/code/lensdist"
_THERE = "/home/me/.venv/lib/python3.11/site-packages/torch"
_TRACEBACK = (
    "Traceback (most recent call last):\n"
    f'  File "{_HERE}/train.py", line 78, in launch\n    code = run(cfg, args.resume, world)\n'
    f'  File "{_HERE}/training/loop.py", line 107, in train\n    loss = task.loss(model, batch)\n'
    "           ^^^^^^^^^^^^^^^^^^^^^^^^\n"
    + f'  File "{_THERE}/nn/modules/module.py", line 1773, in _call_impl\n    return f()\n'
    * 20
    + f'  File "{_HERE}/models/vit.py", line 88, in forward\n    x = block(x)\n'
    f'  File "{_THERE}/nn/functional.py", line 59, in attention\n    return fast(q, k, v)\n'
    f"torch.{_OOM}\n"
)
# What accelerate's launcher writes when a signal ends a process.
_LAUNCHER = f"""
submitit INFO (2026-11-24 12:06:00,000) - Starting with JobEnvironment(job_id=17)
step   40/200  20%  epoch   4.00      100 img/s  left  0:03:00  loss 0.021  lr 1.00e-04
W1124 12:06:18.366000 28391 torch/distributed/elastic/multiprocessing/api.py:1028] Sending SIGTERM
E1124 12:06:18.369000 28391 torch/distributed/elastic/multiprocessing/api.py:1002] failed \
(exitcode: -9) local_rank: 1 (pid: 28648) of binary: /usr/bin/python
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "{_THERE}/distributed/run.py", line 1019, in run
    elastic_launch(
    ^^^^^^^^^^^^^^^
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
=======================================================
Root Cause (first observed failure):
[0]:
  exitcode  : -9 (pid: 28648)  (SIGKILL)
  error_file: <N/A>
-------------------------------------------------------
slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.
"""


def _out_of_memory(chain: Standing) -> None:
    """Attempt 1 saved at its limit, attempt 2 of two processes a node fell over GPU memory."""
    chain.slurm(sacct="17|FAILED|None|gpu[07-08]|1:0\n18|CANCELLED by 0|Dependency||0:0")
    chain.sent("pretrain", "17", nodes=2, gpus_per_node=2)
    chain.sent("finetune", "18")
    chain.started("pretrain", "17")
    chain.ended("pretrain", "17", "requeue", "asked to stop, and saved", kind="saved", step=120)
    chain.started("pretrain", "17", 2, step=120)
    chain.ended("pretrain", "17", "stop", f"{_OOM} (process 2 on gpu08)", attempt=2, step=160)
    chain.train("pretrain", 160, mse=0.01)
    chain.log("17", "the log\n")
    for rank, host in enumerate(["gpu07", "gpu07", "gpu08", "gpu08"]):
        first = rank == 2
        error = _OOM if first else "DistBackendError: NCCL error"
        told = {"traceback": _TRACEBACK} if first else {"echo": True}
        chain.word("pretrain", rank, host, error, attempt=2, **told)


def test_a_whole_page(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(standing.runs.parent)
    _out_of_memory(standing)
    try:
        page = standing.page("pretrain")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert page == _GOLDEN


_GOLDEN = """\
pretrain (job 17, FAILED) was stopped: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00
GiB. (process 2 on gpu08).

Failed first: process 2 on gpu08, at 14 Nov 22:13:22
  OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
    lensdist/train.py:78 in launch:  code = run(cfg, args.resume, world)
    lensdist/training/loop.py:107 in train:  loss = task.loss(model, batch)
    … 20 more
    lensdist/models/vit.py:88 in forward:  x = block(x)
    torch/nn/functional.py:59 in attention:  return fast(q, k, v)
  3 more failed, later or because of it.

attempt  start         time    nodes         steps       end
1        14 Nov 23:13  18 min  gpu07, gpu08  0 -> 120    asked to stop, and saved
2        15 Nov 00:13  18 min  gpu07, gpu08  120 -> 160  OutOfMemoryError: CUDA out of memory. Trie…

Newest checkpoint: step 160.
Log: runs/.submit/first/17_0_log.out

A GPU's memory is full. A smaller train.micro_batch needs less memory for the same step. The run
then starts again from step 0; the old one is kept.
Next, as it was submitted and with one more setting:
  python slurm/submit.py submit … pretrain.train.micro_batch=4"""


def test_what_waits_for_a_failed_phase_names_it(standing: Standing) -> None:
    _out_of_memory(standing)
    for phase, is_so in (
        ("finetune", "finetune (job 18, CANCELLED) ended before its first attempt started."),
        ("evaluate", "evaluate was never sent."),
    ):
        page = standing.page(phase, "--chain mine.yaml")
        because = "It needs this: pretrain (job 17, FAILED) was stopped: OutOfMemoryError"
        assert page.startswith(f"{is_so}\n{because}")
        assert page.endswith("Next: python slurm/submit.py why pretrain --chain mine.yaml")
    assert neediest(standing.targets, standing.state) == standing.pretrain


def test_a_process_without_a_word_is_looked_for_in_its_nodes_log(standing: Standing) -> None:
    standing.slurm(sacct="17|OUT_OF_MEMORY|None|gpu[07-08]|0:125")
    standing.sent("pretrain", "17", nodes=2, processes_per_node=2, mem_gb=64)
    standing.started("pretrain", "17")
    for rank, host in enumerate(["gpu07", "gpu07", "gpu08"]):
        standing.word("pretrain", rank, host, "RuntimeError: Connection closed by peer", echo=True)
    standing.ended("pretrain", "17", "stop", "RuntimeError: Connection closed by peer")
    standing.log("17", "the head node's\n")
    standing.log("17", _LAUNCHER, node=1)
    page = standing.page("pretrain")
    assert "Noticed first: process 0 on gpu07" in page
    assert "No exit report of process 3 (gpu08): killed, perhaps first." in page
    log = page.partition("The end of the log:\n")[2].splitlines()
    assert log[:2] == [
        "  | failed (exitcode: -9) local_rank: 1 (pid: 28648) of binary: /usr/bin/python",
        "  | slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.",
    ]
    assert log[2].startswith("Process 1 of that node: it was killed (SIGKILL)")
    assert "SLURM says OUT_OF_MEMORY, exit code 0:125: the job used more memory" in page
    assert "17_1_log.out" in page
    assert page.endswith("python slurm/submit.py submit … cluster.mem_gb=128")


def test_an_unfit_node_is_named_while_the_phase_waits_for_others(standing: Standing) -> None:
    standing.slurm(
        squeue="17|PENDING|BeginTime||N/A",
        scontrol="JobId=17 JobState=PENDING StartTime=2026-11-24T12:30:00",
    )
    standing.failed("requeue", "gpu08 is not fit", kind="device")
    standing.unfit("gpu08 has 3 of 4 GPUs")
    page = standing.page("pretrain")
    assert page.startswith("pretrain (job 17, PENDING: BeginTime) waits.\nSLURM expects to start")
    assert "Failed the check before the start:\n  gpu08 has 3 of 4 GPUs\n" in page
    assert "A node failed its check" in " ".join(page.split())
    assert page.endswith("Next: python slurm/submit.py logs -f pretrain")


def test_a_lost_node_is_told_from_a_crash(standing: Standing) -> None:
    standing.slurm(sacct="17|NODE_FAIL|None|gpu07|1:0")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.train("pretrain", 40)
    page = standing.page("pretrain")
    assert page.startswith("pretrain (job 17, NODE_FAIL) was lost in attempt 1")
    assert "0 -> 40  lost: its end was not logged" in page
    assert "Newest checkpoint: step 40; it goes on from there." in page
    assert page.endswith("Next: python slurm/submit.py resume pretrain")


def test_what_runs_has_its_progress_and_a_warning_if_it_is_quiet(standing: Standing) -> None:
    standing.slurm(squeue="17|RUNNING|None|gpu07|N/A")
    standing.sent("pretrain", "17")
    assert "is about to start its first attempt" in standing.page("pretrain")
    standing.started("pretrain", "17")
    standing.train("pretrain", 100, rate=0.5, mse=0.02)
    page = standing.page("pretrain")
    assert "runs on gpu07, gpu08, attempt 1, step 100/200, about 53 min left." in page
    assert "Nothing is wrong" in page
    metrics = standing.runs / "pretrain" / "metrics.jsonl"
    os.utime(metrics, (0, time.time() - 7800))
    assert "It has written no metrics for 2:10 h" in standing.page("pretrain")
    assert neediest(standing.targets, standing.state) == standing.pretrain


@pytest.mark.parametrize(
    ("reason", "says", "types"),
    [
        ("Priority", "Jobs of higher priority start first", ["logs -f pretrain"]),
        ("DependencyNeverSatisfied", "will never start", ["resume pretrain"]),
        ("launch failed requeued held", "release it", ["scontrol release 17"]),
        (
            "PartitionTimeLimit",
            "lower it",
            ["submit.py cancel pretrain", "submit.py submit … cluster.walltime=MINUTES"],
        ),
    ],
)
def test_reasons_to_wait(reason: str, says: str, types: list[str], standing: Standing) -> None:
    standing.slurm(squeue=f"17|PENDING|{reason}||N/A")
    standing.sent("pretrain", "17")
    page = standing.page("pretrain")
    assert f"PENDING: {reason})" in page.splitlines()[0]
    assert says in page
    assert all(words in page for words in types)


def test_what_needs_nothing_and_what_only_another_machine_knows(standing: Standing) -> None:
    assert standing.page("pretrain").endswith("Next: python slurm/submit.py submit")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    assert "Ask on a login node" in standing.page("pretrain")
    standing.complete("pretrain")
    assert standing.page("pretrain").startswith("pretrain is complete.")
    (standing.runs / "pretrain" / "export" / "model.safetensors").write_bytes(b"other")
    page = standing.page("pretrain")
    assert "is marked complete, but is damaged" in page
    assert page.splitlines()[-1].startswith(f"Next: mv {standing.runs}")
    assert neediest(standing.targets, standing.state) == standing.pretrain


def test_long_histories_are_cut(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|Priority||N/A")
    standing.sent("pretrain", "17")
    for attempt in range(1, 31):
        standing.started("pretrain", "17", attempt)
        standing.ended("pretrain", "17", "requeue", "it fell " * 30, attempt=attempt)
    page = standing.page("pretrain")
    assert f"({30 - diagnose._ATTEMPTS} earlier)" in page
    assert "\n30 " in page
    assert "\n25 " not in page


def test_of_a_log_of_several_attempts_the_last_words_count(standing: Standing) -> None:
    standing.slurm(sacct="17|FAILED|None|gpu07|0:9")
    standing.sent("evaluate", "17")
    standing.started("evaluate", "17", nodes=("gpu07",))
    standing.ended("evaluate", "17", "stop", "ended with code 137", kind="silent")
    standing.complete("finetune")
    first = "*** JOB 17 CANCELLED AT 2026-11-24 DUE TO TIME LIMIT ***\n"
    standing.log("17", f"{first}OSError: [Errno 28] No space left on device\nConnection refused\n")
    page = standing.page("evaluate")
    assert "SLURM says FAILED, exit code 0:9: it was killed (SIGKILL)" in page
    assert "make room where the runs are" in page
    assert page.endswith("Next: python slurm/submit.py resume evaluate")
