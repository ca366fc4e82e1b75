"""Write the results of `lensdist bench speed`, as a page for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Report, compared
from benchmarks.speed.settings import RESULTS
from lensdist.metrics.report import number, table

Facts = Mapping[str, Any]

_LADDER = (
    "`gain`: speed relative to the row that it is compared with, within a round. Medians over "
    "rounds, and in brackets the smallest and the largest. `on a core`: by the process's own time "
    "there, without other processes. `loss difference`: of the first steps, relative."
)
_BESIDE = (
    "Same images, same first weights, same losses on the same batches before anything was timed "
    "(`loss difference`, relative, without dropout). Medians over rounds, and in brackets the "
    "smallest and the largest; ratios within a round. `on a core`: by the process's own time "
    "there, without other processes."
)


def write(out: Path, results: Facts) -> Path:
    """Print all results, write `speed.json` and `speed.md`, and return the path of the latter."""
    facts = results["figures"]
    report = Report(f"Speed of {results['config']}", results)
    report.say(_where(facts))
    report.say(table(_lines(facts)))
    report.reasons(facts["left_out"])
    if "to" in results:
        report.say("## Time to a score")
        report.say(_time(results["to"]))
    for part, title, ratio, name, about in (
        ("ladder", "One switch at a time", "gain", "gain", _LADDER),
        ("beside", "Beside others", "first_over", "lensdist over", _BESIDE),
    ):
        if part in results:
            rows = [compared(row, ratio, name) for row in results[part]["rows"]]
            report.say(f"## {title}")
            report.say(table(rows) if rows else "")
            report.say(about if rows else "")
            report.reasons(results[part]["left_out"])
    return report.write(out / RESULTS)


def _where(facts: Facts) -> str:
    loads = [f"{x:.1f}" for x in facts["load"] if x is not None]
    return (
        f"{facts['processes']} x {facts['device']}, engine {facts['engine']}, precision "
        f"{facts['precision']}, batch {facts['global_batch']} in micro-batches of "
        f"{facts['micro_batch']}, torch {facts['torch']}"
        + (f", load {' .. '.join(loads)}" if loads else "")
    )


def _lines(facts: Facts) -> list[dict[str, Any]]:
    """Return a row for each figure."""
    windows = f"median of {facts['windows']} windows of {facts['window_steps']} steps, their range"
    rate = number(facts["images_per_s_per_device"], facts["images_per_s_per_device_spread"])
    lines = [("images/s per device", rate, windows)]
    if "mfu" in facts:
        how = f"{facts['flops_per_image'] / 1e9:.3g} GFLOP an image; a matrix product reaches "
        how += f"{facts['product_flops'] / 1e12:.3g} TFLOP/s here"
        lines.append(("MFU", _percent(facts["mfu"]), how))
    if "byte_roof" in facts:
        how = f"{facts['bytes_per_image'] / 1e6:.3g} MB an image; a copy reaches "
        how += f"{facts['copy_bytes'] / 1e9:.3g} GB/s here"
        lines.append(("byte roof", _percent(facts["byte_roof"]), how))
    lines.append(("epoch", f"{facts['epoch_s']:,.1f} s", f"{facts['epoch_images']:,} images"))
    lines.append(("peak memory", f"{facts['peak_gb']:.2f} GB", facts["peak_of"]))
    lines.append(("loader wait", _percent(facts["loader_wait"]), _waiting(facts)))
    if "checkpoint_stall" in facts:
        how = f"{facts['save_stall_s'] * 1e3:.3g} ms every {facts['save_every_steps']:,} steps"
        lines.append(("checkpoint stall", _percent(facts["checkpoint_stall"]), how))
    if "scaling_efficiency" in facts:
        how = f"one process alone: {facts['single_images_per_s']:.4g} images/s"
        lines.append(("scaling efficiency", _percent(facts["scaling_efficiency"]), how))
    return [dict(zip(("figure", "value", "of"), line, strict=True)) for line in lines]


def _waiting(facts: Facts) -> str:
    if "thread" in facts["device"]:
        return "time inside `source.take`"
    return "the device's own time around `source.take`, between events"


def _time(facts: Facts) -> str:
    goal = f"{facts['score']} {facts['wanted']:g}"
    if facts["reached"]:
        return f"{goal}: {facts['seconds']:,.1f} s of training, {facts['step']:,} steps."
    last = facts["curve"][-1]
    return f"{goal}: not reached in {last['step']:,} steps ({last['value']:.4g} at the end)."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
