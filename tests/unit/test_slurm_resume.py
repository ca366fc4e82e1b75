"""Sending again what stopped, and cancelling, with a fake SLURM."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lensdist.config import load, save
from lensdist.config.schema import schema_of
from lensdist.utils.errors import RunError, UserError
from slurm import scheduler
from slurm.job import Job, load_job
from slurm.monitor import status
from slurm.submission.resume import cancel, resume
from slurm.submission.snapshot import copy_code
from tests.conftest import ROOT, settings
from tests.fakes.slurm import FakeSlurm
from tests.unit.queued import fake, sendings, waits
from tests.unit.standing import Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["fake", "standing"]


class Chain(Standing):
    """pretrain -> finetune -> evaluate, and the SLURM that it was sent to."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, fake: FakeSlurm) -> None:
        super().__init__(folder, patch)
        self.fake = fake
        patch.setenv("PATH", fake.environment["PATH"])

    def queue(self, phase: str, *, on: dict[str, Any] | None = None, **changes: Any) -> str:
        """Send a phase as a job that now is so; its id."""
        job = self.fake.add(**changes)
        self.sent(phase, job, **(on or {}))
        return job

    def broken(self) -> list[str]:
        """The first phase has failed, and SLURM has cancelled those that waited for it."""
        states = {"pretrain": "FAILED", "finetune": "CANCELLED", "evaluate": "CANCELLED"}
        return [self.queue(phase, state=state) for phase, state in states.items()]

    def resume(self, *names: str, nodes: str | None = None) -> list[str]:
        """What is said."""
        said: list[str] = []
        resume(self.targets, self.state, names, nodes, said.append)
        return said

    def cancel(self, phases: Sequence[str] = ("pretrain", "finetune", "evaluate")) -> list[str]:
        said: list[str] = []
        cancel(
            [target for target in self.targets if target.phase in phases], self.state, said.append
        )
        return said

    def newest(self, phase: str) -> Job:
        sent = self.attempt_log(phase).events()[-1]
        assert sent.what == "sent"
        return load_job(self.state / sent.submission / f"{phase}.json")

    def configure(self, phase: str = "pretrain") -> None:
        """Give its job a configuration of four micro-batches a step."""
        words = settings("mae", self.runs / "packed", self.runs / phase)[1:]
        config = load(ROOT / "configs" / "mae" / "debug.yaml", words, schema=schema_of)
        save(config, self.state / "first" / f"{phase}.yaml")


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeSlurm) -> Chain:
    return Chain(tmp_path, monkeypatch, fake)


def _calls(chain: Chain, *programs: str) -> list[list[str]]:
    return [call for call in chain.fake.calls if call[0] in programs]


@pytest.mark.parametrize("names", [(), ("pretrain",)])
def test_dependents_are_sent_again(chain: Chain, names: tuple[str, ...]) -> None:
    chain.broken()
    before = load_job(chain.state / "first" / "finetune.json")
    said = chain.resume(*names)
    assert waits(chain.fake) == {"104": "", "105": "afterok:104", "106": "afterok:105"}
    assert said[1:3] == ["pretrain: job 104", "finetune: job 105, after 104"]
    # As it was sent: what is edited since changes nothing.
    after = chain.newest("finetune")
    assert after == before.model_copy(update={"folder": after.folder})
    assert after.folder.stat().st_mode & 0o777 == 0o700
    assert [event.job for event in chain.attempt_log("finetune").events()] == ["102", "105"]


@pytest.mark.parametrize("reason", ["DependencyNeverSatisfied", "launch failed requeued held"])
def test_what_waits_for_ever_is_cancelled_and_sent_anew(chain: Chain, reason: str) -> None:
    chain.queue("pretrain", state="FAILED")
    stuck = chain.queue("finetune", reason=reason)
    after = chain.queue("evaluate", reason="Dependency")
    said = chain.resume("pretrain")
    assert waits(chain.fake) == {"104": "", "105": "afterok:104", "106": "afterok:105"}
    assert _calls(chain, "scancel") == [["scancel", stuck, after]]
    assert f"finetune: job {stuck} could not have started; cancelled, and sent again" in said


