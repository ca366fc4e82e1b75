"""Profile a short run of a configuration: `profile.json`, `trace.json.gz`, and lines to print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import profile

from lensdist.config.schema import BaseRun
from lensdist.distributed.context import DistributedContext
from lensdist.profiling.watch import Done, Watch
from lensdist.runs.phase import run
from lensdist.utils.errors import RunError, begun
from lensdist.utils.files import to_json, write_atomic
from lensdist.utils.owners import remove, temporary

TOP = 10


def profile_run(
    cfg: BaseRun, out: Path, steps: int, world: DistributedContext, *, keep: bool
) -> list[str]:
    """Run a configuration's first steps and write how their time is spent.

    Args:
        cfg: the run's configuration.
        out: folder for the two files; all processes must see it.
        steps: number of steps to time, and to trace.
        world: the processes; the main one traces and writes.
        keep: use the configuration's own `run.dir`, and its simulated set; otherwise use a
            temporary folder in `out`, with as few images as possible.

    Returns:
        The results, as lines to print; empty on all but the main process.

    Raises:
        UserError: as for any run.
        RunError: it was told to stop.
    """
    made = None if keep else world.from_main(temporary(out / "run"))
    watch = Watch(steps, world.device, trace=world.main)
    try:
        with watch.watching():
            run(_shortened(cfg, watch.needed, made), "never", world)
        raise RunError("told to stop before the profile was done; run it again")
    except Done:
        pass
    finally:
        if made is not None and world.main:
            remove(made)
    if watch.profiler is None:
        return []
    found = _found(cfg, watch, watch.profiler, world)
    with begun(out):
        write_atomic(out / "profile.json", to_json(found) + "\n")
        trace = Path(f"{temporary(out / 'trace')}.json.gz")  # torch compresses at this ending
        try:
            watch.profiler.export_chrome_trace(str(trace))
            os.replace(trace, out / "trace.json.gz")
        finally:
            trace.unlink(missing_ok=True)
    return lines(found)


def _shortened(cfg: BaseRun, steps: int, folder: Path | None) -> BaseRun:
    """Return a run of the first steps and one more, without evaluations and saves between them."""
    never = {"every_epochs": 1e9, "every_steps": None, "background": False}
    limits = {"max_steps": steps + 1, "early_stop": None, "eval_every_epochs": 1e9}
    changes: dict[str, Any] = {
        "train": cfg.train.model_copy(update=limits),
        "checkpoint": cfg.checkpoint.model_copy(update=never),
        "track": cfg.track.model_copy(update={"wandb": "off", "tensorboard": False}),
    }
    if folder is not None:
        fewest = min(cfg.data.n_per_class, max(400, 2 * cfg.train.global_batch))
        changes["data"] = cfg.data.model_copy(update={"n_per_class": fewest})
        changes["run"] = cfg.run.model_copy(update={"dir": folder})
    return cfg.model_copy(update=changes)


def _found(
    cfg: BaseRun, watch: Watch, profiler: profile, world: DistributedContext
) -> dict[str, Any]:
    parts = {**watch.parts_s, "rest": watch.parts_step_s - sum(watch.parts_s.values())}
    on_gpu = world.device.type == "cuda"
    return {
        "task": cfg.task,
        "preset": cfg.preset,
        "engine": cfg.engine,
        "precision": cfg.precision,
        "speed": cfg.speed.model_dump(mode="json"),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "images_per_step": cfg.train.global_batch,
        "steps": watch.steps,
        "ms_per_step": 1e3 * watch.step_s,
        "images_per_s": cfg.train.global_batch / watch.step_s,
        "peak_memory_gb": torch.cuda.max_memory_allocated(world.device) / 1e9 if on_gpu else None,
        "parts": {
            name: {"ms_per_step": 1e3 * s, "share": s / watch.parts_step_s}
            for name, s in parts.items()
        },
        "costliest": _costliest(profiler, on_gpu),
    }


def _costliest(profiler: profile, on_gpu: bool) -> list[dict[str, Any]]:
    """Return the kernels on a GPU, or else the operators, that took the most time themselves."""
    rows = []
    for event in profiler.key_averages():
        kernel = event.device_type != DeviceType.CPU
        if kernel != on_gpu or event.is_user_annotation:
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append({"name": event.key, "calls": event.count, "ms": us / 1e3})
    total = sum(row["ms"] for row in rows)
    rows.sort(key=lambda row: row["ms"], reverse=True)
    return [{**row, "share": row["ms"] / total} for row in rows[:TOP]]


def lines(found: dict[str, Any]) -> list[str]:
    """Return the contents of `profile.json` as lines to print."""
    memory = found["peak_memory_gb"]
    page = [
        f"{found['task']}/{found['preset']}: engine {found['engine']}, precision "
        f"{found['precision']}, {found['processes']} process(es), {found['device']}",
        f"{found['ms_per_step']:.4g} ms a step of {found['images_per_step']} images, "
        f"{found['images_per_s']:.4g} images/s"
        + (f", {memory:.3g} GB of GPU memory at most" if memory is not None else ""),
        "",
        f"{'part of a step':<60}{'ms':>10}{'share':>8}",
    ]
    for name, part in found["parts"].items():
        page.append(f"{name:<60}{part['ms_per_step']:>10.4g}{part['share']:>8.1%}")
    what = "operator" if found["device"] == "cpu" else "kernel"
    head = f"costliest {what}s of {found['steps']} steps"
    page += ["", f"{head:<52}{'calls':>8}{'ms':>10}{'share':>8}"]
    for row in found["costliest"]:
        name = row["name"] if len(row["name"]) <= 50 else f"{row['name'][:49]}…"
        page.append(f"{name:<52}{row['calls']:>8}{row['ms']:>10.4g}{row['share']:>8.1%}")
    return page
