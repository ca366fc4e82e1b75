"""Train one phase: on a laptop, one GPU, or every process that a launcher starts.

    python -m lensdist.train --config configs/mae/debug.yaml run.dir=runs/try
    accelerate launch --config_file accelerate_config.yaml -m lensdist.train --config …

Exit codes: 0 done; 1 failure; 2 bad configuration or input, nothing was started; 75 the run was
asked to stop and has saved: run the same command again.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lensdist.commands.train import parse
from lensdist.config.schema import BaseRun, FinetuneRun
from lensdist.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REQUEUE,
    RunError,
    UserError,
)
from lensdist.phases import completed

if TYPE_CHECKING:
    from torch import Tensor

    from lensdist.data.packed import PackedSet
    from lensdist.data.preprocess import Preprocess
    from lensdist.data.source import Source, View
    from lensdist.engine.batches import StepPlan
    from lensdist.engine.checkpoint import Checkpoint
    from lensdist.engine.world import World
    from lensdist.tasks.base import Task


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (several processes leave by themselves)."""
    world: World | None = None
    try:
        cfg, resume = parse(sys.argv[1:] if argv is None else argv)
        done = _already_done(cfg, resume)
        if done:
            _say(done)
            return EXIT_DONE
        from lensdist.engine.world import World

        world = World(cfg)
        code = run(cfg, resume, world)
    except UserError as e:
        _complain(e)
        code = EXIT_BAD_INPUT
    except RunError as e:
        _complain(e)
        code = EXIT_FAILED
    except Exception:
        if world is None or world.size == 1:
            raise
        # The interpreter's teardown under a live process group may abort, or wait for the others.
        traceback.print_exc()
        code = EXIT_FAILED
    if world is not None and world.size > 1:
        world.close(code)
    return code


def run(cfg: BaseRun, resume: str, world: World) -> int:
    """Train a phase from its configuration to its `COMPLETE.json`.

    Raises:
        UserError: the data or the pretrained encoder do not suit the configuration.
        RunError: training had begun and could not go on.
    """
    from lensdist.config import save
    from lensdist.data.packed import PackedSet
    from lensdist.data.source import View
    from lensdist.engine.batches import plan_steps
    from lensdist.engine.lock import held
    from lensdist.engine.torch_settings import settle
    from lensdist.tasks.build import build_task

    settle(cfg, world.device)
    packed = PackedSet(_data(cfg, world))
    _check_images(cfg, packed)
    preprocess, encoder = _pretrained(cfg, packed)
    validation = View(packed, "val", cfg.data, cfg.seed, world.device)
    task = build_task(cfg, tuple(validation.labels), preprocess, encoder)
    source = _source(cfg, packed, validation.labels, world)
    plan = plan_steps(cfg.train.global_batch, cfg.train.micro, source.size, world.rank, world.size)
    resumed = _resume(cfg, resume, packed)
    world.agree("steps to resume from", resumed.step if resumed else 0)

    # ---- nothing has been written so far, and all that a user can get wrong has been checked
    if not world.main:
        return _train(cfg, task, source, validation, plan, world, resumed, packed)
    cfg.run.dir.mkdir(parents=True, exist_ok=True)
    with held(cfg.run.dir):
        save(cfg, cfg.run.dir / "config.yaml")
        return _train(cfg, task, source, validation, plan, world, resumed, packed)


def _train(
    cfg: BaseRun,
    task: Task,
    source: Source,
    validation: View,
    plan: StepPlan,
    world: World,
    resumed: Checkpoint | None,
    packed: PackedSet,
) -> int:
    """What `run` does once all has been checked: from here on files are written."""
    from lensdist.engine.finish import finish
    from lensdist.engine.journal import Journal
    from lensdist.engine.loop import train
    from lensdist.engine.saver import Saver
    from lensdist.engine.stopping import Stopper

    started = time.time()
    folder = cfg.run.dir
    journal = Journal(cfg, world, resumed.step if resumed else 0)
    saver = Saver(
        folder / "checkpoints",
        cfg.checkpoint.keep,
        cfg.checkpoint.background,
        lambda step, sentence: journal.event(step, "not saved", sentence),
    )
    stopper = Stopper(folder, world)
    try:
        outcome = train(
            cfg,
            task,
            source,
            validation,
            plan,
            world,
            journal,
            saver,
            stopper,
            resumed,
            {"data": packed.manifest.fingerprint, "config": cfg.model_dump(mode="json")},
        )
        if outcome.status == "stopped":
            return EXIT_REQUEUE
        if world.main:
            finish(cfg, task, outcome, packed, time.time() - started)
            journal.event(outcome.state.step, "finished", str(folder))
    finally:
        try:
            saver.wait()  # whatever ended training: what is being written is worth having
        finally:
            journal.close()
    return EXIT_DONE


