"""A training phase, from its configuration to its `COMPLETE.json`: what the loop is given.

All that a user can get wrong is checked before the run writes anything of its own.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from lensdist.config import save
from lensdist.config.schema import BaseRun, ClassifierRun, SuperResolutionRun
from lensdist.data.manifest import Manifest
from lensdist.data.packed import PackedSet
from lensdist.data.source import Images, PackedSource, Source, StreamSource, View
from lensdist.engine import checkpoint, fp8, speed, state
from lensdist.engine.batches import plan_steps
from lensdist.engine.checkpoint import Checkpoint
from lensdist.engine.differences import differences
from lensdist.engine.finish import finish
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
from lensdist.errors import EXIT_DONE, EXIT_REQUEUE, UserError, say
from lensdist.sim.write import write_packed
from lensdist.tasks.build import build_task


def run(cfg: BaseRun, resume: str, world: World) -> int:
    """Train a phase and return its exit code.

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
    if not world.main:
        return _train(phase, world, resumed, packed, ends)
    cfg.run.dir.mkdir(parents=True, exist_ok=True)
    with held(cfg.run.dir):
        save(cfg, cfg.run.dir / "config.yaml")
        return _train(phase, world, resumed, packed, ends)


def _train(
    phase: Phase,
    world: World,
    resumed: Checkpoint | None,
    packed: PackedSet,
    ends: float | None,
) -> int:
    """What `run` does once all has been checked."""
    started = time.time()
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
            seconds = time.time() - started
            journal.event(outcome.state.step, "finished", str(folder))  # the record seals the rows
            journal.close()
            finish(cfg, phase.task, outcome, packed, seconds, phase.facts["encoder"])
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
    if world.main and not own.exists():
        say(f"simulating {cfg.data.n_per_class} images per class into {own}")
        truth = isinstance(cfg, SuperResolutionRun) and cfg.data.sim.family == "sr"
        write_packed(own, cfg.data.sim, cfg.data.n_per_class, cfg.seed, truth=truth)
    world.barrier()
    made, now = Manifest.load(own).source, cfg.data.sim.model_dump(mode="json")
    if made != {"simulated": now, "n_per_class": cfg.data.n_per_class, "seed": cfg.seed}:
        raise UserError(
            f"{own} was simulated with other settings than the configuration's; delete it, or "
            "give another run.dir"
        )
    return own


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
    check = _check(phase)
    found, damaged = checkpoint.newest(root, check)
    for sentence in damaged:
        say(f"warning: passed over a damaged checkpoint: {sentence}")
    if found is None and resume not in ("auto", "never"):
        try:
            found = checkpoint.read(Path(resume), check)
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


def _check(phase: Phase) -> Callable[[Checkpoint], None]:
    """Refuses what the run cannot go on from, though it may have been written whole."""

    @cache
    def network() -> nn.Module:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # weights go nowhere
            return phase.task.build()

    def check(saved: Checkpoint) -> None:
        state.check(saved)
        alike = all(saved.meta[name] == phase.facts[name] for name in ("data", "encoder"))
        if alike and not differences(saved.meta["config"], phase.facts["config"]):
            state.check_tensors(saved, network())  # else `_resume` says what was changed

    return check
