"""Images per second of the simulator, on one core or one device.

    OMP_NUM_THREADS=1 python -m benchmarks.simulator --out simulator.json
    python -m benchmarks.simulator --device cuda

Two rivals. DeepLenseSim publishes 5 to 57 ms an image and core: ratios are given against both
ends, for whole images with their family's own noise. caustics (the fastest public PyTorch
lensing code) draws the same lenses in the same process, turn by turn, so that a busy machine slows
both; it gets our blur and no noise, since it has neither. On a CPU, time is the process's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lensdist.sim import FAMILIES, Family, SimConfig, Simulator, render
from lensdist.sim.light import blur

DEEPLENSESIM_MS = (5.0, 57.0)  # per image and core: the fastest and the slowest it states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved; the median counts")
    parser.add_argument(
        "--images", type=int, help="a batch (default: 48 on a CPU, 12,288 on a GPU)"
    )
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n = args.images or (48 if args.device == "cpu" else 12_288)

    head = ("family", "class", "img/s", "ms/img", "render/s", "caustics/s", "x caustics")
    print(("{:<10}{:<8}" + "{:>11}" * 7).format(*head, "x DLS 5ms", "x DLS 57ms"))
    rows = []
    for family in FAMILIES:
        labels = FAMILIES[family].labels
        for classes in (*((name,) for name in labels), labels):
            row = measure(family, classes, n, args.device, args.rounds)
            rows.append(row)
            print(
                f"{family:<10}{row['class']:<8}{row['images_per_s']:>11,.0f}{row['ms']:>11.3f}"
                f"{row['render_per_s']:>11,.0f}{row['caustics_per_s']:>11,.0f}"
                f"{row['over_caustics']:>11.1f}"
                f"{row['over_deeplensesim'][0]:>11.1f}{row['over_deeplensesim'][1]:>11.1f}"
            )
    own = [r for r in rows if r["family"].startswith("model") and r["class"] == "all"]
    mean = statistics.mean(r["ms"] for r in own)
    slow, fast = (ms / mean for ms in DEEPLENSESIM_MS)
    middle = statistics.mean(DEEPLENSESIM_MS) / mean
    print(
        f"\nModels I to III, all classes: {mean:.2f} ms an image on average; DeepLenseSim's rate "
        f"is exceeded {slow:.0f} times (at its 5 ms) to {fast:.0f} times (57 ms), "
        f"{middle:.0f} times at the middle of its range"
    )
    if args.out:
        facts = {"device": args.device, "threads": 1, "batch": n, "torch": torch.__version__}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")


def measure(
    family: str, classes: tuple[str, ...], n: int, device: str, rounds: int
) -> dict[str, Any]:
    """One row: whole images, then the noiseless part beside caustics."""
    sim = Simulator(SimConfig(family=family, classes=classes), device)
    samples = torch.arange(n, device=device)
    params = sim.params(1, samples)
    few = {k: v[: min(n, 12)] for k, v in params.items()}
    turns: dict[str, Callable[[], object]] = {
        "whole": lambda: sim.batch(1, samples),
        "render": lambda: render(family, params, torch.float32),
        "caustics": lambda: with_caustics(FAMILIES[family], few),
    }
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds + 1):
        for name, turn in turns.items():
            start = clock()
            turn()
            if device != "cpu":
                torch.cuda.synchronize()
            if i:  # the first round warms caches up
                seconds[name].append(clock() - start)
    of = {"whole": n, "render": n, "caustics": len(few["label"])}
    each = {name: statistics.median(s) / of[name] for name, s in seconds.items()}
    ours = zip(seconds["caustics"], seconds["render"], strict=True)
    ratios = (c / of["caustics"] / (r / n) for c, r in ours)
    return {
        "family": family,
        "class": classes[0] if len(classes) == 1 else "all",
        "images_per_s": 1 / each["whole"],
        "ms": 1e3 * each["whole"],
        "render_per_s": 1 / each["render"],
        "caustics_per_s": 1 / each["caustics"],
        "over_caustics": statistics.median(ratios),
        "over_deeplensesim": [ms / 1e3 / each["whole"] for ms in DEEPLENSESIM_MS],
    }


def with_caustics(family: Family, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same lenses by caustics' functions, each image with all its masses at once.

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
    """Axis ratio and position angle."""
    e = torch.hypot(e1, e2)
    return (1 - e) / (1 + e), 0.5 * torch.atan2(e2, e1)


if __name__ == "__main__":
    main()
