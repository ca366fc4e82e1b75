"""Checks of the software that is installed, and of the machine that it runs on.

Each check yields findings; none raises, because the next ones may say why it failed.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from lensdist.profiling import storage
from lensdist.utils.errors import first_line
from lensdist.utils.launched import RENDEZVOUS
from lensdist.utils.torchvision_compat import import_torchvision

State = Literal["ok", "warning", "missing"]
_COMMAND_SECONDS = 20  # a controller of SLURM may be slow, and a broken one never answers


@dataclass(frozen=True)
class Finding:
    """What one check found. `needed`: training does not work while it is missing."""

    name: str
    state: State
    text: str
    remedy: str = ""
    needed: bool = False


def examine(folder: Path) -> Iterator[Finding]:
    """Yield what is found about Python, packages, devices, `folder`'s disk, trackers and SLURM."""
    for check in (_python, _packages, _torch, _devices, _launcher, _deepspeed):
        yield from check()
    yield from _disk(folder)
    for check in (_wandb, _slurm):
        yield from check()


def _python() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} in {sys.prefix}, {cores} CPU cores")
    if sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        remedy = "python -m venv .venv && . .venv/bin/activate"
        yield Finding("environment", "warning", "no virtual environment is active", remedy)


def _packages() -> Iterator[Finding]:
    """Compare what `pip` has installed with what lensdist and its extras require."""
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("lensdist") or ():
        wanted = Requirement(line)
        extra = _extra(wanted)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue  # for another system
        wrong = _wrong(wanted)
        if extra:
            extras.setdefault(extra, []).extend([wrong] if wrong else [])
        elif wrong:
            yield Finding(wanted.name, "missing", wrong, f"pip install '{line}'", needed=True)
    versions = {name: _version(name) for name in ("lensdist", "torch", "accelerate", "deepspeed")}
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Finding("packages", "ok", known)
    for extra, wrong_ones in extras.items():
        if extra in ("dev", "bench"):
            continue
        state: State = "missing" if wrong_ones else "ok"
        text = "; ".join(wrong_ones) or "installed"
        remedy = f"pip install 'lensdist[{extra}]'" if wrong_ones else ""
        yield Finding(f"extra {extra}", state, text, remedy)


def _extra(wanted: Requirement) -> str:
    """Return the name of the extra that brings this requirement; empty if all installs do."""
    names = importlib.metadata.metadata("lensdist").get_all("Provides-Extra") or []
    if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
        return ""
    return next((name for name in names if wanted.marker.evaluate({"extra": name})), "")


def _wrong(wanted: Requirement) -> str:
    version = _version(wanted.name)
    if version is None:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{wanted.name} is {version}, needed is {wanted.specifier}"
    return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as e:
        yield Finding("torch", "missing", f"cannot be imported: {e}", "pip install torch", True)
        return
    try:
        import_torchvision()
    except Exception as e:
        yield Finding("torchvision", "missing", first_line(e), "pip install torchvision", True)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    built = torch.version.cuda or torch.version.hip
    if not built and driver:
        text = f"torch {torch.__version__} is a build for CPUs, but there is an NVIDIA driver"
        remedy = "pip install --force-reinstall torch torchvision   (see pytorch.org for your CUDA)"
        yield Finding("cuda", "warning", text, remedy)
    elif built and not torch.cuda.is_available():
        why = f"driver {driver.split()[0]}" if driver else "no NVIDIA driver answers"
        remedy = "run it on a node with a GPU, or update the driver" if driver else ""
        yield Finding("cuda", "warning", f"torch is built for CUDA {built}; {why}", remedy)
    elif built:
        text = f"CUDA {built}, driver {driver.split()[0] if driver else 'unknown'}"
        if torch.version.cuda:
            nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
            text += f", NCCL {'.'.join(map(str, nccl))}"
        yield Finding("cuda", "ok", text)
    else:
        yield Finding("cuda", "ok", "a build for CPUs, and no GPU: training runs on the CPU")