def test_a_held_phase_is_sent_anew_though_what_it_needs_is_complete(chain: Chain) -> None:
    chain.queue("pretrain", state="COMPLETED")
    chain.complete("pretrain")
    chain.queue("finetune", reason="JobHeldUser")
    chain.resume("finetune")
    assert waits(chain.fake) == {"103": ""}


def test_what_is_in_the_queue_is_left_alone_or_refused_by_name(chain: Chain) -> None:
    chain.queue("pretrain", state="RUNNING")
    chain.queue("finetune", reason="Dependency")
    assert chain.resume() == [
        "pretrain: job 101, RUNNING; left as it is",
        "finetune: job 102, PENDING (Dependency); left as it is",
    ]
    with pytest.raises(UserError, match=r"finetune is in .*102, PENDING \(Dependency\); cancel it"):
        chain.resume("finetune")
    assert not _calls(chain, "sbatch", "scancel")


def test_complete_phases_are_skipped(chain: Chain) -> None:
    chain.queue("pretrain", state="COMPLETED")
    chain.complete("pretrain")
    chain.queue("finetune", state="TIMEOUT")
    chain.resume()
    assert waits(chain.fake) == {"103": ""}
    assert chain.resume("pretrain") == ["pretrain: complete already, skipped"]


def test_code_that_was_altered_is_not_sent_again(chain: Chain, tmp_path: Path) -> None:
    chain.broken()
    code = copy_code(tmp_path / "clone", chain.state)
    for phase in ("pretrain", "finetune", "evaluate"):
        file = chain.state / "first" / f"{phase}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"code": str(code)}))
    (code / "lensdist" / "a.py").write_text("A = 2\n")
    with pytest.raises(UserError, match="was changed after it was made"):
        chain.resume()
    assert not _calls(chain, "sbatch", "scancel")
    (code / "lensdist" / "a.py").write_text("A = 1\n")
    chain.resume()
    assert len(waits(chain.fake)) == 3


def test_what_an_earlier_version_of_the_launcher_sent_is_to_be_submitted(chain: Chain) -> None:
    chain.broken()
    (chain.state / "code" / "slurm" / "node").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^pretrain .*`submit`"):
        chain.resume()
    assert not _calls(chain, "sbatch", "scancel")


def test_what_was_never_sent_is_not_resumed(chain: Chain) -> None:
    chain.queue("pretrain", state="FAILED")
    with pytest.raises(UserError, match="finetune was never sent: use `submit`"):
        chain.resume("pretrain", "finetune")
    assert not _calls(chain, "sbatch")
    chain.resume()
    assert waits(chain.fake) == {"102": ""}


def test_what_it_needs_must_be_there_or_in_the_queue(chain: Chain) -> None:
    chain.queue("pretrain", state="FAILED")
    chain.queue("finetune", state="FAILED")
    with pytest.raises(UserError, match="finetune needs pretrain, which is not complete; resume"):
        chain.resume("finetune")
    assert sendings(chain.state) == []
    chain.fake.set("101", state="RUNNING")
    chain.resume("finetune")
    assert waits(chain.fake) == {"103": "afterok:101"}


@pytest.mark.parametrize(("nodes", "counts"), [("2", (2,)), ("2-4", (2, 4)), ("1", (1,))])
def test_another_number_of_nodes(chain: Chain, nodes: str, counts: tuple[int, ...]) -> None:
    chain.broken()
    chain.configure("pretrain")
    chain.configure("finetune")
    chain.resume("pretrain", nodes=nodes)
    jobs = chain.fake.jobs
    assert [jobs[job]["flags"]["nodes"] for job in ("104", "105", "106")] == [nodes, "1", "1"]
    assert (chain.newest("pretrain").counts, chain.newest("finetune").counts) == (counts, (1,))
    chain.cancel()
    chain.resume(nodes=nodes)
    again = [chain.fake.jobs[job]["flags"]["nodes"] for job in waits(chain.fake)]
    assert again == [nodes, nodes, "1"]  # without names: all runs


def test_a_controller_that_is_away_stops_it_before_anything_is_done(chain: Chain) -> None:
    chain.broken()
    chain.fake.down()
    for act in (chain.resume, chain.cancel):
        with pytest.raises(RunError, match="Unable to contact slurm controller"):
            act()
    assert not _calls(chain, "sbatch", "scancel")
    assert [event.what for event in chain.attempt_log("pretrain").events()] == ["sent"]


