"""What `why` advises where a phase does not come to start, or to start again."""

from __future__ import annotations

import pytest

from lensdist.utils.files import write_atomic
from slurm.job_side.node_health import Report
from slurm.monitor import status
from slurm.monitor.diagnose import first_failed, why
from slurm.monitor.known_errors import KINDS
from tests.unit.standing import T0, Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["standing"]

_RESUME = "Next: python slurm/submit.py resume {}"


def _page(chain: Standing, phase: str = "pretrain") -> str:
    """The page, of which nothing but paths is longer than a line, as one line."""
    target = next(target for target in chain.targets if target.phase == phase)
    return " ".join(why(target, chain.state, chain.targets).split())


def _unfit(chain: Standing, *, shared: bool) -> None:
    """Attempt 1 ended because a node failed its check."""
    chain.sent("pretrain", "17")
    chain.started("pretrain", "17")
    chain.ended("pretrain", "17", "requeue", "node check failed: gpu08 is so", kind="device")
    said = {"host": "gpu08", "node": 1, "time": T0, "versions": {}, "problem": "gpu08 is so"}
    report = Report.model_validate(said | {"shared": shared})
    write_atomic(chain.attempt("pretrain") / "node-00001.json", report.model_dump_json())


@pytest.mark.parametrize(("shared", "kind"), [(True, "shared"), (False, "device")])
def test_what_all_nodes_share_is_nothing_for_the_centre(
    standing: Standing, shared: bool, kind: str
) -> None:
    standing.slurm(squeue="17|PENDING|BeginTime||N/A")
    _unfit(standing, shared=shared)
    page = _page(standing)
    assert KINDS[kind] in page
    assert ("computing centre" in page) != shared


def test_nodes_that_the_launcher_left_out_itself_are_named(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|BadConstraints||N/A")
    standing.sent("pretrain", "17")
    old = {"verdict": "stop", "excluded": ("gpu01",), "reason": "long ago"}
    standing.attempt_log("pretrain").append("ended", "9", "older", **old)
    for attempt in range(1, 5):
        standing.started("pretrain", "17", attempt)
        left_out = {"attempt": attempt, "excluded": (f"gpu1{attempt}",), "kind": "device"}
        standing.ended("pretrain", "17", "requeue", f"no fan {attempt}", **left_out)
    assert first_failed(standing.targets, standing.state) == standing.pretrain
    page = _page(standing)
    assert "(job 17, PENDING: BadConstraints) cannot start" in page
    named = "gpu14 (no fan 4); gpu13 (no fan 3); gpu12 (no fan 2); gpu11"
    assert f"excluded {named}, and SLURM" in page
    assert "gpu01" not in page
    assert page.endswith(_RESUME.format("pretrain"))


def test_nodes_that_there_never_were_are_asked_for_otherwise(standing: Standing) -> None:
    standing.slurm(squeue="17|PENDING|BadConstraints||N/A")
    standing.sent("pretrain", "17")
    page = _page(standing)
    assert "The launcher itself" not in page
    assert page.endswith("submit … cluster.nodes=N")


@pytest.mark.parametrize("by", ["slurm", "ledger"])
def test_what_was_cancelled_does_not_start_after_what_it_needs(standing: Standing, by: str) -> None:
    waits = "17|PENDING|Priority||N/A"
    standing.slurm(squeue=waits, sacct="18|CANCELLED by 5|None||0:0" if by == "slurm" else "")
    standing.sent("pretrain", "17")
    standing.sent("finetune", "18")
    if by == "ledger":
        standing.attempt_log("finetune").append("cancelled", "18", "first")
    page = _page(standing, "finetune")
    assert "no longer starts by itself" in page
    assert page.endswith(_RESUME.format("finetune"))
    standing.slurm(squeue=f"{waits}\n18|PENDING|Dependency||N/A")  # scancel did not succeed
    assert "It starts by itself after that" in _page(standing, "finetune")


def test_a_launcher_here_does_not_start_what_was_cancelled(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "is_ours", lambda job: job == "42")
    for phase in ("pretrain", "finetune"):
        standing.sent(phase, "42", executor="local")
    assert "resume" not in _page(standing, "finetune")
    standing.attempt_log("finetune").append("cancelled", "42", "first")
    assert _page(standing, "finetune").endswith(_RESUME.format("finetune"))


@pytest.mark.parametrize(
    ("reason", "kind", "says"),
    [
        ("cancelled; saved at step 40", "saved", "cancelled"),
        ("SLURM has requeued it itself; ended with code 9", "silent", "silent"),
        ("ended by SLURM (PREEMPTED); asked to stop, and saved", "saved", "saved"),
    ],
)
def test_what_slurm_decided_is_not_called_cancelled(
    standing: Standing, reason: str, kind: str, says: str
) -> None:
    standing.slurm()
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.ended("pretrain", "17", "leave", reason, kind=kind)
    page = _page(standing)
    assert KINDS[says] in page
    assert (KINDS["cancelled"] in page) == (says == "cancelled")


def test_a_file_that_cannot_be_read_is_to_be_mended_first(standing: Standing) -> None:
    standing.slurm(sacct="17|FAILED|None|gpu07|1:0")
    job = standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.train("pretrain", 40)
    job.folder.chmod(0o755)
    page = _page(standing)
    assert f"`chmod 700 {job.folder}`" in page
    assert "resume" not in page
    assert "no checkpoint" not in page  # nobody has looked
    job.folder.chmod(0o700)
    (job.folder / "pretrain.json").write_text("{}")
    page = _page(standing)
    assert "pretrain.json is not a job of this version: " in page
    assert "`submit` sends the phase anew" in page
    assert "resume" not in page


def test_a_survivor_that_stays_is_explained(standing: Standing) -> None:
    standing.slurm(sacct="17|FAILED|None|gpu07|1:0")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.ended("pretrain", "17", "stop", "the folder is taken", kind="busy")
    page = _page(standing)
    assert KINDS["busy"] in page
    assert page.endswith(_RESUME.format("pretrain"))