def _already_done(cfg: BaseRun, resume: str) -> str | None:
    record = completed(cfg.run.dir)
    if record is None:
        return None
    from lensdist.engine.differences import differences

    changed = differences(record["config"], cfg.model_dump(mode="json"))
    if resume == "auto" and not changed:
        return f"{cfg.run.dir} is complete ({record['steps']} steps); nothing to do"
    why = f"with other settings ({changed[0]})" if changed else "already"
    raise UserError(f"{cfg.run.dir} was completed {why}; give another run.dir")


def _data(cfg: BaseRun, world: World) -> Path:
    """The packed set: the user's, or one that the run simulates for itself."""
    if cfg.data.path is not None:
        return cfg.data.path
    from lensdist.data.manifest import Manifest

    assert cfg.data.sim is not None  # the configuration has checked
    own = cfg.run.dir / "data"
    if world.main and not own.exists():
        from lensdist.sim.write import write_packed

        _say(f"simulating {cfg.data.n_per_class} images per class into {own}")
        write_packed(own, cfg.data.sim, cfg.data.n_per_class, cfg.seed)
    world.barrier()
    made, now = Manifest.load(own).source, cfg.data.sim.model_dump(mode="json")
    if made != {"simulated": now, "n_per_class": cfg.data.n_per_class, "seed": cfg.seed}:
        raise UserError(
            f"{own} was simulated with other settings than the configuration's; delete it, or "
            "give another run.dir"
        )
    return own


def _check_images(cfg: BaseRun, packed: PackedSet) -> None:
    bands, height, width = packed.manifest.image_shape
    wanted = (cfg.model.in_channels, cfg.model.image_size, cfg.model.image_size)  # type: ignore[attr-defined]
    if (bands, height, width) != wanted:
        raise UserError(
            f"{packed.path} holds images of {bands}x{height}x{width} but the model takes "
            f"{'x'.join(map(str, wanted))}; set model.in_channels={bands} "
            f"model.image_size={height} and a model.patch_size that divides it"
        )


def _pretrained(cfg: BaseRun, packed: PackedSet) -> tuple[Preprocess, dict[str, Tensor] | None]:
    """Preprocessing, and the encoder's weights where the run starts from some.

    A pretrained encoder brings its own preprocessing: fed with other units, it is worth nothing.
    """
    if isinstance(cfg, FinetuneRun) and cfg.encoder is not None:
        from lensdist.export import encoder_of

        if (cfg.encoder / "export").is_dir() and completed(cfg.encoder) is None:
            raise UserError(f"encoder: {cfg.encoder} is not finished; run its command again first")
        theirs, weights = encoder_of(cfg.encoder, cfg.model)
        if theirs.cfg != cfg.preprocess:
            raise UserError(
                f"preprocess: {cfg.preprocess} is not what the encoder in {cfg.encoder} was "
                f"trained with, {theirs.cfg}; use that"
            )
        return theirs, weights
    from lensdist.data.preprocess import Preprocess
    from lensdist.data.smooth import fit_smooth

    how, statistics = cfg.preprocess, packed.manifest.statistics
    residual = how.scale == "residual"
    smooth = fit_smooth(packed, how.smooth_class, how.components) if residual else None
    return Preprocess(how, statistics.mean, statistics.std, smooth), None


def _source(cfg: BaseRun, packed: PackedSet, labels: tuple[str, ...], world: World) -> Source:
    from lensdist.data.source import PackedSource, StreamSource, View

    if cfg.data.source == "packed":
        return PackedSource(View(packed, "train", cfg.data, cfg.seed, world.device), cfg.seed)
    assert cfg.data.sim is not None
    return StreamSource(cfg.data.sim, cfg.data.stream_epoch, labels, cfg.seed, world.device)


def _resume(cfg: BaseRun, resume: str, packed: PackedSet) -> Checkpoint | None:
    """The checkpoint to go on from, if any, checked against the configuration and the data."""
    from lensdist.engine import checkpoint
    from lensdist.engine.differences import differences

    root = cfg.run.dir / "checkpoints"
    if resume == "never":
        if checkpoint.steps(root):
            raise UserError(
                f"--resume never: {root} already holds checkpoints; give another run.dir or "
                "--resume auto"
            )
        return None
    if resume == "auto":
        found, damaged = checkpoint.newest(root)
        for sentence in damaged:
            _say(f"warning: passed over a damaged checkpoint: {sentence}")
    else:
        try:
            found = checkpoint.read(Path(resume))
        except checkpoint.Damaged as e:
            raise UserError(f"--resume: {e}") from e
    if found is None:
        return None
    changed = differences(found.meta["config"], cfg.model_dump(mode="json"))
    if changed:
        raise UserError(
            f"{found.path} was saved with other settings: {'; '.join(changed)}; put them back, "
            "or give another run.dir"
        )
    if found.meta["data"] != packed.manifest.fingerprint:
        raise UserError(
            f"{found.path} was trained on other data than {packed.path}; give another run.dir"
        )
    return found


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)


def _complain(error: Exception) -> None:
    # From every process: what is wrong on one node only, the first process does not know.
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"[process {rank}] "
    print(f"{where}error: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
