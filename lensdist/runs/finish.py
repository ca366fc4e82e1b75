"""Finish a run: export the best model by validation, or the last, and write `COMPLETE.json`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from lensdist.data.dataset import PackedSet
from lensdist.export.artifact import describe, write_export
from lensdist.phases import COMPLETE, checkpoint_name
from lensdist.runs.learned import learn
from lensdist.training import checkpoint
from lensdist.training.loop import Outcome
from lensdist.training.selection import Selection
from lensdist.training.stages import Phase
from lensdist.training.state import check_tensors
from lensdist.utils import provenance
from lensdist.utils.files import sha256, to_json, write_atomic
from lensdist.utils.sealed import sealed
from lensdist.utils.stored import wholes
from lensdist.utils.tensors import under

log = logging.getLogger(__name__)


def finish(
    phase: Phase, outcome: Outcome, packed: PackedSet, seconds: float, selected: Selection
) -> None:
    """Export the selected model, then write `COMPLETE.json`.

    Args:
        phase: what was trained.
        outcome: how training ended.
        packed: the data.
        seconds: from this start of the run to its end.
        selected: which weights to export, and how many images chose them.
    """
    folder, task, facts = phase.cfg.run.dir, phase.task, phase.facts
    state, preset = outcome.state, phase.cfg.preset
    model, step = outcome.model, state.step
    if selected.best:
        averaged = phase.cfg.train.ema is not None
        model, step = best_model(folder / "checkpoints", outcome, averaged)
    name, _ = task.select
    chosen = selected.best and step == state.best_step
    lost = ""
    if selected.best and not chosen and state.best_step is not None:
        lost = f"; the best, of step {state.best_step}, are lost"
    metrics: dict[str, Any] = {
        "selected_by": f"val {name}" if chosen else f"nothing: the last weights{lost}",
        "val": state.best if chosen else None,
        "step": step,
    }
    images = selected.counts
    likeness = learn(phase, model)
    description = {**describe(preset, task, packed, metrics), "images": images}
    tensors = task.preprocess.tensors()
    written = write_export(folder / "export", model, description, tensors, likeness)
    files = {f"export/{name}": digest for name, digest in written.items()}
    files |= {name: sha256(folder / name) for name in ("config.yaml", "metrics.jsonl")}
    record = {
        "task": task.name,
        "preset": preset,
        "steps": state.step,
        "metrics": metrics,
        "images": images,
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
            root / checkpoint_name(step),
            lambda found: check_tensors(found, outcome.model),
            lazy=True,
        ).tensors
    except checkpoint.Damaged as e:
        log.warning("the best checkpoint is lost, exporting the last: %s", e)
        return outcome.model, outcome.state.step
    outcome.model.load_state_dict(wholes(under(prefix, saved)))
    return outcome.model, step
