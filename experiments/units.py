"""Measure whether the unit, the background or the place of an image decides its class.

    python -m experiments.units OUT [--pretrain-steps 400] [--steps 400] [--labels 30,100]

It simulates Model II without noise and with Euclid's, trains `mae/small` and `finetune/small` on
each (`--pretrain-steps 0`: the latter only, from random weights), and classifies the test split
as it is and changed, as a table in Markdown, in the mean over seeds. `before` is
`preprocess.shift=null`, which fits no flux, offset or place. A second table has the plain accuracy
with few labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness.data import simulated_set
from experiments.runs import Job, job, run_all
from experiments.settings import Table
from lensdist.api import load
from lensdist.data.config import DataConfig
from lensdist.data.dataset import PackedSet
from lensdist.data.subset import View
from lensdist.sim.config import Noise, SimConfig

Array = npt.NDArray[np.float32]
WAYS = {"before": "preprocess.shift=null", "after": "preprocess.shift=3"}
FEW_STEPS = 200


def _peak(x: Array) -> Array:
    return np.asarray(x.max((1, 2, 3), keepdims=True))


def _moved(x: Array, down: float, right: float) -> Array:
    """Move images by a fraction of a pixel, without loss of the waves that they are made of."""
    wave = np.fft.fftfreq(x.shape[-1])
    turn = np.exp(-2j * np.pi * (down * wave[:, None] + right * wave))
    return np.asarray(np.fft.ifft2(np.fft.fft2(x) * turn).real, np.float32)


CHANGES: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda x: x,
    **{f"× {a:g}": partial(np.multiply, np.float32(a)) for a in (0.1, 0.9, 1.1, 2, 10)},
    "÷ its maximum": lambda x: x / _peak(x),
    "+ 0.01": partial(np.add, np.float32(0.01)),
    "+ 0.1 of its peak": lambda x: x + np.float32(0.1) * _peak(x),
    "1 pixel down": lambda x: np.roll(x, 1, 2),
    "1 pixel up": lambda x: np.roll(x, -1, 2),
    "1 pixel right": lambda x: np.roll(x, 1, 3),
    "1 pixel left": lambda x: np.roll(x, -1, 3),
    "half a pixel right": partial(_moved, down=0.0, right=0.5),
    "0.3 pixels up, 0.7 right": partial(_moved, down=-0.3, right=0.7),
    "half a pixel down and right": partial(_moved, down=0.5, right=0.5),
    "half a pixel right, mean of two": lambda x: (x + np.roll(x, 1, 3)) / np.float32(2),
    "5 pixels right": lambda x: np.roll(x, 5, 3),
    "turned by 180°": lambda x: np.rot90(x, 2, (2, 3)),
    "turned by 90°": lambda x: np.rot90(x, 1, (2, 3)),
}
"""What is done to images (N, C, H, W)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n-per-class", type=int, default=1500)
    parser.add_argument("--pretrain-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--noise", default="none,euclid")
    parser.add_argument("--labels", default="30,100", help="labels per class; '': all only")
    parser.add_argument("--images", type=int, default=None, help="most test images; default: all")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    labels = [int(n) for n in args.labels.split(",") if n]
    sets = {
        noise: simulated_set(
            args.out / "data" / noise, SimConfig(noise=noise, vortex="rod"), args.n_per_class, 0
        )
        for noise in get_args(Noise)
        if noise in args.noise.split(",")
    }
    cfg = Table(out=args.out, seeds=args.seeds)
    steps = (args.pretrain_steps, args.steps)
    runs = {(n, way): _runs(cfg, n, way, sets[n].path, steps, labels) for n in sets for way in WAYS}
    for stage in range(3):
        run_all([one for each in runs.values() for one in each[stage]], 1, "training")
    tests = {noise: _test(packed, args.images) for noise, packed in sets.items()}
    print(*_changed(runs, tests), *_few(runs, tests, labels), sep="\n")


Runs = tuple[list[Job], list[Job], list[Job]]


def _runs(
    cfg: Table, noise: str, way: str, data: Path, both: tuple[int, int], labels: list[int]
) -> Runs:
    """Return the pretraining, the fine-tuning on all labels, and those on few."""
    pretrain, steps = both
    fixed = (WAYS[way], "train.eval_every_epochs=1000000000", f"checkpoint.every_steps={steps}")
    folder = f"{noise}-{way}"
    last = (f"train.max_steps={pretrain}", "optim.schedule.warmup_steps=50", *fixed)
    mae = job(cfg, "mae/small.yaml", folder, "mae", *last, data=data)
    start = (f"encoder={mae.run}",) if pretrain else ("encoder=null", "optim.lr=1e-3")
    own = (*start, f"train.max_steps={steps}", *fixed)
    full = [
        job(
            cfg, "finetune/small.yaml", folder, f"finetune s{seed}", *own, f"seed={seed}", data=data
        )
        for seed in range(cfg.seeds)
    ]  # fmt: skip
    own = (*start, f"train.max_steps={FEW_STEPS}", *fixed)
    few = [
        job(
            cfg, "finetune/small.yaml", folder, f"few {n} s{seed}", *own,
            f"data.labels_per_class={n}", f"seed={seed}", data=data,
        )
        for n in labels
        for seed in range(cfg.seeds)
    ]  # fmt: skip
    return [mae] if pretrain else [], full, few


Test = tuple[Array, npt.NDArray[np.int64]]


def _test(packed: PackedSet, most: int | None) -> Test:
    view = View(packed, "test", DataConfig(path=packed.path), 0, torch.device("cpu"))
    batch = view.gather(np.arange(len(view))[:most])
    return batch["image"].numpy(), batch["label"].numpy()


def _changed(runs: dict[tuple[Noise, str], Runs], tests: dict[Noise, Test]) -> Iterator[str]:
    ways = " | ".join(f"{way}: accuracy | confidence | flagged" for way in WAYS)
    yield f"| noise | images | {ways} |\n|---|---|{'--:|' * 3 * len(WAYS)}"
    for noise, (images, labels) in tests.items():
        models = [[load(one.run) for one in runs[noise, way][1]] for way in WAYS]
        for name, change in CHANGES.items():
            changed, cells = np.ascontiguousarray(change(images)), []
            for seeds in models:
                found = [model.predict(changed) for model in seeds]
                right = np.mean([one["logits"].argmax(1) == labels for one in found])
                sure = np.mean([one["probs"].max(1) for one in found])
                odd = np.mean([one["flag"] for one in found])
                cells.append(f"{right:.3f} | {sure:.2f} | {odd:.3f}")
            yield f"| {noise} | {name} | {' | '.join(cells)} |"


def _few(
    runs: dict[tuple[Noise, str], Runs], tests: dict[Noise, Test], few_labels: list[int]
) -> Iterator[str]:
    yield f"\n| noise | labels per class | {' | '.join(WAYS)} |\n|---|--:|{'--:|' * len(WAYS)}"
    for noise, (images, labels) in tests.items():
        for i, n in enumerate((*few_labels, "all")):
            cells = []
            for way in WAYS:
                _, full, few = runs[noise, way]
                seeds = len(few) // max(1, len(few_labels))
                own = full if n == "all" else few[i * seeds : (i + 1) * seeds]
                each = [load(one.run).predict(images)["logits"].argmax(1) == labels for one in own]
                cells.append(f"{np.mean(each):.3f}")
            yield f"| {noise} | {n} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
