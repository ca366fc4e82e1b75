"""Copy the code that jobs run, so that editing the code later changes no job.

`.submit/code/<hash>/` holds the toolkit and the launcher; `code.json` records their state in git,
and `code.patch` has the changes that were not committed. Submissions of the same code share a copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lensdist.utils.errors import UserError
from lensdist.utils.files import to_json, write_atomic
from lensdist.utils.owners import temporary

_PACKAGES = ("lensdist", "slurm")
_ACCELERATE = "accelerate_config.yaml"
_PARTS = (*_PACKAGES, _ACCELERATE)
_RECORDS = ("code.json", "code.patch")
_NAME = 12  # characters of the hash in a copy's name


def copy_code(root: Path, state: Path) -> Path:
    """Copy the code, unless the same copy exists.

    Returns:
        The copy's folder.

    Raises:
        UserError: the copy exists, but was changed.
    """
    digest = code_hash(root)
    final = state / "code" / digest[:_NAME]
    if final.exists():
        verify(final, state)
        return final
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = temporary(final)
    try:
        for name, file in _files(root):
            copy = beside / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        patch = _git(root, "diff", "HEAD", "--", *_PARTS)
        untracked = _git(root, "ls-files", "--others", "--exclude-standard", "--", *_PARTS)
        record = {
            "sha256": digest,
            "commit": _git(root, "rev-parse", "HEAD").strip() or None,
            "changed": bool(patch),
            "untracked": untracked.splitlines(),
        }
        write_atomic(beside / "code.patch", patch)
        write_atomic(beside / "code.json", to_json(record))
        try:
            beside.rename(final)
        except OSError:
            if not final.exists():  # or another process sent the same code at this moment
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return final


def verify(code: Path, state: Path) -> None:
    """Check that a copy is as it was made, before any of it runs.

    Raises:
        UserError: it was changed, or is gone.
    """
    if not code.is_dir():
        raise UserError(f"{code}, the code that was sent, is gone; submit the phase again")
    if code.parent != state / "code":
        return  # not a copy that `copy_code` made
    try:
        added = {path.name for path in code.iterdir()} - {*_PARTS, *_RECORDS, "__pycache__"}
        same = not added and code_hash(code)[:_NAME] == code.name
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}; submit the phase again") from e
    if not same:
        more = f" ({min(added)} was added)" if added else ""
        raise UserError(
            f"{code} was changed after it was made{more}; delete it, and submit the phase again"
        )


def code_hash(root: Path) -> str:
    """Return the SHA-256 of the names and contents of all files that are copied."""
    whole = hashlib.sha256()
    for name, file in _files(root):
        whole.update(f"{name.as_posix()}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _files(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each file's name in the copy, and its path."""
    for package in _PACKAGES:
        for folder, names, files in os.walk(root / package):
            names[:] = sorted(n for n in names if n != "__pycache__" and not n.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and not name.endswith((".pyc", "~", ".swp")):
                    path = Path(folder) / name
                    yield path.relative_to(root), path
    own = root / _ACCELERATE  # a clone has one; site-packages has only the launcher's
    for path in (own, root / "slurm" / _ACCELERATE):
        if path.is_file():
            yield Path(_ACCELERATE), path
            return


def _git(root: Path, *words: str) -> str:
    """Return git's answer; empty without git, or if the code is not a repository itself."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""
