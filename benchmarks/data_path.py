"""Time how many images per second reach a training step, from the reference notebook's way to ours.

    OMP_NUM_THREADS=1 python -m benchmarks.data_path --out data_path.json
    python -m benchmarks.data_path --device cuda          # resident on a GPU as well

All paths read the same 150x150 images, written first as the common task's files (float64, as users
have them) and packed from those. Everything is in the page cache: this measures the path, not the
disk.

The notebook's path is the reference recipe's: `np.load`, float32, three channels, resize to 224,
random flip, one file at a time in a DataLoader. If our models need any of that, it is done on the
device to a whole batch, so it is not the loader's work; `npy per item` is the notebook's path
without it, and shows the gain of packing alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler

from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import over, spread, take_turns
from benchmarks.rivals import ensembles, loops
from benchmarks.rivals.items import Files, Item
from lensdist.data.dataset import Batch, PackedSet
from lensdist.data.packing.pack import PackOptions, pack

BATCH = 128
CLASSES = ("no", "sphere", "vort")
NOTEBOOK, NPY = "notebook, DataLoader, 0 workers", "npy per item, DataLoader, 0 workers"


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--files", type=int, default=3000, help="files in the set (default: 3000)")
    parser.add_argument("--size", type=int, default=150, help="pixels per side (default: 150)")
    parser.add_argument("--device", help="also keep the set resident there, e.g. cuda")
    args = parser.parse_args()
    title = f"Data path: {args.files:,} images of {args.size}x{args.size}, {args.threads} thread(s)"
    with reporting(args, title, torch.device(args.device or "cpu")) as (report, folder):
        write_files(folder / "files", args.files, args.size)
        start = time.perf_counter()
        pack(folder / "files", folder / "float32")
        packing = report.facts["pack_images_per_s"] = args.files / (time.perf_counter() - start)
        pack(folder / "files", folder / "float16", PackOptions(dtype="float16"))
        turns = paths(folder, args.device)
        rates = take_turns(
            {name: partial(rate, turn) for name, turn in turns.items()}, args.rounds, warm=1
        )
        report.table(
            [
                {"path": name, **spread("images_per_s", each)}
                | over("over_notebook", each, rates[NOTEBOOK])
                | over("over_npy", each, rates[NPY])
                for name, each in rates.items()
            ]
        )
        report.say(f"Packing, once, one process: {packing:,.0f} images/s.")


def rate(turn: Callable[[], int]) -> float:
    """Return the images per second that a turn delivers."""
    start = time.perf_counter()
    return turn() / (time.perf_counter() - start)


def write_files(root: Path, n: int, size: int) -> None:
    """Write `{no,sphere,vort}/<int>.npy`, (1, size, size) float64 in 0..1."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = root / CLASSES[i % len(CLASSES)] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.random((1, size, size)))


def from_files(packed: PackedSet, folder: Path, item: Item, workers: int) -> Callable[[], int]:
    """Return a turn of 16 batches of 32 from a loader that keeps running between turns."""
    rows = range(len(packed))
    loader = DataLoader(
        Files(packed, folder, rows, item), batch_size=32, sampler=SubsetRandomSampler(rows),
        num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip
    batches = chain.from_iterable(repeat(loader))
    return lambda: sum(len(labels) for _, labels in islice(batches, 16))


def as_it_is(sample: dict[str, torch.Tensor]) -> loops.Batch:
    """Return an image and its label."""
    return sample["image"], sample["label"]


def gathered(gather: Callable[..., Batch], n: int, **options: Any) -> Callable[[], int]:
    """Return a turn of 64 batches of random samples into one reused buffer."""
    rng = np.random.default_rng(0)
    buffer: Batch | None = None

    def turn() -> int:
        nonlocal buffer
        for _ in range(64):
            buffer = gather(rng.permutation(n)[:BATCH], out=buffer, **options)
        if buffer is not None and buffer["image"].is_cuda:
            torch.cuda.synchronize()
        return 64 * BATCH

    return turn


def paths(folder: Path, device: str | None) -> dict[str, Callable[[], int]]:
    """Return the turns by path; each returns the number of images that it delivered."""
    single, half = PackedSet(folder / "float32"), PackedSet(folder / "float16")
    n, items = len(single), folder / "items"
    notebook = ensembles.item(224, mirror=True, grey3=True)
    turns = {
        NOTEBOOK: from_files(single, items, notebook, 0),
        "notebook, DataLoader, 2 workers": from_files(single, items, notebook, 2),
        NPY: from_files(single, items, as_it_is, 0),
        "packed float32": gathered(single.gather, n),
        "packed float16, converted to float32": gathered(half.gather, n),
        "packed float16": gathered(half.gather, n, dtype=None),
        "resident float16": gathered(half.resident("cpu").gather, n, dtype=None),
    }
    if device:
        resident = half.resident(device)
        turns[f"resident float16 on {device}"] = gathered(resident.gather, n, dtype=None)
        turns[f"resident float16 on {device}, to float32"] = gathered(resident.gather, n)
    return turns


if __name__ == "__main__":
    main()
