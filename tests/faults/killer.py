"""`lensdist.train`, killed for real: `killer.py WHEN N -- arguments of lensdist.train`.

WHEN is `step` (SIGKILL right after optimizer step N), `term` (SIGTERM there), `stop` (a STOP file
there), `write` (while the state of step N is half written) or `rename` (just before its name).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lensdist.distributed.micro_batches import StepPlan
from lensdist.train import main
from lensdist.training import checkpoint


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(when: str, number: int, stop: Path | None = None) -> None:
    if when in ("step", "term", "stop"):
        original = StepPlan.place

        def place(plan: StepPlan, step: int, micro: int) -> tuple[int, int]:
            if step == number and micro == plan.mine[0]:  # the steps before this one are done
                if when == "stop":
                    assert stop is not None
                    stop.touch()
                    time.sleep(1.2)  # the file is looked for once a second
                else:
                    os.kill(os.getpid(), signal.SIGKILL if when == "step" else signal.SIGTERM)
            return original(plan, step, micro)

        StepPlan.place = place  # type: ignore[method-assign]
    elif when == "write":
        write = checkpoint.write_safetensors

        def half(path: Path, tensors: Any) -> Any:
            result = write(path, tensors)
            if f"{number:08d}" in str(path):
                os.truncate(path, path.stat().st_size // 2)
                die()
            return result

        checkpoint.write_safetensors = half
    elif when == "rename":
        seal = checkpoint.seal

        def before(manifest: dict[str, Any]) -> str:
            if manifest["step"] == number and (sys._getframe(1).f_code.co_name == "write"):
                die()
            return seal(manifest)

        checkpoint.seal = before


if __name__ == "__main__":
    split = sys.argv.index("--")
    run = next(w for w in sys.argv if w.startswith("run.dir=")).removeprefix("run.dir=")
    arm(sys.argv[1], int(sys.argv[2]), Path(run) / "STOP")
    sys.exit(main(sys.argv[split + 1 :]))
