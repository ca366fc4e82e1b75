"""Find where a run continues: at its own newest checkpoint, or at one of another run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lensdist.config.differences import changes, differences
from lensdist.distributed.context import DistributedContext
from lensdist.phases import checkpoint_name
from lensdist.runs.asked import other_inputs
from lensdist.training import checkpoint, state
from lensdist.training.checkpoint import Checkpoint, Damaged
from lensdist.training.stages import Phase, stages_in_steps
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import fsync
from lensdist.utils.owners import remove
from lensdist.utils.owners import temporary as beside

log = logging.getLogger(__name__)


def find_checkpoint(
    phase: Phase, resume: str, world: DistributedContext | None = None
) -> Checkpoint | None:
    """Return the checkpoint to continue from, if any, checked against the configuration.

    A run's own checkpoints come first, so that a stopped run continues with the same command,
    whatever it started from.

    Args:
        phase: its own checkpoints, settings and network.
        resume: auto, never, or a checkpoint of another run (or that run: its newest one).
        world: processes that all call this, verify a part of the files each, and leave the tensors
            in their files. None: this process reads all.

    Raises:
        UserError: there is none where one must be, or the other way round; or it is of a run
            with other settings, data or weights, or of more steps than the configuration's.
        RunError: none of the run's own is intact.
    """
    root = phase.cfg.run.dir / "checkpoints"
    if resume == "never" and checkpoint.steps(root):
        raise UserError(
            f"--resume never: {root} already holds checkpoints; give another run.dir or "
            "--resume auto"
        )
    usable = _usable(phase)
    found = _newest(root, usable, world)
    if resume not in ("auto", "never"):
        given = Path(resume)
        found = _given(given, usable, world) if found is None else _own_first(found, given)
    if found is not None:
        _check(found, phase)
    return found


def bring(found: Checkpoint, root: Path) -> None:
    """Copy a checkpoint of another run, and that run's best, among this run's own.

    The best model so far is of that run: without it, the last weights would be exported. It is
    copied first: a run that is killed in between continues from it, to the same bits.

    Raises:
        RunError: this run's folder cannot be written.
    """
    if found.path.parent.resolve() == root.resolve():
        return
    best, theirs = found.meta["state"]["best_step"], found.path.parent
    if best is not None and best != found.step:
        try:
            _copy(theirs / checkpoint_name(best), root, best)
        except Damaged as e:
            log.warning(
                f"the best checkpoint so far, of step {best}, is lost ({e}); unless a "
                "later one is better, the last weights are exported"
            )
    try:
        _copy(found.path, root, found.step)
    except Damaged as e:
        raise RunError(f"--resume: {e}") from e


def _copy(source: Path, root: Path, step: int) -> None:
    """Link or copy a checkpoint to another root, completely or not at all.

    Raises:
        Damaged: it does not exist, or is not intact.
        RunError: `root` cannot be written.
    """
    temporary = beside(root / checkpoint_name(step))
    try:
        temporary.mkdir(parents=True)
        for file in source.glob("*"):
            if file.is_file():
                _link(file, temporary / file.name)
        if checkpoint.read(temporary, lazy=True).step != step:
            raise Damaged(f"{source}: holds another step")
        fsync(temporary)
        temporary.rename(root / checkpoint_name(step))
        fsync(root)
    except Damaged as e:
        raise Damaged(str(e).replace(str(temporary), str(source))) from e
    except OSError as e:
        raise RunError(f"{source} cannot be copied to {root}: {e}") from e
    finally:
        remove(temporary)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        fsync(target)


def _newest(
    root: Path, usable: Callable[[Checkpoint], None], world: DistributedContext | None
) -> Checkpoint | None:
    found, damaged = checkpoint.newest(root, usable, world)
    for sentence in damaged:
        log.warning("passed over a damaged checkpoint: %s", sentence)
    return found


def _given(
    path: Path, usable: Callable[[Checkpoint], None], world: DistributedContext | None
) -> Checkpoint:
    """Return the checkpoint at `path`, or the newest of the run or `checkpoints` folder there."""
    for root in (path / "checkpoints", path):
        if checkpoint.steps(root):
            try:
                found = _newest(root, usable, world)
            except RunError as e:
                raise UserError(f"--resume {path}: no checkpoint there is whole: {e}") from e
            assert found is not None  # there are some, and one is intact
            return found
    try:
        return checkpoint.read(path, usable, lazy=world is not None, world=world)
    except Damaged as e:
        raise UserError(f"--resume: {e}; give RUN/checkpoints/step-…") from e


def _usable(phase: Phase) -> Callable[[Checkpoint], None]:
    """Return a check that refuses states from which the run cannot continue."""

    def check(saved: Checkpoint) -> None:
        state.check(saved)
        alike = all(saved.meta[name] == phase.facts[name] for name in ("data", "encoder"))
        if alike and not differences(saved.meta["config"], phase.facts["config"]):
            state.check_tensors(saved, phase.meta_network)  # else `_check` reports the differences

    return check


def _own_first(own: Checkpoint, given: Path) -> Checkpoint:
    """Return the run's own checkpoint in place of the one that `--resume` names.

    Raises:
        UserError: that is an earlier one of the same run.
    """
    root = own.path.parent.resolve()
    if given.resolve().parent == root and given.resolve() != own.path.resolve():
        raise UserError(
            f"--resume {given} is of this run, which continues from {own.path.name}; give another "
            "run.dir to start from there"
        )
    log.info("this run has checkpoints: it continues from %s, not from %s", own.path, given)
    return own


def _check(found: Checkpoint, phase: Phase) -> None:
    """Compare a checkpoint with the configuration; log which free settings have changed."""
    cfg = phase.cfg
    saved, now = found.meta["config"], phase.facts["config"]
    wrong = differences(saved, now)
    if wrong:
        raise UserError(
            f"{found.path} was saved with other settings: {'; '.join(wrong)}; put them back, "
            "or give another run.dir"
        )
    inputs = other_inputs(found.meta, cfg)
    if inputs:
        raise UserError(
            f"{found.path} was trained with other inputs: {'; '.join(inputs)}; put them back, or "
            "give another run.dir"
        )
    total = stages_in_steps(phase.task, cfg.train, phase.plan.steps_per_epoch)[-1].end
    if found.step > total:
        raise UserError(
            f"{found.path} is past the {total} steps that train.epochs and train.max_steps ask "
            "for; raise them, or give another run.dir"
        )
    for line in changes(saved, now):
        log.info("continues with a changed setting: %s", line)
