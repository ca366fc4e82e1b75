"""Run a training phase: check the configuration, prepare the inputs, train, and finish.

All that a user can get wrong is checked before the run writes anything of its own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from lensdist.config.schema import BaseRun
from lensdist.data.dataset import PackedSet
from lensdist.data.manifest import Manifest
from lensdist.data.packing.simulated import write_packed
from lensdist.data.sampler import Images, PackedSource, Source
from lensdist.data.stream import StreamSource
from lensdist.data.subset import View
from lensdist.distributed import fp8, speed
from lensdist.distributed.config import strategy_name
from lensdist.distributed.context import DistributedContext
from lensdist.distributed.determinism import set_determinism
from lensdist.distributed.device_check import build_context, check_devices
from lensdist.distributed.micro_batches import plan_steps
from lensdist.export.artifact import read_export
from lensdist.runs import pace
from lensdist.runs.asked import named_weights
from lensdist.runs.finish import finish
from lensdist.runs.folder import check_folder, claim_folder
from lensdist.runs.lock import held
from lensdist.runs.resume import bring, find_checkpoint
from lensdist.runs.sizes import check_images
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import AnyTask, task_class
from lensdist.tasks.types import Inputs
from lensdist.training.async_saver import Saver
from lensdist.training.checkpoint import Checkpoint
from lensdist.training.loop import train
from lensdist.training.prepared import PreparedView, measured
from lensdist.training.run_logger import RunLogger
from lensdist.training.selection import Selection, selection
from lensdist.training.shares import Together
from lensdist.training.stages import Phase, check_warmup, stages_in_steps
from lensdist.training.stopping import STOP, Deadline, Stopper, job_ends
from lensdist.utils.errors import EXIT_DONE, EXIT_REQUEUE, RunError, UserError, begun
from lensdist.utils.launched import STAGED

log = logging.getLogger(__name__)

T = TypeVar("T")


def context_of(cfg: BaseRun) -> DistributedContext:
    """Build the context of a run; see `build_context`."""
    sharded = cfg.engine != "ddp"
    return build_context(cfg.precision, sharded=sharded, bucket_mb=cfg.speed.bucket_mb)


def run(
    cfg: BaseRun,
    resume: str,
    world: DistributedContext,
    done: Callable[[], str | None] = lambda: None,
) -> int:
    """Train a phase and return its exit code.

    `resume` is auto, never, or a checkpoint's path. `done` returns a sentence if nothing is left to
    do, and is called once no other process can write.

    Raises:
        UserError: the data, the pretrained encoder or the folder's content do not suit the
            configuration; nothing was written but a set that the run simulated for itself.
        RunError: training had begun and could not continue.
        DeviceError: see `check_devices`; nothing was written.
    """
    ends = job_ends(os.environ)
    set_determinism(world.device, deterministic=cfg.train.deterministic, precision=cfg.precision)
    strategy = strategy_name(cfg.engine, cfg.shard)
    speed.check(cfg.speed, cfg.train, strategy, world.device, world.size)
    if cfg.precision == "fp8":
        fp8.check_device(world.device)
    check_devices(world)
    task_class(cfg.task).check_settings(cfg, cfg.preprocess, world)
    pace.announce(cfg, world)
    with ExitStack() as stack:

        def enter() -> str | None:
            """Hold the folder before looking at its content, which might change."""
            stack.enter_context(held(cfg.run.dir))
            said = done()
            if said is None:
                inputs = {"data.path": cfg.data.path, "encoder": getattr(cfg, "encoder", None)}
                check_folder(cfg.run.dir, inputs)
            return said

        said = _by_main(world, enter)
        if said is None:
            return _run(cfg, resume, world, ends)
    log.info(said)
    return EXIT_DONE


def _by_main(world: DistributedContext, work: Callable[[], T]) -> T | None:
    """Return the main process's result on every process; raise its error on all of them."""
    found, error = None, None
    if world.main:
        try:
            found = work()
        except (UserError, RunError) as e:
            error = e
    found, error = world.from_main((found, error))
    if error is not None:
        error.told = not world.main
        raise error
    return found


