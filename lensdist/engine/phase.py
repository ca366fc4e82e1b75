"""A training phase, from its configuration to its `COMPLETE.json`: what the loop is given.

All that a user can get wrong is checked before the run writes anything of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lensdist.config.schema import BaseRun, ClassifierRun, SuperResolutionRun
from lensdist.data.manifest import Manifest
from lensdist.data.packed import PackedSet
from lensdist.data.source import Images, PackedSource, Source, StreamSource, View
from lensdist.engine import checkpoint, fp8, speed
from lensdist.engine.batches import plan_steps
from lensdist.engine.checkpoint import Checkpoint
from lensdist.engine.differences import differences
from lensdist.engine.finish import finish
from lensdist.engine.folder import check_folder, claim_folder
from lensdist.engine.initial import check_start, starting_point
from lensdist.engine.journal import Journal
from lensdist.engine.lock import held
from lensdist.engine.loop import train
from lensdist.engine.pairs import check_pairs
from lensdist.engine.preflight import check_devices
from lensdist.engine.prepared import PreparedView
from lensdist.engine.saver import Saver
from lensdist.engine.stages import Phase
from lensdist.engine.stopping import STOP, Deadline, Stopper, job_ends
from lensdist.engine.torch_settings import settle
from lensdist.engine.world import World
from lensdist.errors import EXIT_DONE, EXIT_REQUEUE, RunError, UserError, begun, say
from lensdist.sim.write import write_packed
from lensdist.tasks.build import build_task

T = TypeVar("T")


def run(
    cfg: BaseRun, resume: str, world: World, done: Callable[[], str | None] = lambda: None
) -> int:
    """Train a phase and return its exit code.

    Args:
        cfg: what to train.
        resume: auto, never, or a checkpoint's path.
        world: the processes.
        done: says in a sentence that nothing is left to do; asked once nobody else can write.

    Raises:
        UserError: the data, the pretrained encoder or what the folder holds do not suit the
            configuration; nothing was written but a set that the run simulated for itself.
        RunError: training had begun and could not go on.
        DeviceError: see `preflight`; nothing was written.
    """
    ends = job_ends(os.environ)
    settle(cfg, world.device)
    speed.check(cfg, world.device, world.size)
    fp8.check_device(cfg, world.device)
    check_devices(world)
    check_start(cfg, world)
    with ExitStack() as stack:

        def enter() -> str | None:
            """Nothing that the folder holds is looked at before, for it might change."""
            stack.enter_context(held(cfg.run.dir))
            said = done()
            if said is None:
                check_folder(cfg)
            return said

        said = _by_main(world, enter)
        if said is None:
            return _run(cfg, resume, world, ends)
    say(said)
    return EXIT_DONE


def _by_main(world: World, work: Callable[[], T]) -> T | None:
    """What the main process finds, on every process; what it refuses, all of them refuse."""
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


def _run(cfg: BaseRun, resume: str, world: World, ends: float | None) -> int:
    """What `run` does with a folder that it holds."""
    packed = PackedSet(_data(cfg, world))
    check_images(cfg, packed)
    if isinstance(cfg, SuperResolutionRun):
        check_pairs(cfg, packed)
    validation = View(packed, "val", cfg.data, cfg.seed, world.device)
    preprocess, weights, digest = starting_point(cfg, packed, tuple(validation.labels), world)
    facts = {
        "config": cfg.model_dump(mode="json"),
        "data": packed.manifest.fingerprint,
        "encoder": digest,
    }
    source = _source(cfg, packed, validation.labels, world)
    task = build_task(cfg, tuple(validation.labels), preprocess, weights)
    fp8.check_network(cfg, task)
    phase = Phase(
        cfg,
        task,
        source,
        validation,
        plan_steps(cfg.train.global_batch, cfg.train.micro, source.size, world.rank, world.size),
        facts,
    )
    resumed = _resume(phase, resume)
    world.agree("steps to resume from", resumed.step if resumed else 0)
    if (cfg.run.dir / STOP).exists():
        raise UserError(f"{cfg.run.dir / STOP} tells this run to stop; delete the file to go on")

    # ---- all that a user can get wrong has been checked; from here on the run writes
    _by_main(world, lambda: claim_folder(cfg))
    with begun(cfg.run.dir):
        return _train(phase, world, resumed, packed, ends)


def _train(
    phase: Phase,
    world: World,
    resumed: Checkpoint | None,
    packed: PackedSet,
    ends: float | None,
) -> int:
    """What `run` does once all has been checked."""
    started = time.monotonic()
    cfg, folder = phase.cfg, phase.cfg.run.dir
    stopper = Stopper(folder, world)  # from here on a wish to stop is heard
    phase = _prepared(phase, world)
    journal = Journal(cfg, world, resumed.step if resumed else 0)
    saver = Saver(
        folder / "checkpoints",
        cfg.checkpoint.keep,
        cfg.checkpoint.background,
        lambda step, sentence: journal.event(step, "not saved", sentence),
    )
    if ends is not None:
        stopper.deadline = Deadline(ends, saver.needs_s)
    try:
        outcome = train(phase, world, journal, saver, stopper, resumed)
        if outcome.status == "stopped":
            return EXIT_REQUEUE
        if world.main:
            seconds = time.monotonic() - started
            finish(cfg, phase.task, outcome, packed, seconds, phase.facts["encoder"])
            journal.event(outcome.state.step, "finished", str(folder))
    finally:
        try:
            saver.wait()  # whatever ended training: what is being written is worth having
        finally:
            journal.close()
    return EXIT_DONE


def _data(cfg: BaseRun, world: World) -> Path:
    """The packed set: the user's, or one that the run simulates for itself."""
    if cfg.data.path is not None:
        return cfg.data.path
    assert cfg.data.sim is not None  # the configuration has checked
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
    assert cfg.data.sim is not None  # the configuration has checked
    say(f"simulating {cfg.data.n_per_class} images per class into {own}")
    truth = isinstance(cfg, SuperResolutionRun) and cfg.data.sim.family == "sr"
    with begun(own):
        write_packed(own, cfg.data.sim, cfg.data.n_per_class, cfg.seed, truth=truth)


