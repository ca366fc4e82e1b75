"""`lensdist.train` with faults in it: `killer.py WHEN N [WHEN N …] -- arguments of lensdist.train`.

N is an optimizer step. WHEN is what happens after it: `step` (SIGKILL), `term` (SIGTERM), `stop` (a
STOP file), `limit` (no time is left but the reserve), `crash` (an error in process 1). Or while the
state of that step is half written: `write` (SIGKILL), `full` (the disk is). Or before its name:
`rename` (SIGKILL).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lensdist.distributed.micro_batches import StepPlan
from lensdist.train import main
from lensdist.training import checkpoint, shares, stopping
from lensdist.utils.launched import DEADLINE


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    if os.environ.get("RANK") == "1":
        raise ZeroDivisionError("on purpose")


def leave_no_time() -> None:
    stopping.RESERVE = float(os.environ[DEADLINE]) - time.time()


def write_stop_file() -> None:
    run = next(w for w in sys.argv if w.startswith("run.dir=")).removeprefix("run.dir=")
    (Path(run) / "STOP").touch()
    time.sleep(1.2)  # the file is looked for once a second


def fill_up() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def after_step(number: int, happen: Callable[[], None]) -> None:
    original = StepPlan.place

    def place(plan: StepPlan, step: int, micro: int) -> tuple[int, int]:
        if step == number and micro == plan.mine[0]:  # the steps before this one are done
            happen()
        return original(plan, step, micro)

    StepPlan.place = place  # type: ignore[method-assign]


def half_written(number: int, happen: Callable[[], None]) -> None:
    write = shares.write_safetensors

    def half(path: Path, tensors: Any) -> Any:
        result = write(path, tensors)
        if f"{number:08d}" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            happen()
        return result

    checkpoint.write_safetensors = shares.write_safetensors = half


def before_rename(number: int, happen: Callable[[], None]) -> None:
    seal = checkpoint.seal

    def before(manifest: dict[str, Any]) -> str:
        if manifest["step"] == number and sys._getframe(1).f_code.co_name == "complete":
            happen()
        return seal(manifest)

    checkpoint.seal = before


FAULTS = {
    "step": (after_step, die),
    "term": (after_step, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "stop": (after_step, write_stop_file),
    "limit": (after_step, leave_no_time),
    "crash": (after_step, crash),
    "write": (half_written, die),
    "full": (half_written, fill_up),
    "rename": (before_rename, die),
}


if __name__ == "__main__":
    split = sys.argv.index("--")
    for when, number in zip(sys.argv[1:split:2], sys.argv[2:split:2], strict=True):
        place, happen = FAULTS[when]
        place(int(number), happen)
    sys.exit(main(sys.argv[split + 1 :]))