def _devices() -> Iterator[Finding]:
    try:
        import torch

        from lensdist.distributed.device_check import measure
        from lensdist.utils.outcome import DeviceError
    except (ImportError, OSError):
        return  # said before
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in [torch.device("cuda", i) for i in range(count)] or [torch.device("cpu")]:
        try:
            tflops = measure(device)
        except (DeviceError, RuntimeError) as e:
            yield Finding(str(device), "missing", first_line(e), "use another device", needed=True)
            continue
        text = "products in float32 and bfloat16 are right"
        if tflops is not None:
            about = torch.cuda.get_device_properties(device)
            text = (
                f"{about.name}, {about.total_memory / 2**30:.0f} GB, {tflops:.0f} TFLOP/s; {text}"
            )
        yield Finding(str(device), "ok", text)


def _launcher() -> Iterator[Finding]:
    left = [name for name in RENDEZVOUS if name in os.environ]
    if left:
        text = f"variables of a launcher are set in this shell: {', '.join(left)}"
        yield Finding("launcher", "warning", text, f"unset {' '.join(left)}")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None:
        text = "OMP_NUM_THREADS is not set: each process of several uses all cores"
        yield Finding("threads", "warning", text, "export OMP_NUM_THREADS=1")
    else:
        yield Finding("threads", "ok", f"OMP_NUM_THREADS={threads}")


def _deepspeed() -> Iterator[Finding]:
    """Import it in a process of its own: its import may fail, print, or take seconds."""
    if _version("deepspeed") is None:
        remedy = "pip install deepspeed   (only for engine: deepspeed)"
        yield Finding("deepspeed", "missing", "not installed", remedy)
        return
    code = "import deepspeed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = "use engine: ddp or fsdp, or pip install --force-reinstall deepspeed"
        yield Finding("deepspeed", "warning", f"cannot be imported: {last}", remedy)
    else:
        yield Finding("deepspeed", "ok", f"{_version('deepspeed')}, can be imported")


def _disk(folder: Path) -> Iterator[Finding]:
    try:
        speed = storage.measure(folder)
    except OSError as e:
        text = f"{folder}: {e.strerror}"
        yield Finding("disk", "missing", text, "choose another folder: --folder DIR", needed=True)
        return
    text = (
        f"{folder}: {speed.free_gb:.0f} GB free, writes {speed.write_mb:.0f} MB/s, reads "
        f"{speed.read_mb:.0f} MB/s, {speed.files:.0f} small files/s"
    )
    if speed.free_gb < 5:
        yield Finding("disk", "warning", text, "free some space, or choose another run.dir")
    elif speed.write_mb < 50 or speed.files < 50:
        remedy = "put run.dir and data.path on a faster file system (scratch)"
        yield Finding("disk", "warning", text, remedy)
    else:
        yield Finding("disk", "ok", text)


def _wandb() -> Iterator[Finding]:
    if os.environ.get("WANDB_API_KEY") or _in_netrc("api.wandb.ai"):
        yield Finding("wandb", "ok", "logged in")
    else:
        remedy = "wandb login, or leave track.wandb=off"
        yield Finding("wandb", "missing", "not logged in", remedy)


def _in_netrc(host: str) -> bool:
    import netrc

    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        text = "no sbatch here: chains run on this machine, one phase after the other"
        yield Finding("slurm", "missing", text, "log in to the cluster, or module load slurm")
        return
    version = _output("sbatch", "--version").strip()
    partitions = _output("sinfo", "--noheader", "--format=%R").split()
    if version and partitions:
        yield Finding("slurm", "ok", f"{version}, partitions {', '.join(partitions)}")
    else:
        text = f"{version or 'sbatch'} is here, but the controller does not answer"
        yield Finding("slurm", "warning", text, "sinfo   (it says why)")


def _output(*command: str) -> str:
    """Return what a command prints; nothing if it is not there, fails, or takes too long."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_COMMAND_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
