"""The settings of a run of each task, as classes that tests make runs with; what a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lensdist.config.schema import run_schema
from lensdist.phases import completed
from lensdist.tasks.registry import built_in
from lensdist.tracking.metrics_log import read
from lensdist.training import checkpoint

MaeRun = run_schema("mae")
FinetuneRun = run_schema("finetune")
CommonRun = run_schema("common")
SuperResolutionRun = run_schema("sr")
TASKS = {task: run_schema(task) for task in built_in()}
TIMES = ("images_per_s", "seconds", "data_wait", "mfu", "memory_gb")


def newest(run: Path) -> checkpoint.Checkpoint:
    """The last whole checkpoint."""
    found, _ = checkpoint.newest(run / "checkpoints")
    assert found is not None
    return found


def record(run: Path) -> dict[str, Any]:
    """COMPLETE.json."""
    found = completed(run)
    assert found is not None
    return found


def rows(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without times."""
    found = (row for row in read(run / "metrics.jsonl") if row["kind"] in kinds)
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def losses(run: Path) -> list[float]:
    """At the steps that were logged."""
    return [row["loss"] for row in rows(run, "train")]


def assert_same_bits(found: checkpoint.Checkpoint, wanted: checkpoint.Checkpoint) -> None:
    """Of all tensors of two checkpoints of a step."""
    assert found.step == wanted.step
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        assert torch.equal(tensor, found.tensors[name]), name


def assert_same_end(run: Path, whole: Path) -> None:
    """Two runs are complete, and their state, log and export are the same bits."""
    ours, theirs = newest(run), newest(whole)
    assert_same_bits(ours, theirs)
    assert ours.meta["state"] == theirs.meta["state"]
    assert rows(run, "train", "val") == rows(whole, "train", "val")
    weights = "export/model.safetensors"
    assert record(run)["files"][weights] == record(whole)["files"][weights]
