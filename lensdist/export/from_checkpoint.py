"""Read the weights of any checkpoint of a run, described as its export describes them.

An unfinished run has no export yet: its description is built from its `config.yaml` and its data,
as training builds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lensdist.config import load
from lensdist.config.differences import differences
from lensdist.config.schema import recorded_schema
from lensdist.data.config import PREPROCESS
from lensdist.data.dataset import PackedSet
from lensdist.distributed.context import DistributedContext
from lensdist.export.artifact import describe, read_export
from lensdist.phases import CHECKPOINTS, checkpoint_name, completed
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import task_class
from lensdist.tasks.types import Described, Inputs
from lensdist.training import checkpoint, state
from lensdist.training.checkpoint import Checkpoint, Damaged
from lensdist.utils.errors import UserError


def is_run(path: Path) -> bool:
    """Return whether `path` is a run, finished or not, rather than an export."""
    return (path / "config.yaml").is_file() or (path / "checkpoints").is_dir()


def exported(path: Path) -> Described:
    """Return the exported model of a finished run, which validation chose, or of an export.

    Raises:
        UserError: the run is not finished, or there is nothing, or it is damaged.
    """
    if is_run(path) and completed(path) is None:
        raise UserError(
            f"{path} is not finished, so no model has been chosen; give --step N or --step all "
            f"({_kept(path)})"
        )
    return read_export(path)


def steps_of(run: Path, step: int | None) -> list[int]:
    """Return `step` if its checkpoint is kept; for None, the steps of all kept checkpoints.

    Raises:
        UserError: there are none, or not this one.
    """
    if not is_run(run):
        raise UserError(f"{run} is not a run, so it has no checkpoints; leave out --step")
    found = [number for number, _ in checkpoint.steps(run / "checkpoints")]
    if not found or (step is not None and step not in found):
        wanted = "" if step is None else f" of step {step}"
        raise UserError(f"{run} holds no checkpoint{wanted}; {_kept(run)}")
    return found if step is None else [step]


def at_step(run: Path, step: int) -> Described:
    """Return a checkpoint's description, and its weights or, if the run keeps one, their average.

    Raises:
        UserError: the checkpoint is damaged, or the run can no longer be described: its data or
            its encoder is missing or has changed.
    """
    path = run / CHECKPOINTS / checkpoint_name(step)
    try:
        saved = checkpoint.read(path, state.check)
    except Damaged as e:
        raise UserError(
            f"a damaged checkpoint cannot be exported: {e}; give --step another one ({_kept(run)})"
        ) from e
    description, preprocess = _description(run, saved)
    then = saved.meta["state"]
    best = then["best"] if then["best_step"] == step else None
    description["metrics"] = {"selected_by": f"--step {step}", "val": best, "step": step}
    averaged = any(name.startswith("average/") for name in saved.tensors)
    prefix = "average/" if averaged else "model/"
    weights = {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}
    return description, weights | preprocess


def _kept(run: Path) -> str:
    found = [str(number) for number, _ in checkpoint.steps(run / "checkpoints")]
    return f"kept are the steps {', '.join(found)}" if found else "it has kept none"


def _description(run: Path, saved: Checkpoint) -> Described:
    """Return the description, and the preprocessing's own tensors."""
    if completed(run) is not None:
        description, weights = read_export(run)
        # `images` tells who chose the exported step; the others were found with its weights.
        other = ("format", "sha256", "images", "likeness", "threshold")
        kept = {k: v for k, v in description.items() if k not in other}
        return kept, {k: v for k, v in weights.items() if k.startswith(PREPROCESS)}
    cfg = load(run / "config.yaml", schema=recorded_schema)
    # A set of its own moves with the run's folder.
    packed = PackedSet(cfg.data.path or run / "data")
    labels = cfg.data.classes or tuple(packed.manifest.labels)
    # Published weights that training started from are not fetched: they have been trained since.
    start = task_class(cfg.task).start(
        cfg, Inputs(cfg.preprocess, packed, labels, DistributedContext(), read_export, fetch=False)
    )
    fingerprint = packed.manifest.fingerprint
    _refuse_changes(saved, cfg.model_dump(mode="json"), fingerprint, start.digest)
    task = build_task(cfg, labels, start.preprocess, start.weights)
    tensors = {PREPROCESS + k: v for k, v in start.preprocess.tensors().items()}
    return describe(cfg.preset, task, packed, {}), tensors


def _refuse_changes(
    saved: Checkpoint, config: dict[str, Any], data: str, encoder: str | None
) -> None:
    """Refuse other settings or inputs: other data has other statistics for the preprocessing."""
    changed = differences(saved.meta["config"], config)
    if changed:
        raise UserError(
            f"{saved.path} was saved with other settings than config.yaml's: {'; '.join(changed)}; "
            "put them back"
        )
    for what, name, now in (("data", "data.path", data), ("encoder", "encoder", encoder)):
        if saved.meta[what] != now:
            raise UserError(f"{saved.path} was trained with another {name}; put it back")
