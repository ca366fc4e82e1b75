"""Compiled code is never taken from a folder that others can write."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from lensdist.distributed.compile_cache import close_to_others
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit

OTHER = 54321  # a user who is not this one


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another temporary folder, open to everybody as they are."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_torchs_folder_is_made_and_closed(temporary: Path) -> None:
    close_to_others()
    (made,) = temporary.iterdir()
    assert made.name.startswith("torchinductor_")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)  # as torch makes it
    close_to_others()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder another user's")
def test_another_users_folder_is_refused(temporary: Path) -> None:
    close_to_others()
    (planted,) = temporary.iterdir()
    os.chown(planted, OTHER, OTHER)
    with pytest.raises(UserError, match="TMPDIR"):
        close_to_others()


def test_folders_that_others_can_write_or_replace_are_refused(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_to_others()
    (made,) = temporary.iterdir()
    made.chmod(0o777)
    with pytest.raises(UserError, match="written by others"):
        close_to_others()
    made.rmdir()
    (tmp_path / "elsewhere").mkdir()
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="written by others"):
        close_to_others()
    made.unlink()
    temporary.chmod(0o777)  # without the sticky bit whoever likes can rename what lies there
    with pytest.raises(UserError, match="written by others"):
        close_to_others()
    temporary.chmod(0o1777)
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    chosen.chmod(0o775)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(chosen))
    with pytest.raises(UserError, match="TORCHINDUCTOR_CACHE_DIR"):
        close_to_others()
    chosen.chmod(0o755)
    close_to_others()
    (tmp_path / "link").symlink_to(chosen)  # a user's own link, to a larger disk say
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "link"))
    close_to_others()