def _run(cfg: BaseRun, resume: str, world: DistributedContext, ends: float | None) -> int:
    """Run the phase in a folder that this process holds."""
    # One process per node hashes large arrays; if it finds damage, the launcher ends the others.
    verify = cfg.data.verify if world.accelerator.is_local_main_process else "off"
    packed = PackedSet(_data(cfg, world), verify, background=True)
    kind = task_class(cfg.task)
    kind.check_data(cfg, packed, cfg.data)
    check_images(cfg, packed)
    validation = View(packed, "val", cfg.data, cfg.seed, world.device)
    labels = tuple(validation.labels)
    start = kind.start(cfg, Inputs(cfg.preprocess, packed, labels, world, read_export))
    facts = {
        "config": cfg.model_dump(mode="json"),
        "data": packed.manifest.fingerprint,
        "encoder": start.digest,
        "weights": named_weights(cfg),
    }
    task = build_task(cfg, labels, start.preprocess, start.weights)
    task.stages(cfg.train.epochs)  # raises an error for stages that do not fit
    source = _source(cfg, task, packed, world)
    phase = Phase(
        cfg,
        task,
        source,
        validation,
        plan_steps(
            cfg.train.global_batch, cfg.train.micro_batch, source.size, world.rank, world.size
        ),
        facts,
        partial(pace.peak_images_per_s, cfg, world),
        weighted=bool(packed.manifest.pixel_weights),
    )
    selected = selection(
        cfg.train,
        cfg.data,
        source.size if cfg.data.source == "packed" else None,
        len(validation),
        len(labels),
    )
    check_warmup(cfg.optim.schedule, stages_in_steps(task, cfg.train, phase.plan.steps_per_epoch))
    if cfg.speed.recompute or cfg.speed.compile == "blocks":
        speed.check_network(cfg.speed, phase.meta_network)
    if cfg.precision == "fp8":
        fp8.check_network(phase.meta_network, task.stages(cfg.train.epochs))
    resumed = find_checkpoint(phase, resume, world if cfg.engine != "ddp" else None)
    world.agree("steps to resume from", resumed.step if resumed else 0)
    if (cfg.run.dir / STOP).exists():
        raise UserError(f"{cfg.run.dir / STOP} stops this run; delete the file to continue")

    # ---- all that a user can get wrong has been checked; from here on the run writes

    def claim() -> None:
        claim_folder(cfg.run.dir, cfg)
        if resumed is not None:
            bring(resumed, cfg.run.dir / "checkpoints")

    _by_main(world, claim)
    with begun(cfg.run.dir):
        return _train(phase, selected, world, resumed, packed, ends)


def _train(
    phase: Phase,
    selected: Selection,
    world: DistributedContext,
    resumed: Checkpoint | None,
    packed: PackedSet,
    ends: float | None,
) -> int:
    """Train and finish a phase whose checks have passed."""
    started = time.monotonic()
    cfg, folder = phase.cfg, phase.cfg.run.dir
    if world.main:
        log.info(selected)
    phase = _prepared(phase, world)
    stopper = Stopper(folder, world)  # from here on a stop request leaves something to save
    step, config = resumed.step if resumed else 0, phase.facts["config"]
    logger = RunLogger(folder, cfg.track, config, world.device, step, enabled=world.main)
    saver = Saver(
        folder / "checkpoints",
        cfg.checkpoint.keep,
        cfg.checkpoint.background,
        lambda step, sentence: logger.event(step, "not saved", sentence, logging.WARNING),
        Together(world) if cfg.engine != "ddp" and world.size > 1 else None,
    )
    if ends is not None:
        stopper.deadline = Deadline(ends, saver.needs_s)
    try:
        outcome = train(phase, world, logger, saver, stopper, resumed)
        if outcome.status == "stopped":
            return EXIT_REQUEUE
        _refuse_damage(packed, world)
        if world.main:
            seconds = time.monotonic() - started
            logger.event(outcome.state.step, "finished", str(folder))  # the record seals the rows
            logger.close()
            finish(phase, outcome, packed, seconds, selected)
    except BaseException:
        saver.hurry()  # the other processes may have ended
        raise
    finally:
        try:
            saver.wait()  # complete the checkpoint in progress, whatever ended training
        finally:
            logger.close()
    return EXIT_DONE


