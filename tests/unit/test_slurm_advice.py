"""What `why` advises for a phase that does not start, or does not start again."""

from __future__ import annotations

import pytest

from slurm.monitor import status
from slurm.monitor.known_errors import KINDS
from slurm.monitor.urgency import neediest
from tests.unit.standing import Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["standing"]

_RESUME = "Next: python slurm/submit.py resume {}"


def _page(chain: Standing, phase: str = "pretrain") -> str:
    """Return the page as one line."""
    return " ".join(chain.page(phase).split())


@pytest.mark.parametrize(("shared", "kind"), [(True, "shared"), (False, "device")])
def test_a_problem_of_all_nodes(standing: Standing, shared: bool, kind: str) -> None:
    standing.slurm(squeue="17|PENDING|BeginTime||N/A")
    standing.failed("requeue", "node check failed: gpu08 is so", kind="device")
    standing.unfit("gpu08 is so", shared=shared)
    page = _page(standing)
    assert KINDS[kind] in page
    assert ("computing centre" in page) != shared


def test_nodes_that_the_launcher_excluded_are_named(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|BadConstraints||N/A")
    standing.sent("pretrain", "17")
    assert "The launcher itself" not in _page(standing)
    assert _page(standing).endswith("submit … cluster.nodes=N")
    old = {"verdict": "stop", "excluded": ("gpu01",), "reason": "long ago"}
    standing.attempt_log("pretrain").append("ended", "9", "older", **old)
    for attempt in range(1, 5):
        standing.started("pretrain", "17", attempt)
        more = {"attempt": attempt, "excluded": (f"gpu1{attempt}",), "kind": "device"}
        standing.ended("pretrain", "17", "requeue", f"no fan {attempt}", **more)
    assert neediest(standing.targets, standing.state) == standing.pretrain
    page = _page(standing)
    assert "(job 17, PENDING: BadConstraints) cannot start" in page
    named = "gpu14 (no fan 4); gpu13 (no fan 3); gpu12 (no fan 2); gpu11"
    assert f"excluded {named}, and SLURM" in page
    assert "gpu01" not in page
    assert page.endswith(_RESUME.format("pretrain"))


@pytest.mark.parametrize("by", ["slurm", "log", "log on a laptop"])
def test_a_cancelled_phase_does_not_start_after_what_it_needs(standing: Standing, by: str) -> None:
    waits = "17|PENDING|Priority||N/A"
    if by != "log on a laptop":
        standing.slurm(squeue=waits, sacct="18|CANCELLED by 5|None||0:0" if by == "slurm" else "")
    standing.sent("pretrain", "17")
    standing.sent("finetune", "18")
    if by != "slurm":
        standing.attempt_log("finetune").append("cancelled", "18", "first")
    page = _page(standing, "finetune")
    assert "no longer starts by itself" in page
    assert page.endswith(_RESUME.format("finetune"))
    standing.slurm(squeue=f"{waits}\n18|PENDING|Dependency||N/A")  # scancel did not succeed
    page = _page(standing, "finetune")
    assert "It starts by itself after that" in page
    assert page.endswith("Next: python slurm/submit.py logs -f pretrain")


def test_a_cancelled_phase_here(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "is_ours", lambda job: job == "42")
    for phase in ("pretrain", "finetune"):
        standing.sent(phase, "42", executor="local")
    assert "resume" not in _page(standing, "finetune")
    standing.attempt_log("finetune").append("cancelled", "42", "first")
    assert _page(standing, "finetune").endswith(_RESUME.format("finetune"))


@pytest.mark.parametrize(
    ("verdict", "reason", "kind", "says"),
    [
        ("leave", "cancelled; saved at step 40", "saved", "cancelled"),
        ("leave", "SLURM has requeued it itself; ended with code 9", "silent", "silent"),
        ("leave", "ended by SLURM (PREEMPTED); asked to stop, and saved", "saved", "saved"),
        ("stop", "the folder is taken", "busy", "busy"),
        ("stop", "packed is not a packed set", "input", "input"),
    ],
)
def test_each_kind_of_end(
    standing: Standing, verdict: str, reason: str, kind: str, says: str
) -> None:
    standing.slurm()
    standing.failed(verdict, reason, kind=kind)
    page = _page(standing)
    assert [name for name, text in KINDS.items() if text in page] == [says]
    assert page.endswith(_RESUME.format("pretrain"))


def test_a_file_that_cannot_be_read_is_to_be_corrected_first(standing: Standing) -> None:
    standing.slurm(sacct="17|FAILED|None|gpu07|1:0")
    job = standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.train("pretrain", 40)
    job.folder.chmod(0o755)
    open_to_others = _page(standing)
    assert f"`chmod 700 {job.folder}`" in open_to_others
    assert "no checkpoint" not in open_to_others  # nobody has looked
    job.folder.chmod(0o700)
    (job.folder / "pretrain.json").write_text("{}")
    older = _page(standing)
    assert "pretrain.json is not a job of this version: " in older
    assert "resume" not in open_to_others + older
