"""What all tests share: a small packed set, small configurations, and a way to start runs."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lensdist.utils import signals
from tests import forkserver

ROOT = Path(__file__).resolve().parents[1]
LONG = os.environ.get("LENSDIST_TESTS") == "long"  # as in `make test-long`
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The register of sent chains is the tests' own; a test that reads it has one of its own.
os.environ["XDG_STATE_HOME"] = str(Path(tempfile.gettempdir()) / f"lensdist-tests-{os.getuid()}")
# Hundreds of processes start here, and each would compile the toolkit again: half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Children inherit what is ignored or blocked (`nohup`, a shell's background jobs), but not what a
# function ignores, as these tests themselves go on doing.
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

# Begun first, for the last to end would run alone; among them no two on a SLURM side by side, for
# they mostly wait.
FIRST = (
    "tests/slurm/test_requeue.py",
    "tests/distributed/test_engines.py",
    "tests/golden/test_losses.py",
    "tests/distributed/test_world_size.py",
    "tests/end_to_end/test_common_job.py",
    "tests/faults/test_resume.py",
    "tests/slurm/test_chain.py",
    "tests/end_to_end/test_presets.py",
    "tests/distributed/test_launch.py",
    "tests/unit/test_experiments_common_task.py",
    "tests/unit/test_experiments_super_resolution.py",
    "tests/unit/test_slurm_local_runner.py",
    "tests/unit/test_runs_sizes.py",
    "tests/unit/test_benchmarks_speed.py",
)
# Tests of a file run in one process of pytest-xdist, for they share what takes long to make; those
# of these files wherever there is room.
APART = {
    "tests/faults/test_resume.py",
    "tests/end_to_end/test_presets.py",
    "tests/distributed/test_launch.py",
    "tests/unit/test_slurm_local_runner.py",
    "tests/unit/test_runs_sizes.py",
    "tests/unit/test_benchmarks_speed.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What a process of pytest-xdist runs together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file in APART else file

    config.option.loadscopereorder = False  # by default, files of many tests would come first
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files, and leave out long tests."""
    places = {file: place for place, file in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(FIRST)))
    for item in items:
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="long: `make test-long` runs it"))


def pytest_collection_finish() -> None:
    """accelerate collects garbage at each stage of a run: not among all that was imported."""
    gc.freeze()


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made once for all processes of pytest-xdist, and only read."""
    root = factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent
    path, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(path)
            done.touch()
    return path


def _packed(factory: pytest.TempPathFactory, family: str, n: int, truth: bool = False) -> Path:
    from lensdist.data.packing.simulated import write_packed
    from lensdist.sim.config import SimConfig

    def make(path: Path) -> None:
        write_packed(path, SimConfig(family=family), n, 0, truth=truth)

    return shared(factory, f"set-{family}", make)


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model II at its real size, 40 images per class, packed."""
    return _packed(tmp_path_factory, "model_ii", 40)


@pytest.fixture(scope="session")
def common_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The common task's images at their real size, 20 per class, packed."""
    return _packed(tmp_path_factory, "common", 20)


@pytest.fixture(scope="session")
def pairs_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of 75 and 150 pixels, 60 of them, with the truth, packed."""
    return _packed(tmp_path_factory, "sr", 20, truth=True)


@pytest.fixture
def handlers() -> Iterator[None]:
    """What a run does to the handlers of signals is undone: here it shares them with pytest."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    signals._heard = None


def command(*args: object, processes: int = 1, port: int = 0) -> list[str]:
    """`python -m lensdist.train …`, or the README's `accelerate launch` for several processes."""
    words = [str(a) for a in args]
    if processes == 1:
        return [sys.executable, "-m", *words]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", str(processes), "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launch, "--main_process_port", str(port), "-m", *words]


def environment(**more: str) -> dict[str, str]:
    """One thread a process, on the CPU, and nothing that a developer's shell may have set."""
    theirs = ("ACCELERATE_", "WANDB_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "PET_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
    return {**kept, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **more}


def start(words: Sequence[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's folder and wait."""
    kwargs.setdefault("env", environment())
    kwargs.setdefault("timeout", 600)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, **kwargs)


def forked(
    *words: object,
    processes: int = 1,
    port: int = 0,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    folder: Path = ROOT,
) -> subprocess.CompletedProcess[str]:
    """What `start(command(…))` does, without the 5 s that each process takes to import torch.

    Several processes are what `torchrun` would start, but nobody looks after them.
    """
    environments = [dict(env or environment()) for _ in range(processes)]
    if processes > 1:
        for rank, each in enumerate(environments):
            each |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            each |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
            each |= {"MASTER_PORT": str(port)}
    return forkserver.run([str(word) for word in words], environments, timeout, folder)


def until(true: Callable[[], object], seconds: float = 240) -> None:
    """Wait, as long as a busy machine may take."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def port() -> int:
    """A free TCP port."""
    return free_port()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def settings(task: str, data: Path, run: Path, **changes: Any) -> list[str]:
    """Overrides that make a preset tiny: batches of 16, of the MAE's networks 20 k parameters."""
    base: dict[str, Any] = {
        "run.dir": run,
        "data.path": data,
        "train.global_batch": 16,
        "train.micro_batch": 4,
        "train.log_every": 3,
        "optim.lr": 1e-3,
    }
    if task == "common":
        # ResNet-18 is the smallest that comes in sections; larger images or no BatchNorm over four
        # values, or rounding grows by orders of magnitude from one step to the next.
        base |= {"model.members": "[resnet18]", "model.image_size": 64, "model.resize": "null"}
        base |= {"model.head_dims": "[]", "model.grey": "fold"}
    elif task == "sr":  # from the encoder of a tiny `mae`, which sees LR at 64 pixels
        shape = "image_size: 64, patch_size: 8, dim: 32, depth: 1, heads: 2, mlp_dim: 32"
        base |= {"model.width": 8, "model.depth": 1, "optim.schedule.warmup_steps": 0}
        base |= {"model.encoder": f"{{{shape}, dropout: 0.1}}"}
    else:
        base |= {"model.dim": 32, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 32}
        base |= {"model.dropout": 0.1}
    if task == "mae":
        base |= {"model.decoder_dim": 32}
    words = [f"{k}={v}" for k, v in {**base, **changes}.items()]
    return [f"--config=configs/{task}/debug.yaml", *words]
