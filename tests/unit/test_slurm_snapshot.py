"""The copy of the code that jobs run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lensdist.utils.errors import UserError
from slurm.submission.snapshot import code_hash, copy_code, verify

pytestmark = pytest.mark.unit


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    root = tmp_path / "clone"
    for name in ("lensdist/a.py", "lensdist/sub/b.py", "slurm/c.py", "docs/d.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / "accelerate_config.yaml").write_text("debug: false\n")
    (root / "lensdist" / "__pycache__").mkdir()
    (root / "lensdist" / "__pycache__" / "a.pyc").write_bytes(b"x")
    return root


def _git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def test_it_holds_what_runs_and_no_more(clone: Path, tmp_path: Path) -> None:
    copy = copy_code(clone, tmp_path / "state")
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    code = {"lensdist/a.py", "lensdist/sub/b.py", "slurm/c.py", "accelerate_config.yaml"}
    assert files == code | {"code.json", "code.patch"}
    assert json.loads((copy / "code.json").read_text())["commit"] is None
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]  # nothing half-made


def test_the_same_code_is_copied_once(clone: Path, tmp_path: Path) -> None:
    first = copy_code(clone, tmp_path / "state")
    (clone / "docs" / "d.md").write_text("other\n")
    assert copy_code(clone, tmp_path / "state") == first
    (clone / "lensdist" / "a.py").write_text("x = 1\n")
    second = copy_code(clone, tmp_path / "state")
    assert second != first
    assert (first / "lensdist" / "a.py").read_text() == "# lensdist/a.py\n"
    assert code_hash(second) == code_hash(clone)


def test_accelerates_file_of_a_wheel(clone: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (clone / "accelerate_config.yaml").rename(clone / "slurm" / "accelerate_config.yaml")
    (clone / "torch").mkdir()  # site-packages has other packages, too
    copy = copy_code(clone, state)
    assert (copy / "accelerate_config.yaml").read_text() == "debug: false\n"
    assert not (copy / "torch").exists()
    verify(copy, state)
    assert copy_code(clone, state) == copy


@pytest.mark.parametrize("file", ["lensdist/a.py", "lensdist/new.py", "torch.py"])
def test_a_changed_copy_is_refused(file: str, clone: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    copy = copy_code(clone, state)
    (copy / "lensdist" / "__pycache__").mkdir()  # what running it leaves
    verify(copy, state)
    (copy / file).write_text("x = 1\n")
    for use in (lambda: verify(copy, state), lambda: copy_code(clone, state)):
        with pytest.raises(UserError, match=str(copy)):
            use()
    with pytest.raises(UserError, match="is gone"):
        verify(copy.with_name("absent"), state)


def test_git_says_what_was_not_committed(clone: Path, tmp_path: Path) -> None:
    _git(clone, "init", "-q")
    _git(clone, "add", "lensdist/a.py", "slurm", "accelerate_config.yaml")
    _git(clone, "commit", "-qm", "first")
    (clone / "lensdist" / "a.py").write_text("x = 1\n")
    copy = copy_code(clone, tmp_path / "state")
    facts = json.loads((copy / "code.json").read_text())
    assert len(facts["commit"]) == 40
    assert facts["changed"]
    assert "lensdist/sub/b.py" in facts["untracked"]
    assert "+x = 1" in (copy / "code.patch").read_text()
