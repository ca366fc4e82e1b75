"""The training loop, the same for every task and phase."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensdist.distributed.config import strategy_name
from lensdist.distributed.context import DistributedContext
from lensdist.distributed.optim import learning_rate
from lensdist.distributed.strategies import StrategySettings, build_strategy
from lensdist.tasks.registry import AnyTask
from lensdist.training.async_saver import Saver
from lensdist.training.checkpoint import Checkpoint
from lensdist.training.dependence import of_processes
from lensdist.training.nonfinite import find_nonfinite
from lensdist.training.run_logger import RunLogger
from lensdist.training.stages import Entered, Phase, enter, stages_in_steps
from lensdist.training.state import TrainState, describe, machine_changes, restore
from lensdist.training.state import machine as this_machine
from lensdist.training.stopping import Stopper
from lensdist.training.validation import evaluate
from lensdist.utils import rng
from lensdist.utils.errors import RunError
from lensdist.utils.stored import Value

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """The end of a run."""

    status: Literal["finished", "stopped"]
    state: TrainState
    model: nn.Module
    """The network that was evaluated last: with averaged weights if the run keeps an average. It is
    complete on the main process."""


def train(
    phase: Phase,
    world: DistributedContext,
    logger: RunLogger,
    saver: Saver,
    stopper: Stopper,
    resumed: Checkpoint | None,
) -> Outcome:
    """Train until the last step, early stopping, or a stop request.

    Raises:
        RunError: the loss is not finite, or the last state could not be saved.
    """
    cfg, task, plan = phase.cfg, phase.task, phase.plan
    stages = stages_in_steps(task, cfg.train, plan.steps_per_epoch)
    total = stages[-1].end
    log_every = cfg.train.log_every
    eval_every = max(1, round(cfg.train.eval_every_epochs * plan.steps_per_epoch))
    save_every = cfg.checkpoint.every_steps or max(
        1, round(cfg.checkpoint.every_epochs * plan.steps_per_epoch)
    )

    # ---- the network, and the state
    torch.manual_seed(rng.key(cfg.seed, "initial weights") % 2**63)
    settings = StrategySettings(
        cfg.optim, cfg.shard, cfg.speed, cfg.precision, cfg.train.ema, cfg.train.reproducible
    )
    strategy = build_strategy(cfg.engine, settings, world, plan, task.build)
    machine = this_machine(strategy_name(cfg.engine, cfg.shard), cfg.speed, world)
    state = TrainState()
    tensors: dict[str, Value] = {}
    if resumed is not None:
        state = restore(resumed, strategy, world)
        tensors = resumed.tensors
    _announce(phase, world, strategy.unwrapped, total)
    logger.begin(total, state.step, plan)
    if resumed is not None:
        logger.event(state.step, "resumed", resumed.path.name)
        before = resumed.meta["machine"]
        changed = machine_changes(before, machine)
        if changed and not cfg.train.reproducible:
            moved = cfg.train.micro_batch == "auto" and before["processes"] != world.size
            what = f"resumed elsewhere, {'the result' if moved else 'last bits'} may differ"
            logger.event(state.step, what, changed)

    # ---- steps
    now: Entered | None = None
    losses: list[Tensor] = []  # one row per step, still on the device
    waited = 0.0  # seconds spent on fetching batches since the last log interval
    while state.step < total and not _exhausted(cfg.train.early_stop, state):
        if now is None or state.step >= now.stage.end:
            if now is not None:
                tensors = {**strategy.state_dict()}
                now = None  # free its images before those of the next stage are made
            stage = next(s for s in stages if state.step < s.end)
            now = enter(stage, strategy, phase, world, tensors)
            if now.kept:
                logger.event(state.step, "frozen layers", now.kept)
            entered = state.step
            stopper.begin_stage()
            tensors.clear()  # the whole state; of the checkpoint that was read, memory and files
            logger.peak_images_per_s = phase.peak_images_per_s(strategy.unwrapped)

        first, last = 0, total
        if cfg.optim.schedule.per_stage:
            first, last = now.stage.start, now.stage.end
        rate = cfg.optim.lr * learning_rate(
            cfg.optim.schedule, state.step - first, last - first, plan.steps_per_epoch
        )

        # ---- forward and backward, a micro-batch at a time
        now.statistics.begin()
        step_losses = []
        for index, micro in enumerate(plan.mine):
            epoch, offset = plan.place(state.step, micro)
            began = time.perf_counter()
            batch = now.source.take(epoch, offset, plan.micro_batch)
            waited += time.perf_counter() - began
            # Dropout draws from torch's global generator. Seed it by micro-batch, so that masks
            # depend neither on the number of processes nor on where a run was resumed.
            world.seed(rng.key(cfg.seed, "dropout", state.step, micro))
            with strategy.micro_batch(index):
                loss = task.loss(strategy.wrapped, batch, rng.key(cfg.seed, "draw", epoch))
                strategy.backward(loss)
            now.statistics.collect()
            step_losses.append(loss.detach().float())
        now.statistics.finish()

        # ---- step
        state.step += 1
        logs = state.step % log_every == 0 or state.step == total
        norm = strategy.step(rate, state.step, measure=logs)
        losses.append(torch.stack(step_losses))

        # ---- log
        if logs:
            _flush(losses, state, world)
            loss_mean = sum(state.window) / len(state.window)
            logger.train(state.step, loss=loss_mean, lr=rate, grad_norm=norm, waited=waited)
            waited = 0.0
            _refuse_nonfinite(state, phase)
            state.window.clear()
            saver.poll()

        # ---- evaluate
        improved = False
        if state.step % eval_every == 0 or state.step == total:
            start = time.perf_counter()
            with logger.aside(), strategy.ema_weights() as model:
                scores = evaluate(task, model, phase.validation, cfg.train.eval_batch, world)
            improved = _judge(task, state, scores)
            logger.scores(state.step, scores, improved, time.perf_counter() - start)

        # ---- save, and exit if a stop was requested
        if state.step == entered + 1 and world.main and strategy.replicated:
            saver.prepare(strategy.state_dict())  # now the optimizer's state exists
        leaving = state.step < total and stopper.agreed()
        due = state.step % save_every == 0 or state.step == total
        if due or improved or leaving:
            _flush(losses, state, world)
            _refuse_nonfinite(state, phase)  # such a state would replace the last good one
            with logger.aside():
                began = time.perf_counter()
                protect = {state.best_step} if state.best_step is not None else set()
                meta = {**describe(state, world, machine), **phase.facts}
                if world.main:
                    logger.sync()
                    log.debug("step %d: saving", state.step)
                if not strategy.replicated and world.size > 1:
                    saver.save_shares(state.step, strategy.shares(), meta, protect, began)
                else:
                    captured = strategy.state_dict()
                    if world.main:
                        saver.save(state.step, captured, meta, protect, began)
                    del captured  # free it before the next one is captured
        if leaving:
            if not saver.wait() and world.main:  # each waits for its own share
                raise RunError("asked to stop, but the state could not be saved")
            logger.event(state.step, "stopped and saved", stopper.asked() or "by another process")
            return Outcome("stopped", state, strategy.unwrapped)

    if not saver.wait() and world.main:
        raise RunError("training is done, but its last state could not be saved")
    return Outcome("finished", state, strategy.export_model(tensors))


def _announce(phase: Phase, world: DistributedContext, network: nn.Module, total: int) -> None:
    """Log the size of a step, and whether the result depends on the number of processes."""
    cfg, plan = phase.cfg, phase.plan
    log.info(
        f"{cfg.task}/{cfg.preset}: {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{total} steps of {plan.count * plan.micro_batch} images = {plan.count} micro-batches of "
        f"{plan.micro_batch} on {world.size} process(es), {plan.steps_per_epoch} steps an epoch, "
        f"{world.device.type}, precision {cfg.precision}, "
        f"engine {strategy_name(cfg.engine, cfg.shard)}"
    )
    depends = of_processes(phase, network)
    if depends:
        log.info(depends)


def _flush(losses: list[Tensor], state: TrainState, world: DistributedContext) -> None:
    """Average the losses on the devices to one number per step, the same on every process."""
    if not losses:
        return
    mine = torch.stack(losses)  # (steps, my micro-batches)
    everyone = world.gather(mine.T.contiguous())  # (all micro-batches in order, steps)
    state.window += everyone.double().mean(0).tolist()
    losses.clear()


def _refuse_nonfinite(state: TrainState, phase: Phase) -> None:
    for step, loss in enumerate(state.window, start=state.step - len(state.window) + 1):
        if not math.isfinite(loss):
            plan = phase.plan
            places = (plan.place(step - 1, micro) for micro in range(plan.count))
            batches = (phase.source.take(*place, plan.micro_batch) for place in places)
            find_nonfinite(phase.source, batches, phase.task.preprocess)
            raise RunError(
                f"the loss is {loss} at step {step}; lower optim.lr, set optim.clip_norm, or use "
                "precision bf16 in place of fp16"
            )


def _judge(task: AnyTask, state: TrainState, scores: dict[str, Any]) -> bool:
    """Return whether this is the best model so far, and count evaluations without improvement."""
    name, way = task.select
    value = scores[name]
    if value is None or not math.isfinite(value):
        better = False
    elif state.best is None:
        better = True
    else:
        better = value < state.best if way == "min" else value > state.best
    if better:
        state.best, state.best_step, state.bad_evals = float(value), state.step, 0
    else:
        state.bad_evals += 1
    return better


def _exhausted(early_stop: int | None, state: TrainState) -> bool:
    return early_stop is not None and state.bad_evals >= early_stop
