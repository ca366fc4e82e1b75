"""Measure the figures of one run: images per second, and shares of the machine's peaks."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import hardware
from benchmarks.harness.ours import Ours, Point
from benchmarks.harness.turns import spread
from benchmarks.speed.session import Session
from benchmarks.speed.settings import single_rate
from lensdist.estimate import train_bytes, train_flops

Facts = dict[str, Any]
_UNKNOWN = "the operations of this network are not known"
_FROZEN = "some layers are frozen during the windows"


def measure(session: Session) -> Facts:
    """Train through all windows once; return figures by name, and `left_out`, name -> reason.

    They are of the first stage of training, if there are several.
    """
    bench, cfg, device = session.bench, session.cfg, session.device
    single = None if bench.single is None else single_rate(bench.single)
    ours, n = session.ours(), session.world.size
    watch = ours.watch(session.skip, session.steps, bench.windows)
    hardware.forget_peak(device)
    machine = hardware.machine(device)
    stalls = ours.turn(watch)
    each = [session.steps * cfg.train.global_batch / s / n for s in watch.seconds_each]
    peak, whose = hardware.peak_bytes(device)
    facts: Facts = {
        **machine,
        "processes": n,
        "engine": cfg.engine,
        "precision": cfg.precision,
        "global_batch": cfg.train.global_batch,
        "micro_batch": ours.plan.micro_batch,
        "windows": bench.windows,
        "window_steps": session.steps,
        "load": (machine["load"][0], hardware.load()),
        "left_out": {},
        **spread("images_per_s_per_device", each),
        "epoch_images": round(ours.source.size * session.larger),
        "peak_gb": peak / 1e9,
        "peak_of": whose,
        "loader_wait": sum(watch.waited_each) / watch.seconds,
    }
    rate = facts["images_per_s_per_device"]
    facts["epoch_s"] = facts["epoch_images"] / (rate * n)
    _roofs(facts, ours, rate)
    _saves(facts, ours, stalls)
    _scaling(facts, single)
    return facts


def _roofs(facts: Facts, ours: Ours, rate: float) -> None:
    """Add the shares of the machine's arithmetic and memory rate."""
    cfg, device = ours.cfg, ours.world.device
    flops, traffic = train_flops(cfg), train_bytes(cfg)
    if flops is None or not ours.whole:
        facts["left_out"]["mfu"] = _UNKNOWN if ours.whole else _FROZEN
    else:
        peak = hardware.product_flops(device, cfg.precision)
        facts |= {"flops_per_image": flops, "product_flops": peak, "mfu": rate * flops / peak}
    if traffic is None or not ours.whole:
        facts["left_out"]["byte_roof"] = _UNKNOWN if ours.whole else _FROZEN
    else:
        peak = hardware.copy_bytes(device)
        facts |= {"bytes_per_image": traffic, "copy_bytes": peak}
        facts["byte_roof"] = rate * traffic / peak


def _saves(facts: Facts, ours: Ours, stalls: list[float]) -> None:
    """Add the share of a run that its saves take, at the run's own interval."""
    if not stalls:
        return  # a process that does not write
    facts |= spread("save_stall_s", stalls)
    how, batch = ours.cfg.checkpoint, ours.cfg.train.global_batch
    steps = how.every_steps or max(1, round(how.every_epochs * facts["epoch_images"] / batch))
    between = steps * batch / (facts["images_per_s_per_device"] * facts["processes"])
    facts["checkpoint_stall"] = facts["save_stall_s"] / (between + facts["save_stall_s"])
    facts["save_every_steps"] = steps


def _scaling(facts: Facts, single: Facts | None) -> None:
    if single is not None:
        one = float(single["images_per_s_per_device"])
        facts |= {"single_images_per_s": one, "single_load": single.get("load")}
        facts["scaling_efficiency"] = facts["images_per_s_per_device"] / one
    elif facts["processes"] > 1:
        facts["left_out"]["scaling_efficiency"] = "give --single, the results of one process"


def time_to(session: Session, wanted: float) -> Facts:
    """Train the run until an evaluation passes `wanted`, or to its end."""
    name, way = session.ours().task.select

    def reached(scores: dict[str, Any]) -> bool:
        value = scores[name]
        return value is not None and (value <= wanted if way == "min" else value >= wanted)

    ours = session.ours()
    points = ours.learn(reached)
    curve = [_point(point, name) for point in points]
    last = points[-1]
    done = reached(last.scores)
    return {
        "score": name, "wanted": wanted, "reached": done, "curve": curve,
        **(_point(last, name) if done else {}),
    }  # fmt: skip


def _point(point: Point, name: str) -> Facts:
    return {"step": point.step, "seconds": point.seconds, "value": point.scores[name]}
