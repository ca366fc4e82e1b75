"""What errors, SLURM's reasons and exit codes mean."""

from __future__ import annotations

import pytest

from slurm.monitor.known_errors import explain_exit, explain_waiting, find_cause

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", "train.micro_batch"),
        ("RuntimeError: CUDA error: out of memory", "train.micro_batch"),
        ("slurmstepd: error: Detected 1 oom-kill event(s)", "cluster.mem_gb"),
        ("MemoryError: Unable to allocate 9 GiB", "cluster.mem_gb"),
        ("the loss is nan at step 7; lower optim.lr", "optim.lr"),
        ("OSError: [Errno 28] No space left on device", ""),
        ("Watchdog caught collective operation timeout: WorkNCCL(", "cluster.interface"),
        ("torch.distributed.DistStoreError: Timed out after 61 seconds", "cluster.interface"),
        ("*** JOB 17 CANCELLED AT 2026-11-24 DUE TO TIME LIMIT ***", "cluster.save_before_end"),
        ("ModuleNotFoundError: No module named 'torch'", ""),
    ],
)
def test_known_errors_have_a_remedy(said: str, setting: str) -> None:
    cause = find_cause(f"RuntimeError in line 5:\n{said}\n")
    assert cause is not None
    assert setting in cause.settings
    assert bool(setting) == bool(cause.settings)


def test_other_errors_are_not_guessed_at() -> None:
    assert find_cause("ValueError: operands could not be broadcast together (5, 28)") is None


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Resources", "waits for nodes"),
        ("QOSMaxJobsPerUserLimit", "at a limit"),
        ("AssocGrpGRES", "at a limit"),
        ("AssocGrpWallLimit", "at a limit"),
        ("QOSMaxWallDurationPerJobLimit", "cluster.walltime"),
        ("InvalidQOS", "cluster.qos"),
        ("ReqNodeNotAvail, UnavailableNodes:gpu07", "down, drained or reserved"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
            "down, drained or reserved",
        ),
        ("launch_failed_requeued_held", "release it"),
        ("job requeued in held state", "Somebody holds it"),
        ("SomethingNew", "gives the reason SomethingNew"),
    ],
)
def test_what_slurm_waits_for_is_explained(reason: str, says: str) -> None:
    assert says in explain_waiting(reason).means


@pytest.mark.parametrize(
    ("code", "says"),
    [("0:9", "SIGKILL"), ("137:0", "SIGKILL"), ("0:53", "log"), ("127:0", "does not exist")],
)
def test_exit_codes_are_explained(code: str, says: str) -> None:
    assert says in explain_exit(code)


def test_exit_codes_that_say_nothing_are_not_explained() -> None:
    assert [explain_exit(code) for code in ("0:0", "1:0", "", "x:y")] == [""] * 4
