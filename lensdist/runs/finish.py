"""Finish a run: export the best model by validation, and write `COMPLETE.json`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from lensdist.data.dataset import PackedSet
from lensdist.export.artifact import describe, write_export
from lensdist.phases import COMPLETE, checkpoint_name
from lensdist.tasks.registry import AnyTask
from lensdist.training import checkpoint
from lensdist.training.loop import Outcome
from lensdist.training.state import check_tensors
from lensdist.utils import provenance
from lensdist.utils.files import sha256, to_json, write_atomic
from lensdist.utils.sealed import sealed
from lensdist.utils.tensors import under

log = logging.getLogger(__name__)


def finish(
    folder: Path,
    task: AnyTask,
    outcome: Outcome,
    packed: PackedSet,
    seconds: float,
    facts: dict[str, Any],
    *,
    averaged: bool,
) -> None:
    """Export the best checkpoint's model, then write `COMPLETE.json`.

    Args:
        folder: the run's.
        task: the run's task.
        outcome: how training ended.
        packed: the data.
        seconds: from this start of the run to its end.
        facts: the configuration (`config`), and hashes of `data`, `encoder` and `weights`.
        averaged: whether the average of the weights is exported.
    """
    state, preset = outcome.state, facts["config"]["preset"]
    model, step = best_model(folder / "checkpoints", outcome, averaged)
    name, _ = task.select
    chosen = step == state.best_step
    lost = "" if chosen or state.best_step is None else f"; the best, of step {state.best_step}, "
    lost += "are lost" if lost else ""
    metrics: dict[str, Any] = {
        "selected_by": f"val {name}" if chosen else f"nothing: the last weights{lost}",
        "val": state.best if chosen else None,
        "step": step,
    }
    description = describe(preset, task, packed, metrics)
    written = write_export(folder / "export", model, description, task.preprocess.tensors())
    files = {f"export/{name}": digest for name, digest in written.items()}
    files |= {name: sha256(folder / name) for name in ("config.yaml", "metrics.jsonl")}
    record = {
        "task": task.name,
        "preset": preset,
        "steps": state.step,
        "metrics": metrics,
        "seconds": round(seconds, 1),
        **{name: facts[name] for name in ("data", "encoder", "weights")},
        "code": provenance.code(),
        "config": facts["config"],
        "files": files,
    }
    write_atomic(folder / COMPLETE, to_json(sealed(record)))


def best_model(root: Path, outcome: Outcome, averaged: bool) -> tuple[nn.Module, int]:
    """Return the network with the weights of the best checkpoint, or with their average.

    If that checkpoint is damaged, or no validation score was a number, return the last weights.

    Returns:
        The network, and the step of its weights.
    """
    step = outcome.state.best_step
    if step is None or step == outcome.state.step:
        return outcome.model, outcome.state.step
    prefix = "average/" if averaged else "model/"
    try:
        saved = checkpoint.read(
            root / checkpoint_name(step), lambda found: check_tensors(found, outcome.model)
        ).tensors
    except checkpoint.Damaged as e:
        log.warning("the best checkpoint is lost, exporting the last: %s", e)
        return outcome.model, outcome.state.step
    outcome.model.load_state_dict(under(prefix, saved))
    return outcome.model, step
