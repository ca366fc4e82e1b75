"""How long a phase will take: from what was measured, or from arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.estimate import train_flops
from lensdist.estimate.hardware import Hardware
from lensdist.estimate.scaling import scaling
from lensdist.tracking.metrics_log import MetricsLog
from lensdist.training import checkpoint
from lensdist.utils.files import to_json, write_atomic
from slurm.config.cluster import Cluster
from slurm.plan.estimate import Estimate, estimate, line, total
from tests.conftest import ROOT

pytestmark = pytest.mark.unit
CPUS = Cluster(executor="slurm", nodes=2, processes_per_node=2, cpus_per_task=8, walltime=60)
GPUS = Cluster(executor="slurm", nodes=2, gpus_per_node=4, walltime=60)


def _config(preset: str = "mae/debug", *changes: str) -> BaseRun:
    words = ["run.dir=run", "data.path=packed", "train.micro_batch=2", *changes]
    return load(ROOT / "configs" / f"{preset}.yaml", words, schema=schema_of)


def _saved(run: Path, step: int, processes: int = 2, device: str = "cpu") -> None:
    meta = {"machine": {"processes": processes, "device": device}}
    checkpoint.write(run / "checkpoints", step, {"model/a": torch.zeros(1)}, meta)


def _rows(run: Path, rates: Sequence[float], first: int = 10, per_epoch: int = 100) -> None:
    with closing(MetricsLog(run / "metrics.jsonl")) as log:
        for i, rate in enumerate(rates):
            step = first + 10 * i
            log.append(step, "train", loss=1.0, epoch=step / per_epoch, images_per_s=rate)


def _complete(run: Path, config: BaseRun) -> None:
    write_atomic(run / "COMPLETE.json", to_json({"config": config.model_dump(), "files": {}}))


def _estimate(
    config: BaseRun, run: Path, samples: int | None, cluster: Cluster, like: Sequence[Path] = ()
) -> Estimate | None:
    return estimate(config, run, samples, cluster, like)


def _found(*args: Any, **more: Any) -> Estimate:
    found = _estimate(*args, **more)
    assert found is not None
    return found


def test_measured_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "pretrain"
    _rows(run, [1.0, 90.0, 100.0, 110.0])
    _saved(run, 40)
    # 4 epochs of 100 steps of 16 images, of which 40 steps are done; 1,605 leaves 5 images out.
    found = _found(_config(), run, 1605, CPUS)
    assert found.images == (4 * 100 - 40) * 16
    assert found.processes == 4
    assert found.images_per_s == pytest.approx(95 * 2)  # the median, on twice the processes
    assert found.seconds == pytest.approx(5760 / 190)
    assert found.gpu_hours == 0
    assert found.cpu_hours == pytest.approx(found.seconds * 16 / 3600)  # of 2 nodes' 8 cores
    assert found.jobs == 1
    assert found.source == "scaled from 2 processes in runs/pretrain"
    assert line(found, CPUS) == (
        "about 30 s on 4 processes, 0.13 core-hours in 1 job "
        "(scaled from 2 processes in runs/pretrain: 190 images/s)"
    )
    _saved(run, 50, processes=4)
    assert _found(_config(), run, 1605, CPUS).source == "measured in runs/pretrain"


def test_jobs_are_walltimes_without_the_time_to_save(tmp_path: Path) -> None:
    _rows(tmp_path, [16.0])
    _saved(tmp_path, 10, processes=4)
    short = CPUS.model_copy(update={"walltime": 2, "save_before_end": 20})
    for steps, jobs in ((10 + 100, 1), (10 + 101, 2), (10 + 300, 3)):  # a step a second, 100 a job
        assert (
            _found(_config("mae/debug", f"train.max_steps={steps}"), tmp_path, 160, short).jobs
            == jobs
        )
    done = _found(_config("mae/debug", "train.max_steps=10"), tmp_path, 160, short)
    assert (done.images, done.jobs) == (0, 1)
    assert "all steps are done" in line(done, short)


def test_what_one_kind_of_device_does_says_nothing_of_the_other(tmp_path: Path) -> None:
    cpu, gpu = tmp_path / "cpu", tmp_path / "gpu"
    for run, device in ((cpu, "cpu"), (gpu, "NVIDIA H100")):
        _rows(run, [500.0])
        _saved(run, 10, 1, device)
    assert _estimate(_config(), cpu, 1600, GPUS) is None
    assert _estimate(_config(), gpu, 1600, CPUS) is None
    found = _found(_config(), gpu, 1600, GPUS)
    assert found.source == f"scaled from 1 process in {gpu} on NVIDIA H100"
    assert found.images_per_s == 4000
    assert found.gpu_hours == pytest.approx(found.seconds * 8 / 3600)
    assert found.cpu_hours == 0
    assert "on 8 GPUs, " in line(found, GPUS)
    # One local process takes what it finds: either may be it.
    assert _found(_config(), cpu, 1600, Cluster()).cpu_hours > 0
    assert "on 1 GPU," in line(_found(_config(), gpu, 1600, Cluster()), Cluster())


def test_only_the_life_that_saved_the_newest_checkpoint_counts(tmp_path: Path) -> None:
    _rows(tmp_path, [800.0, 800.0])  # on other processes
    with closing(MetricsLog(tmp_path / "metrics.jsonl")) as log:
        log.append(20, "event", what="resumed", detail="step-00000020")
    _rows(tmp_path, [100.0, 100.0], first=30)
    with closing(MetricsLog(tmp_path / "metrics.jsonl")) as log:
        log.append(40, "event", what="resumed", detail="step-00000040")
    _rows(tmp_path, [7.0] * 9, first=50)  # has saved nothing yet: nobody knows where it runs
    _saved(tmp_path, 40, processes=4)
    assert _found(_config(), tmp_path, 1600, CPUS).images_per_s == 100
    (tmp_path / "checkpoints" / "step-00000040" / "checkpoint.json").write_text("torn")
    assert _estimate(_config(), tmp_path, 1600, CPUS) is None


@pytest.mark.parametrize(
    ("preset", "changes", "from_epoch"),
    [
        ("finetune/debug", ["encoder=mae", "frozen_epochs=2"], 2),
        ("finetune/debug", ["frozen_epochs=2"], 0),
        ("finetune/debug", ["encoder=mae", "frozen_epochs=5"], 0),
        ("finetune/debug", ["encoder=mae", "linear_probe=true"], 0),
        ("sr/debug", ["encoder=mae", "frozen_epochs=1"], 1),
        ("common/debug", [], 7),
        ("common/debug", ["unfreeze_epochs=[3,1,1,1,1,2]", "train.epochs=9"], 7),
        ("common/debug", ["unfreeze_epochs=null"], 7),
        ("common/debug", ["unfreeze=all", "unfreeze_epochs=null"], 0),
    ],
)
def test_frozen_stages_do_not_count(
    tmp_path: Path, preset: str, changes: list[str], from_epoch: int
) -> None:
    config = _config(preset, *changes)
    _rows(tmp_path, [900.0] * from_epoch, first=10, per_epoch=10)
    _saved(tmp_path, 10 * from_epoch, processes=4)
    if from_epoch:
        assert _estimate(config, tmp_path, 1600, CPUS) is None
    _rows(tmp_path, [30.0], first=10 * from_epoch + 10, per_epoch=10)
    _saved(tmp_path, 10 * from_epoch + 10, processes=4)
    assert _found(config, tmp_path, 1600, CPUS).images_per_s == 30


def test_a_finished_run_of_the_same_settings_says_how_fast(tmp_path: Path) -> None:
    config = _config("mae/debug", "seed=4", "optim.lr=1e-4")
    other, wide = tmp_path / "other", tmp_path / "wide"
    for run, rate in ((other, 50.0), (wide, 70.0)):
        _rows(run, [rate])
        _saved(run, 10, processes=4)
    assert _estimate(config, tmp_path / "new", 1600, CPUS, [wide, other]) is None  # not finished
    _complete(wide, _config("mae/debug", "model.dim=128"))
    _complete(other, _config())
    found = _found(config, tmp_path / "new", 1600, CPUS, like=[wide, tmp_path / "none", other])
    assert found.images == 6400
    assert (found.images_per_s, found.source) == (50, f"measured in {other}")
    # Its own rate comes first, and its own folder is no other run.
    _rows(tmp_path / "new", [60.0])
    _saved(tmp_path / "new", 10, processes=4)
    assert _found(config, tmp_path / "new", 1600, CPUS, like=[other]).images_per_s == 60
    assert _estimate(_config("mae/debug", "precision=bf16"), wide, 1600, GPUS, [other]) is None


def test_without_a_measurement_arithmetic_says_it(tmp_path: Path) -> None:
    cluster = GPUS.model_copy(update={"tflops": 100.0, "walltime": 2})
    config = _config("mae/reference", "train.epochs=10000", "train.global_batch=2000")
    found = _found(config, tmp_path, 24_000, cluster)
    flops = train_flops(config)
    assert flops is not None
    assert found.images == 240_000_000
    assert found.images_per_s == pytest.approx(8 * 100e12 / flops)
    assert found.source == "from 7.4 GFLOP an image at 100 TFLOP/s"
    assert found.jobs == 38  # of 60 s each
    assert line(found, cluster) == (
        "about 37 min on 8 GPUs, 5 GPU-hours in 38 jobs "
        "(from 7.4 GFLOP an image at 100 TFLOP/s: 107,737 images/s)"
    )
    # The recipe's 16 images are too few for a GPU: launching its kernels takes longer.
    small = _found(_config("mae/reference"), tmp_path, 24_000, cluster)
    assert small.images_per_s == pytest.approx(16 / 0.01)
    assert "at 10 ms a step" in small.source
    assert _estimate(config, tmp_path, 24_000, GPUS) is None
    unknown = _config("common/debug", "model.members=[vgg12,resnet18]")
    assert _estimate(unknown, tmp_path, 24_000, cluster) is None


def test_known_hardware_says_it_better(tmp_path: Path) -> None:
    cluster = GPUS.model_copy(update={"tflops": 100.0, "hardware": Hardware(gpu="A100-80")})
    config = _config("mae/reference", "train.global_batch=2048", "train.micro_batch=256")
    found = _found(config, tmp_path, 24_000, cluster)
    row = scaling(config, Hardware(gpu="A100-80"), [8], 4)[0]
    assert found.images_per_s == pytest.approx(row.images_s)
    assert found.source == f"predicted for A100-80, whose {row.step.limit} takes longest"
    unknown = _config("common/debug", "model.members=[vgg12,resnet18]")
    assert _estimate(unknown, tmp_path, 24_000, cluster) is None
    # What was measured is believed more, and a job on CPUs has no GPU to predict for.
    _rows(tmp_path, [50.0])
    _saved(tmp_path, 10, 8, "NVIDIA A100")
    assert _found(config, tmp_path, 24_000, cluster).images_per_s == 50
    cpus = CPUS.model_copy(update={"hardware": Hardware(gpu="A100-80")})
    assert _estimate(config, tmp_path / "new", 24_000, cpus) is None


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    cluster = GPUS.model_copy(update={"tflops": 1.0})
    config = _config("common/best", f"run.dir={tmp_path}", "data.path=null")
    told = line(_found(config, tmp_path, 27_000, cluster), cluster)
    assert told.endswith("; not counted: simulating the images and fitting a lens to each, once)")


def test_no_images_no_estimate(tmp_path: Path) -> None:
    cluster = GPUS.model_copy(update={"tflops": 1.0})
    assert _estimate(_config(), tmp_path, None, cluster) is None
    assert _estimate(_config(), tmp_path, 15, cluster) is None  # less than a step


def test_a_range_of_nodes_counts_from_the_fewest(tmp_path: Path) -> None:
    cluster = Cluster(executor="slurm", nodes="4-8", gpus_per_node=1, tflops=1.0)
    found = _found(_config(), tmp_path, 1600, cluster)
    assert found.processes == 4
    assert "on 4 GPUs or more," in line(found, cluster)


def test_totals_name_what_is_unknown(tmp_path: Path) -> None:
    cluster = GPUS.model_copy(update={"tflops": 1.0})
    one = _found(_config("mae/reference"), tmp_path, 24_000, cluster)
    assert one.gpu_hours == pytest.approx(0.495, rel=0.01)
    assert total({"a": one, "b": one}) == "0.99 GPU-hours in all"
    assert total({"a": one, "b": None, "c": None}) == "0.5 GPU-hours in all; no estimate for b, c"
    assert total({"b": None}) == "no estimate for b"
    cpu = replace(one, gpu_hours=0.0, cpu_hours=1234.5)
    assert total({"a": one, "b": cpu}) == "0.5 GPU-hours and 1,234 core-hours in all"
