"""Time the simulator, in images per second, on one core or one device.

    OMP_NUM_THREADS=1 python -m benchmarks.simulator --out simulator.json
    python -m benchmarks.simulator --device cuda

There are two rivals. DeepLenseSim publishes 5 to 57 ms per image and core: ratios are given to both
ends, for whole images with their family's own noise. caustics (the fastest public PyTorch lensing
code) draws the same lenses in the same process, turn by turn, so that a busy machine slows both; it
gets our blur and no noise, since it has neither. On a CPU, time is the process's own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.harness.hardware import seconds
from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import over, take_turns
from lensdist.sim import FAMILIES, Family, SimConfig, Simulator, render
from lensdist.sim.light import blur

DEEPLENSESIM_MS = (5.0, 57.0)  # per image and core: the fastest and the slowest it states


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--images", type=int, help="images of a batch (default: 48 on a CPU, 12,288 on a GPU)"
    )
    args = parser.parse_args()
    n = args.images or (48 if args.device.type == "cpu" else 12_288)
    with reporting(args, "Simulator", args.device, batch=n) as (report, _):
        rows = []
        for family in FAMILIES:
            labels = FAMILIES[family].labels
            for classes in (*((name,) for name in labels), labels):
                rows.append(measure(family, classes, n, args.device, args.rounds))
        report.table(rows)
        own = [r for r in rows if r["family"].startswith("model") and r["class"] == "all"]
        mean = statistics.mean(r["ms"] for r in own)
        slow, fast = (ms / mean for ms in DEEPLENSESIM_MS)
        report.say(
            f"Models I to III, all classes: {mean:.2f} ms an image on average; DeepLenseSim's rate "
            f"is exceeded {slow:.0f} times (at its 5 ms) to {fast:.0f} times (57 ms), "
            f"{statistics.mean((slow, fast)):.0f} times at the middle of its range."
        )


def measure(
    family: str, classes: tuple[str, ...], n: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Return a row: whole images, then the noiseless part and caustics."""
    sim = Simulator(SimConfig(family=family, classes=classes), device.type)
    samples = torch.arange(n, device=device)
    params = sim.params(1, samples)
    few = {k: v[: min(n, 12)] for k, v in params.items()}
    work: dict[str, tuple[Callable[[], object], int]] = {
        "whole": (lambda: sim.batch(1, samples), n),
        "render": (lambda: render(family, params, torch.float32), n),
        "caustics": (lambda: with_caustics(FAMILIES[family], few), len(few["label"])),
    }
    turns = {
        name: partial(per_image, each, images, device) for name, (each, images) in work.items()
    }
    found = take_turns(turns, rounds, warm=1)
    ms = {name: 1e3 * statistics.median(each) for name, each in found.items()}
    return {
        "family": family,
        "class": classes[0] if len(classes) == 1 else "all",
        "images_per_s": 1e3 / ms["whole"],
        "ms": ms["whole"],
        "render_per_s": 1e3 / ms["render"],
        "caustics_per_s": 1e3 / ms["caustics"],
        **over("over_caustics", found["caustics"], found["render"]),
        **{f"over_{dls:g}_ms": dls / ms["whole"] for dls in DEEPLENSESIM_MS},
    }


def per_image(work: Callable[[], object], images: int, device: torch.device) -> float:
    """Return the seconds per image; on a CPU those of the process alone."""
    if device.type != "cpu":
        return seconds(work, device) / images
    start = time.process_time()
    work()
    return (time.process_time() - start) / images


def with_caustics(family: Family, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """Draw the same lenses with caustics, each image with all its masses at once.

    Batched further it is slower on a CPU: its temporaries leave the cache.
    """
    import caustics.lenses.func as lens
    import caustics.light.func as light

    p = {k: v.float() for k, v in params.items()}
    axis = (torch.arange(family.n_pix) - (family.n_pix - 1) / 2) * family.pixel_scale
    axis = axis.to(p["source_xy"])
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    default = axis.new_tensor(family.source_e).expand_as(p["source_xy"])
    images = []
    for i, (sx, sy) in enumerate(p["source_xy"]):
        theta_e, e1, e2, g1, g2 = p["kwargs_main"][i]
        q, phi = shape_of(e1, e2)
        ax, ay = lens.reduced_deflection_angle_sie(0.0, 0.0, q, phi, theta_e, x, y)
        bx, by = lens.reduced_deflection_angle_external_shear(0.0, 0.0, g1, g2, x, y)
        ax, ay = ax + bx, ay + by
        if count := int(params["n_point_masses"][i]):
            theta, px, py = p["point_mass_thetaE_x_y"][i, :count, :, None, None].unbind(1)
            dx, dy = lens.reduced_deflection_angle_point(px, py, theta, x, y)
            ax, ay = ax + dx.sum(0), ay + dy.sum(0)
        scale = family.deflection_scale
        q, phi = shape_of(*p.get("source_e1_e2", default)[i])
        radius = family.source_radius / q.sqrt()  # caustics measures along the major axis
        at = (x - scale * ax, y - scale * ay, family.source_b_n)
        images.append(light.brightness_sersic(sx, sy, q, phi, family.source_n, radius, 1.0, *at))
    return blur(torch.stack(images), family.psf_fwhm / family.pixel_scale)


def shape_of(e1: torch.Tensor, e2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return axis ratio and position angle."""
    e = torch.hypot(e1, e2)
    return (1 - e) / (1 + e), 0.5 * torch.atan2(e2, e1)


if __name__ == "__main__":
    main()
