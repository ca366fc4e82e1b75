"""The code that jobs run: a copy made when they are sent, so that editing the clone changes none.

`.submit/code/<hash>/` holds the toolkit, the launcher and, in `code.json`, what git knows of them;
`code.patch` is what was not committed. Submissions of the same code share a copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lensdist.errors import UserError
from lensdist.files import to_json, write_atomic
from lensdist.owners import temporary

PARTS = ("lensdist", "slurm", "accelerate_config.yaml")
_FACTS = ("code.json", "code.patch")
_NAME = 12  # characters of the hash that a copy is called by


def take(root: Path, state: Path) -> Path:
    """Copy the code of a clone, unless the same is there.

    Args:
        root: the clone.
        state: the launcher's folder.

    Returns:
        The copy's folder.

    Raises:
        UserError: a copy of that name is there, but was altered.
    """
    digest = code_hash(root)
    final = state / "code" / digest[:_NAME]
    if final.exists():
        check(final, state)
        return final
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = temporary(final)
    try:
        for file in _files(root):
            copy = beside / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        patch = _git(root, "diff", "HEAD", "--", *PARTS)
        write_atomic(beside / _FACTS[1], patch)
        facts = {
            "sha256": digest,
            "commit": _git(root, "rev-parse", "HEAD").strip() or None,
            "changed": bool(patch),
            "untracked": _git(
                root, "ls-files", "--others", "--exclude-standard", "--", *PARTS
            ).splitlines(),
        }
        write_atomic(beside / _FACTS[0], to_json(facts))
        try:
            beside.rename(final)
        except OSError:
            if not final.exists():  # else somebody else sent the same code at this moment
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return final


def check(code: Path, state: Path) -> None:
    """Make sure that a copy is what it was when it was made, before anything of it runs.

    Raises:
        UserError: it was altered, or is gone.
    """
    if not code.is_dir():
        raise UserError(f"{code}, the code that was sent, is gone; submit the phase again")
    if code.parent != state / "code":
        return  # not a copy that `take` has made
    try:
        strange = {path.name for path in code.iterdir()} - {*PARTS, *_FACTS, "__pycache__"}
        same = not strange and code_hash(code)[:_NAME] == code.name
    except OSError as e:
        raise UserError(f"{e.filename}: {e.strerror}; submit the phase again") from e
    if not same:
        more = f" ({min(strange)} was added)" if strange else ""
        raise UserError(
            f"{code} was altered since it was made{more}; delete it, and submit the phase again"
        )


def code_hash(root: Path) -> str:
    """Of the names and bytes of everything that is copied."""
    whole = hashlib.sha256()
    for file in _files(root):
        whole.update(f"{file.relative_to(root).as_posix()}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for part in PARTS:
        path = root / part
        if path.is_file():
            yield path
            continue
        for folder, names, files in os.walk(path):
            names[:] = sorted(n for n in names if n != "__pycache__" and not n.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and not name.endswith((".pyc", "~", ".swp")):
                    yield Path(folder) / name


def _git(root: Path, *words: str) -> str:
    """git's answer; nothing where there is no git, or no repository of our own around the code."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""