def check_images(cfg: BaseRun, packed: PackedSet) -> None:
    """Make sure that the network takes the images of a set.

    Raises:
        UserError: it does not, or the preprocessing cannot.
    """
    bands, height, width = packed.manifest.image_shape
    model = cfg.model  # type: ignore[attr-defined]
    wanted = (model.in_channels, model.image_size, model.image_size)
    if (bands, height, width) != wanted:
        patches = " and a model.patch_size that divides it" if hasattr(model, "patch_size") else ""
        raise UserError(
            f"{packed.path} holds images of {bands}x{height}x{width} but the model takes "
            f"{'x'.join(map(str, wanted))}; set model.in_channels={bands} "
            f"model.image_size={height}{patches}"
        )
    masked = sorted({"badpix.npy", "weights.npy"} & set(packed.manifest.files))
    if cfg.preprocess.scale == "lens_fit" and masked:
        raise UserError(
            f"preprocess.scale: lens_fit cannot pass over pixels, and {packed.path} holds "
            f"{masked[0]}; use another scale"
        )


def _source(
    cfg: BaseRun,
    packed: PackedSet,
    labels: tuple[str, ...],
    world: World,
) -> Source:
    if cfg.data.source == "stream":
        assert cfg.data.sim is not None  # the configuration has checked
        return StreamSource(cfg.data.sim, cfg.data.stream_epoch, labels, cfg.seed, world.device)
    view = View(packed, "train", cfg.data, cfg.seed, world.device)
    if isinstance(cfg, ClassifierRun) and view.unlabelled:
        raise UserError(
            f"{view.unlabelled} of the training images in {packed.path} have no label; name the "
            "classes to learn in data.classes to leave them out"
        )
    return PackedSource(view, cfg.seed)


def _prepared(phase: Phase, world: World) -> Phase:
    """With images on which preprocessing that takes long has been done, once for all epochs."""
    cfg, preprocess = phase.cfg, phase.task.preprocess
    if not preprocess.slow:
        return phase

    def prepare(view: Images) -> Images:
        if world.main:
            say(f"preparing {len(view):,} images, once ({cfg.preprocess.scale})")
        return PreparedView(view, preprocess, cfg.train.eval_batch, world)

    validation, source = prepare(phase.validation), phase.source
    if isinstance(source, PackedSource):
        source = PackedSource(prepare(source.view), cfg.seed)
    return replace(phase, validation=validation, source=source)


def _resume(phase: Phase, resume: str) -> Checkpoint | None:
    """The checkpoint to go on from, if any, checked against the configuration and the data.

    A run's own checkpoints come first, so that the command of a run that was stopped is the
    command that lets it go on, whatever it started from.
    """
    root = phase.cfg.run.dir / "checkpoints"
    if resume == "never" and checkpoint.steps(root):
        raise UserError(
            f"--resume never: {root} already holds checkpoints; give another run.dir or "
            "--resume auto"
        )
    found, damaged = checkpoint.newest(root)
    for sentence in damaged:
        say(f"warning: passed over a damaged checkpoint: {sentence}")
    if found is None and resume not in ("auto", "never"):
        try:
            found = checkpoint.read(Path(resume))
        except checkpoint.Damaged as e:
            raise UserError(f"--resume: {e}") from e
    if found is None:
        return None
    changed = differences(found.meta["config"], phase.facts["config"])
    if changed:
        raise UserError(
            f"{found.path} was saved with other settings: {'; '.join(changed)}; put them back, "
            "or give another run.dir"
        )
    for what, name in (("data", "data.path"), ("encoder", "encoder")):
        if found.meta[what] != phase.facts[what]:
            raise UserError(
                f"{found.path} was trained with another {name} than is there now; put it back, or "
                "give another run.dir"
            )
    return found
