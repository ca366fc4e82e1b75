"""Check the folder of `torch.compile`'s code: only its owner may be able to write it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lensdist.utils.errors import UserError
from lensdist.utils.files import is_private

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def close_to_others() -> None:
    """Create torch's folders for compiled code, or check them: torch runs the code in them.

    Anybody can guess the name of torch's default folder, which lies in the temporary folder. torch
    uses it even if another user created it. TORCHINDUCTOR_CACHE_DIR moves the compiled code, but
    not the precompiled headers.

    Raises:
        UserError: somebody else owns a folder, or can write or replace it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    own = Path(default_cache_dir())
    _require_own(own, "TMPDIR")
    own.chmod(0o700)  # torch may have created it already, readable by others
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        if chosen := os.environ.get(variable):
            _require_own(Path(os.path.realpath(chosen)), variable)


def _require_own(folder: Path, variable: str) -> None:
    hint = f"set {variable} to a folder of yours, or speed.compile=no"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private, above = is_private(folder), folder.parent.stat()
    except OSError as e:
        raise UserError(f"torch.compile's cache {folder}: {e.strerror}; {hint}") from e
    kept = above.st_uid in (0, os.geteuid()) and (
        not above.st_mode & _WRITABLE or above.st_mode & stat.S_ISVTX
    )
    if not private or not kept:
        raise UserError(
            f"torch.compile's cache {folder} can be written by others, who could plant code that "
            f"you would run; {hint}"
        )
