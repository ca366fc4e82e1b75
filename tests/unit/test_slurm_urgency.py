"""`why` without a name speaks about the phase that needs its user most."""

from __future__ import annotations

import os
import time

import pytest

from slurm.monitor.urgency import neediest
from tests.unit.standing import Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["standing"]


def _picked(chain: Standing) -> str:
    found = neediest(chain.targets, chain.state)
    assert found is not None
    return found.phase


def test_the_order_of_need(standing: Standing) -> None:
    """Each line is worse than those before, and is in the phase that the chain names later."""
    standing.sent("pretrain", "17")
    standing.sent("finetune", "18")
    runs, after = "17|RUNNING|None|gpu07|N/A", "18|PENDING|Dependency||N/A"
    standing.slurm(squeue=f"{runs}\n{after}")
    assert _picked(standing) == "pretrain"
    standing.slurm(squeue=f"17|PENDING|Priority||N/A\n{after}")
    assert _picked(standing) == "pretrain"
    standing.slurm(squeue=f"{runs}\n18|PENDING|Priority||N/A")
    assert _picked(standing) == "finetune"
    for reason in ("PartitionTimeLimit", "JobHeldUser", "DependencyNeverSatisfied"):
        standing.slurm(squeue=f"17|PENDING|QOSMaxJobsPerUserLimit||N/A\n18|PENDING|{reason}||N/A")
        assert _picked(standing) == "finetune", reason
        page = standing.page("finetune")
        assert reason in page.splitlines()[0]
    standing.slurm(squeue=runs, sacct="18|FAILED|NonZeroExitCode||1:0")
    assert _picked(standing) == "finetune"


def test_a_phase_in_back_off_and_a_silent_one_come_before_one_that_waits(
    standing: Standing,
) -> None:
    standing.slurm(
        squeue="17|PENDING|Priority||N/A\n18|PENDING|BeginTime||N/A",
        scontrol="JobId=18 JobState=PENDING StartTime=2026-11-24T12:30:00",
    )
    standing.sent("pretrain", "17")
    standing.failed("requeue", "the file vanished", phase="finetune", job="18")
    assert _picked(standing) == "finetune"
    standing.complete("pretrain")
    page = standing.page("finetune")
    assert "the file vanished" in page
    assert "2026-11-24 12:30:00" in page
    assert "resume" not in page
    (standing.runs / "pretrain" / "COMPLETE.json").unlink()

    standing.slurm(squeue="17|PENDING|Priority||N/A\n18|RUNNING|None|gpu07|N/A")
    standing.train("finetune", 20)
    assert _picked(standing) == "pretrain"
    os.utime(standing.runs / "finetune" / "metrics.jsonl", (0, time.time() - 7800))
    assert _picked(standing) == "finetune"


def test_a_preempted_phase_says_so_while_it_waits(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|Priority||N/A")
    reason = "SLURM has requeued it itself; preempted, and saved at step 40"
    standing.failed("leave", reason, kind="saved")
    page = standing.page("pretrain")
    assert reason in " ".join(page.split())
    assert page.endswith("logs -f pretrain")


def test_nothing_to_say_about_what_is_complete_or_was_never_sent(standing: Standing) -> None:
    standing.slurm()
    assert neediest(standing.targets, standing.state) is None
    standing.sent("pretrain", "17")
    standing.complete("pretrain")
    assert neediest(standing.targets, standing.state) is None