def test_what_sbatch_refuses_can_be_resumed_later(chain: Chain) -> None:
    chain.broken()
    chain.fake.refuse("Invalid account", after=1)
    with pytest.raises(RunError, match="finetune was refused, so nothing is queued"):
        chain.resume()
    assert waits(chain.fake) == {}
    chain.fake.refuse("")
    chain.resume()
    assert waits(chain.fake) == {"105": "", "106": "afterok:105", "107": "afterok:106"}


def test_cancelling_is_logged_first(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.queue("pretrain", state="COMPLETED")
    chain.queue("finetune", state="RUNNING")
    chain.queue("evaluate", reason="Dependency")
    known: list[str] = []
    really = scheduler.cancel

    def look_and_cancel(ids: Sequence[str]) -> None:
        known.extend(chain.attempt_log(p).events()[-1].what for p in ("finetune", "evaluate"))
        really(ids)

    monkeypatch.setattr(scheduler, "cancel", look_and_cancel)
    said = chain.cancel()
    assert known == ["cancelled", "cancelled"]
    assert said == ["finetune: job 102 cancelled", "evaluate: job 103 cancelled"]
    states = [job["state"] for job in chain.fake.jobs.values()]
    assert states == ["COMPLETED", "CANCELLED", "CANCELLED"]
    assert [event.what for event in chain.attempt_log("pretrain").events()] == ["sent"]
    monkeypatch.setattr(scheduler, "cancel", really)
    assert chain.cancel() == ["none of these phases is in the queue or runs"]


def test_one_phase_is_cancelled_alone(chain: Chain) -> None:
    chain.queue("pretrain", state="RUNNING")
    chain.queue("finetune", reason="Dependency")
    assert chain.cancel(["finetune"]) == ["finetune: job 102 cancelled"]
    assert chain.fake.jobs["101"]["state"] == "RUNNING"
    chain.resume("finetune")
    assert waits(chain.fake) == {"103": "afterok:101"}


@pytest.mark.parametrize(
    ("nodes", "why"), [("two", "is not a number of nodes"), ("3", "share evenly")]
)
def test_wrong_nodes_leave_no_trace(chain: Chain, nodes: str, why: str) -> None:
    chain.queue("pretrain", state="FAILED")
    chain.queue("finetune", reason="DependencyNeverSatisfied")  # would be cancelled
    chain.configure()
    with pytest.raises(UserError, match=why):
        chain.resume("pretrain", nodes=nodes)
    assert not _calls(chain, "sbatch", "scancel")
    assert sendings(chain.state) == []


def test_without_slurm_nothing_is_resumed(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.broken()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="login node"):
        chain.resume()


def test_a_live_launcher_here(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(status, "is_ours", lambda job: job == "4242")
    monkeypatch.setattr("slurm.submission.resume.dispatch", lambda jobs, *_: sent.extend(jobs))
    for phase in ("pretrain", "finetune"):
        chain.sent(phase, "4242", executor="local")
    chain.started("pretrain", "4242")
    chain.ended("pretrain", "4242", "stop", "/data/packed is not a packed set")
    assert "left as it is" in chain.resume()[-1]
    assert sent == ["pretrain"]
    assert not _calls(chain, "scancel")


def test_a_waiting_launcher_here(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other phases of it go on: only this one is not started again."""
    ended: list[int] = []
    monkeypatch.setattr(status, "is_ours", lambda job: job == "4242")
    monkeypatch.setattr(os, "kill", lambda process, number: ended.append(process))
    chain.sent("pretrain", "4242", executor="local")
    chain.started("pretrain", "4242")
    chain.sent("pretrain", "4343", executor="local")
    chain.ended("pretrain", "4343", "requeue", "it fell")
    (seen,) = status.query(chain.targets[:1], chain.state)
    assert seen.live
    chain.cancel()
    assert ended == []
    (seen,) = status.query(chain.targets[:1], chain.state)
    assert (seen.live, seen.state) == (False, ("cancelled", ""))
