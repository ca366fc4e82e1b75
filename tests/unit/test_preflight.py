"""What a process tries out before a run reads any data, and whom it blames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist import train
from lensdist.distributed import device_check as preflight
from lensdist.distributed.device_check import build_context, check_devices
from lensdist.utils import outcome
from lensdist.utils.errors import UserError
from lensdist.utils.launched import DEVICE, MIN_TFLOPS, PREFLIGHT
from lensdist.utils.outcome import DeviceError, Ready
from tests.conftest import settings
from tests.unit.worlds import FakeWorld

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where words are left; the preflight is asked for."""
    for name in (DEVICE, MIN_TFLOPS, "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(PREFLIGHT, "1")
    monkeypatch.setenv(outcome.FOLDER, str(tmp_path / "words"))
    return tmp_path / "words"


def said(folder: Path) -> list[str]:
    """The kinds of this process's lines, in order."""
    file = outcome.file_of(folder, 0)
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["what"] for line in lines if line]


def ready(folder: Path) -> Ready:
    (word,) = outcome.told(outcome.file_of(folder, 0), "ready")
    return word


def world(size: int = 1) -> Any:
    return FakeWorld(0, size)


def failing(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


# ---- the device


def test_a_sound_device_is_announced(folder: Path) -> None:
    check_devices(world())
    assert said(folder) == ["device", "ready"]
    word = ready(folder)
    assert (word.device, word.tflops, word.host) == ("cpu", None, outcome.node_name())


def test_nothing_is_tried_that_nobody_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PREFLIGHT)
    monkeypatch.setattr(torch.Tensor, "__matmul__", failing(RuntimeError("asked")))
    check_devices(world())
    assert said(folder) == []


def test_it_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    check_devices(world())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_that_errs_in_one_number_is_bad(
    dtype: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = torch.Tensor.__matmul__

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        c = product(a, b)
        if a.dtype == dtype:
            c[5, 7] += 1
        return c

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    with pytest.raises(DeviceError, match=f"cpu errs: 1 of .* in {dtype}"):
        check_devices(world())
    assert said(folder) == []


def test_a_device_that_fails_is_bad(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: uncorrectable ECC error encountered\nCompile with …")
    monkeypatch.setattr(torch.Tensor, "__matmul__", failing(error))
    with pytest.raises(DeviceError, match=r"cpu cannot be used: CUDA error: uncorr.*encountered$"):
        check_devices(world())


def test_a_cpu_is_bad_where_a_gpu_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, "cuda")
    with pytest.raises(DeviceError, match="the run is on cpu but"):
        check_devices(world())
    assert said(folder) == []


@pytest.mark.parametrize(("least", "good"), [("500", True), ("", True), ("500.1", False)])
def test_a_slow_gpu_is_bad(
    least: str, good: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIN_TFLOPS, least)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(preflight, "_try_product", lambda _: None)
    monkeypatch.setattr(preflight, "_speed", lambda _: 500.0)
    it = world()
    it.device = torch.device("cuda", 3)
    if good:
        check_devices(it)
        word = ready(folder)
        assert (word.device, word.tflops) == ("cuda:3 Some GPU", 500.0)
    else:
        with pytest.raises(DeviceError, match="cuda:3 Some GPU does 500 TFLOP/s"):
            check_devices(it)


def test_a_least_speed_that_is_no_number_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIN_TFLOPS, "fast")
    with pytest.raises(UserError, match=MIN_TFLOPS):
        check_devices(world())


# ---- the network


@pytest.mark.parametrize("others", [2.0, 1.0])
def test_a_sum_shows_the_network(
    others: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda numbers: numbers.add_(others))
    if others == 2.0:  # what the second of two processes gives
        check_devices(world(2))
        assert said(folder) == ["device", "ready"]
        return
    with pytest.raises(RuntimeError, match="which is 3, came back wrong"):
        check_devices(world(2))
    assert said(folder) == ["device"]  # the device is not to blame


def test_another_process_that_fell_is_not_this_ones_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.distributed.DistBackendError("NCCL error: unhandled cuda error")
    monkeypatch.setattr(torch.distributed, "all_reduce", failing(error))
    with pytest.raises(torch.distributed.DistBackendError):
        outcome.conclude(lambda: check_devices(world(2)) or 0)  # type: ignore[func-returns-value]
    assert said(folder) == ["device", "end"]
    (word,) = outcome.read(folder)
    assert (word.kind, word.echo) == ("crashed", True)


# ---- building the world


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), None),
        (RuntimeError("Found no NVIDIA driver on your system"), None),
        (torch.distributed.DistBackendError("ncclInternalError: cuda"), RuntimeError),
        (torch.distributed.DistNetworkError("connection timed out"), RuntimeError),
        (RuntimeError("something else"), RuntimeError),
        (UserError("precision"), UserError),
    ],
)
def test_a_broken_gpu_is_told_from_all_else(
    error: Exception, becomes: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DistributedContext", failing(error))
    with pytest.raises(becomes or DeviceError):
        build_context("no", sharded=False, bucket_mb=1)
    monkeypatch.delenv(PREFLIGHT)
    with pytest.raises(type(error)):  # as it came
        build_context("no", sharded=False, bucket_mb=1)


def test_no_gpu_at_all_is_told_before_accelerate_takes_the_cpu(
    tiny_set: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, "cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Without a GPU, accelerate refuses fp16, which would be the user's mistake.
    words = [*settings("mae", tiny_set, tmp_path / "run"), "precision=fp16"]
    assert train.main(words) == 1
    (word,) = outcome.read(folder)
    assert word.kind == "device"
    assert "no GPU can be used" in word.error
    assert not (tmp_path / "run").exists()


def test_a_torch_for_cpus_is_no_fault_of_the_node(
    tiny_set: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, "cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert train.main(settings("mae", tiny_set, tmp_path / "run")) == 2
    (word,) = outcome.read(folder)
    assert word.kind == "input"
    assert "is a build for CPUs" in word.error


@pytest.mark.parametrize(("local", "good"), [("1", True), ("2", False)])
def test_two_processes_do_not_share_a_gpu(
    local: str, good: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEVICE, "cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(preflight, "DistributedContext", lambda *_, **__: "a world")
    if good:
        assert build_context("no", sharded=False, bucket_mb=1) == "a world"  # type: ignore[comparison-overlap]
    else:
        with pytest.raises(DeviceError, match="needs a GPU of its own; there are 2"):
            build_context("no", sharded=False, bucket_mb=1)


# ---- in a run


def test_a_bad_device_ends_a_run_before_it_reads_or_writes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(preflight, "_try_product", failing(DeviceError("cpu errs")))
    words = settings("mae", tmp_path / "no such set", tmp_path / "run")
    assert train.main(words) == 1
    (word,) = outcome.read(folder)
    assert (word.kind, word.error) == ("device", "cpu errs")
    assert "error: cpu errs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_is_exact_and_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE, "cuda")
    it = world()
    it.device = torch.device("cuda")
    check_devices(it)
    word = ready(folder)
    assert word.tflops is not None
    assert word.tflops > 0
