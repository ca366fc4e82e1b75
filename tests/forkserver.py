"""Processes of `python -m MODULE …` that find torch and all that a run needs already imported.

Importing that takes 5 s of a core, of which a tiny run takes one. So a process of its own imports
it once, and forks for every run: each is still a process that can be killed, with its own
environment, output and exit code, and executes its module from the first line. What is about
starting itself (imports, launchers, what is torch-free) is tested by real starts.

    python -m tests.forkserver

reads a request a line, a list of processes to run beside each other, and answers with exit codes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]


def run(
    words: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    timeout: float,
    folder: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """Run `words` (a module and its arguments) in a process for each environment, and wait.

    Args:
        words: the module and its arguments.
        environments: the whole environment of each process.
        timeout: seconds.
        folder: the current folder of all of them.

    Returns:
        Of all of them together: what they wrote, and the first exit code that is not 0.

    Raises:
        subprocess.TimeoutExpired: they were killed.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as temp:
        files = [(f"{temp}/{i}.out", f"{temp}/{i}.err") for i in range(len(environments))]
        what = {"words": list(words), "folder": str(folder)}
        asked = [
            {**what, "environment": dict(environment), "files": pair}
            for environment, pair in zip(environments, files, strict=True)
        ]
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            if not select.select([server.stdout], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(words), timeout)
            codes = json.loads(server.stdout.readline())
        except BaseException:  # pytest's time limit too: no later run may get this one's answer
            _server.cache_clear()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            raise
        out, err = ("".join(_text(name) for name in names) for names in zip(*files, strict=True))
    return subprocess.CompletedProcess(list(words), next(filter(None, codes), 0), out, err)


def _text(file: str) -> str:
    return Path(file).read_text(errors="replace")


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forkserver"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # one that hangs is killed with all that it forked
    )
    atexit.register(server.communicate)  # closes its input, at which it ends
    return server


# ---- in the server


def _serve(requests: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Fork for every request; what to become, in a process that was forked."""
    for line in requests:
        processes = []
        for wanted in json.loads(line):
            process = os.fork()
            if not process:
                return dict(wanted)
            processes.append(process)
        codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes]
        print(json.dumps(codes), file=answers, flush=True)
    return None


def _become(wanted: dict[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, file in enumerate((nothing, *(os.open(f, flags) for f in wanted["files"]))):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    random.seed()
    os.chdir(wanted["folder"])
    sys.path.insert(0, wanted["folder"])  # as -m does
    module, *sys.argv[1:] = wanted["words"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _import() -> None:
    """What other people wrote: a run executes the toolkit's own modules from the first line."""
    for name in (
        "lensdist.runs.phase",
        "lensdist.distributed.device_check",
        "lensdist.evaluate.run",
    ):
        import_module(name)
    import_module("lensdist.utils.torchvision_compat").import_torchvision()
    import_module("torchmetrics.functional")  # a run does so at its first scores
    for name in [*sys.modules]:
        if name.partition(".")[0] == "lensdist":
            del sys.modules[name]


def _only_thread() -> bool:
    tasks = Path("/proc/self/task")
    return not tasks.exists() or len(list(tasks.iterdir())) == 1


if __name__ == "__main__":
    _import()
    assert _only_thread(), "a library started threads, which do not live through a fork"
    gc.freeze()  # else a run that ends looks through all that was imported: a second
    with os.fdopen(os.dup(1), "w") as answers:
        wanted = _serve(sys.stdin, answers)
    if wanted is not None:
        _become(wanted)
