"""What a trained run leaves: the model that validation chose, and the word that it is complete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from lensdist import provenance
from lensdist.config.schema import BaseRun
from lensdist.data.packed import PackedSet
from lensdist.engine import checkpoint
from lensdist.engine.loop import Outcome
from lensdist.engine.state import check_tensors
from lensdist.export import write_export
from lensdist.files import sha256, to_json, write_atomic
from lensdist.phases import COMPLETE, checkpoint_name
from lensdist.sealed import sealed
from lensdist.tasks.base import Task


def finish(
    cfg: BaseRun,
    task: Task,
    outcome: Outcome,
    packed: PackedSet,
    seconds: float,
    facts: dict[str, Any],
) -> None:
    """Export the best checkpoint's model and write `COMPLETE.json`, last of all.

    Args:
        cfg: the run's configuration.
        task: what it learnt.
        outcome: how training ended.
        packed: the data.
        seconds: that this life of the run took.
        facts: hashes that name what it was trained with: `data`, `encoder`, `weights`.
    """
    folder, state = cfg.run.dir, outcome.state
    model, step = best_model(folder / "checkpoints", outcome, cfg.train.ema is not None)
    name, _ = task.select
    chosen = step == state.best_step
    lost = "" if chosen or state.best_step is None else f"; the best, of step {state.best_step}, "
    lost += "are lost" if lost else ""
    metrics: dict[str, Any] = {
        "selected_by": f"val {name}" if chosen else f"nothing: the last weights{lost}",
        "val": state.best if chosen else None,
        "step": step,
    }
    description = describe(cfg, task, packed, metrics)
    written = write_export(folder / "export", model, description, task.preprocess.tensors())
    files = {f"export/{name}": digest for name, digest in written.items()}
    files |= {name: sha256(folder / name) for name in ("config.yaml", "metrics.jsonl")}
    record = {
        "task": task.name,
        "preset": cfg.preset,
        "steps": state.step,
        "metrics": metrics,
        "seconds": round(seconds, 1),
        **{name: facts[name] for name in ("data", "encoder", "weights")},
        "code": provenance.code(),
        "config": cfg.model_dump(mode="json"),
        "files": files,
    }
    write_atomic(folder / COMPLETE, to_json(sealed(record)))


def describe(
    cfg: BaseRun, task: Task, packed: PackedSet, metrics: dict[str, Any]
) -> dict[str, Any]:
    """What an export's `config.json` says of a run's network, but for the weights' hash."""
    return {
        "task": task.name,
        "preset": cfg.preset,
        "labels": list(task.labels),
        "preprocessing": task.preprocess.state(),
        "metrics": metrics,
        "data": {
            "fingerprint": packed.manifest.fingerprint,
            "pixel_scale_arcsec": packed.manifest.pixel_scale_arcsec,
        },
        **task.describe(),
    }


def best_model(root: Path, outcome: Outcome, averaged: bool) -> tuple[nn.Module, int]:
    """The network with the weights of the best checkpoint (of their average where there is one).

    Where that checkpoint is damaged, or validation never gave a number, the last weights.

    Returns:
        The network, and the step that its weights are of.
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
        print(f"warning: the best checkpoint is lost, exporting the last: {e}", file=sys.stderr)
        return outcome.model, outcome.state.step
    outcome.model.load_state_dict(
        {k[len(prefix) :]: v for k, v in saved.items() if k.startswith(prefix)}
    )
    return outcome.model, step