def _refuse_damage(packed: PackedSet, world: DistributedContext) -> None:
    """Wait until the set is verified on all nodes: a run on damaged data must not be complete."""
    damage: RunError | None = None
    try:
        packed.verification.check(wait=True)
    except RunError as e:
        damage = e
    if world.any(damage is not None):
        raise damage or RunError(f"another process has found {packed.path} damaged")


def _data(cfg: BaseRun, world: DistributedContext) -> Path:
    """Return the packed set: the user's, or one that the run simulates for itself."""
    if cfg.data.path is not None:
        return Path(os.environ.get(STAGED) or cfg.data.path)
    assert cfg.data.sim is not None  # checked by the configuration
    own = cfg.run.dir / "data"
    _by_main(world, lambda: None if own.exists() else _simulate(cfg, own))
    made, now = Manifest.load(own).source, cfg.data.sim.model_dump(mode="json")
    if made != {"simulated": now, "n_per_class": cfg.data.n_per_class, "seed": cfg.seed}:
        raise UserError(
            f"{own} was simulated with other settings than the configuration's; delete it, or "
            "give another run.dir"
        )
    return own


def _simulate(cfg: BaseRun, own: Path) -> None:
    assert cfg.data.sim is not None  # checked by the configuration
    log.info("simulating %d images per class into %s", cfg.data.n_per_class, own)
    truth = task_class(cfg.task).wants_truth and cfg.data.sim.family == "sr"
    with begun(own):
        write_packed(own, cfg.data.sim, cfg.data.n_per_class, cfg.seed, truth=truth)


def _source(cfg: BaseRun, task: AnyTask, packed: PackedSet, world: DistributedContext) -> Source:
    if cfg.data.source == "stream":
        assert cfg.data.sim is not None  # checked by the configuration
        return StreamSource(
            cfg.data.sim, cfg.data.stream_epoch, task.labels, cfg.seed, world.device
        )
    view = View(packed, "train", cfg.data, cfg.seed, world.device)
    if task.needs_labels and view.unlabelled:
        raise UserError(
            f"{view.unlabelled} of the training images in {packed.path} have no label; name the "
            "classes to learn in data.classes to leave them out"
        )
    if cfg.data.balance == "none":
        return PackedSource(view, cfg.seed)
    if not len(view.classes) or view.classes.min() < 0:
        raise UserError(
            f"data.balance: some training images in {packed.path} have no label; set "
            "data.balance=none, or name the classes to learn in data.classes"
        )
    return PackedSource(view, cfg.seed, view.classes)


def _prepared(phase: Phase, world: DistributedContext) -> Phase:
    """Return the phase with slow preprocessing done, once for all epochs.

    The preprocessing gets the limits of its columns from the images of training and validation.
    """
    cfg, preprocess = phase.cfg, phase.task.preprocess
    if not preprocess.slow:
        if preprocess.columns:
            columns = measured(phase.validation, preprocess, cfg.train.eval_batch, world)
            preprocess.learn_limits(columns)
        return phase

    def prepare(view: Images) -> PreparedView:
        if world.main:
            log.info(f"preparing {len(view):,} images, once ({cfg.preprocess.scale})")
        return PreparedView(view, preprocess, cfg.train.eval_batch, world)

    views, source = [prepare(phase.validation)], phase.source
    if isinstance(source, PackedSource):
        views.append(prepare(source.view))
        source = PackedSource(views[-1], cfg.seed, source.classes)
    each = [view.columns for view in views]
    preprocess.learn_limits(
        {name: torch.cat([columns[name] for columns in each]) for name in preprocess.columns}
    )
    return replace(phase, validation=views[0], source=source)
