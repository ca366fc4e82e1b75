"""What a colleague of the same group may read: nothing, unless the cluster's file says so."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensdist.utils.errors import UserError
from slurm.config.cluster import Cluster
from slurm.job import Job, Target, load_job, sent_job
from slurm.submission.send import new_submission
from tests.unit.jobs import make_job

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def _sent(runs: Path, share: str | None) -> Job:
    """What `submit` leaves of a phase."""
    state = runs / ".submit"
    folder = new_submission(state, share)
    target = Target(phase="pretrain", run=runs / "pretrain")
    job = make_job(target, state, folder.name, code=state / "code", cluster={"share": share})
    job.log("sent", "17")
    return job


def _modes(job: Job) -> list[str]:
    paths = (job.state, job.folder, job.file, job.attempt_log.path)
    return [f"{stat.S_IMODE(path.stat().st_mode):o}" for path in paths]


def test_a_group_reads_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, shared = _sent(tmp_path / "mine", None), _sent(tmp_path / "shared", "group")
    assert _modes(mine) == ["700", "700", "600", "600"]
    assert _modes(shared) == ["750", "750", "640", "640"]
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o750
    assert load_job(shared.file).cluster.share == "group"
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)  # a colleague
    (event,) = shared.attempt_log.events()
    assert sent_job(shared.state, event, "pretrain") == shared
    with pytest.raises(UserError, match="who owns it"):
        load_job(shared.file)  # nobody executes what another has written
    with pytest.raises(UserError, match="only look at"):
        new_submission(shared.state)


@pytest.mark.parametrize(("share", "mode"), [(None, 0o750), ("group", 0o770), ("group", 0o755)])
def test_what_is_open_further_is_refused(tmp_path: Path, share: str | None, mode: int) -> None:
    job = _sent(tmp_path, share)
    job.folder.chmod(mode)
    with pytest.raises(UserError, match="chmod 700"):
        load_job(job.file)


def test_a_chain_that_is_shared_no_longer_is_closed(tmp_path: Path) -> None:
    job = _sent(tmp_path, "group")
    new_submission(job.state)
    assert stat.S_IMODE(job.state.stat().st_mode) == 0o700
    assert Cluster().share is None
