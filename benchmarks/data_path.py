"""Images per second that a training step can be fed, from the reference notebook's way to ours.

    OMP_NUM_THREADS=1 python benchmarks/data_path.py --out data_path.json
    python benchmarks/data_path.py --device cuda          # resident on a GPU as well

All paths read the same 150x150 images, written first as the common task's files (float64, as
people have them) and packed from those. They take turns within each round, so that a busy machine
slows all of them; the median round counts. Everything is in the page cache: this measures the
path, not the disk.

The notebook's path is the reference recipe's: `np.load`, float32, three channels, resize to 224,
random flip, one file at a time in a DataLoader. Where our models want any of that, it is done on
the device to a whole batch, so it is not the loader's work; `npy per item` is the notebook's path
without it, for whoever wants the gain of packing alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lensdist._torchvision import import_torchvision
from lensdist.data.dataset import Batch, PackedSet
from lensdist.data.packing.pack import PackOptions, pack

BATCH = 128
CLASSES = ("no", "sphere", "vort")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=3000, help="in the set (default: 3000)")
    parser.add_argument("--size", type=int, default=150, help="pixels a side (default: 150)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--device", help="also keep the set resident there, e.g. cuda")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    folder = Path(tempfile.mkdtemp(prefix="lensdist-data-path-"))
    try:
        files = write_files(folder / "files", args.files, args.size)
        start = time.perf_counter()
        pack(folder / "files", folder / "float32")
        packing = args.files / (time.perf_counter() - start)
        pack(folder / "files", folder / "float16", PackOptions(dtype="float16"))
        rows = measure(paths(files, folder, args.device), args.rounds)
    finally:
        shutil.rmtree(folder)

    print(f"{args.files} images of {args.size}x{args.size}, {args.threads} thread(s)")
    print(f"{'path':<44}{'images/s':>12}{'x notebook':>12}{'x npy':>9}")
    for row in rows:
        print(
            f"{row['path']:<44}{row['images_per_s']:>12,.0f}"
            f"{row['over_notebook']:>12,.1f}{row['over_npy']:>9,.1f}"
        )
    print(f"\npacking, once, one process: {packing:,.0f} images/s")
    if args.out:
        facts = {
            "files": args.files,
            "size": args.size,
            "threads": args.threads,
            "torch": torch.__version__,
            "pack_images_per_s": packing,
        }
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")


def write_files(root: Path, n: int, size: int) -> list[Path]:
    """`{no,sphere,vort}/<int>.npy`, (1, size, size) float64 in 0..1."""
    rng = np.random.default_rng(0)
    paths = []
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for i in range(n):
        path = root / CLASSES[i % len(CLASSES)] / f"{i}.npy"
        np.save(path, rng.random((1, size, size)))
        paths.append(path)
    return paths


class Files(Dataset[tuple[torch.Tensor, int]]):
    """One file an item, as the field's notebooks read them."""

    def __init__(self, paths: list[Path], notebook: bool) -> None:
        self.paths = paths
        self.transform: Callable[[torch.Tensor], torch.Tensor] | None = None
        if notebook:
            import_torchvision()
            from torchvision import transforms

            resize = transforms.Resize((224, 224))
            self.transform = transforms.Compose([resize, transforms.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = np.load(self.paths[i], allow_pickle=False).astype(np.float32)
        label = CLASSES.index(self.paths[i].parent.name)
        if self.transform is None:
            return torch.from_numpy(image), label
        return self.transform(torch.tensor(np.concatenate([image] * 3))), label


def from_files(paths: list[Path], notebook: bool, workers: int) -> Callable[[], int]:
    """A turn of 16 batches of 32 from a loader that keeps running between turns."""
    loader = DataLoader(
        Files(paths, notebook),
        batch_size=32,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def epochs() -> Iterator[Any]:
        for _ in cycle([0]):
            yield from loader

    batches = epochs()
    return lambda: sum(len(labels) for _, labels in islice(batches, 16))


def gathered(gather: Callable[..., Batch], n: int, **options: Any) -> Callable[[], int]:
    """A turn of 64 batches of random samples into one reused buffer."""
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


def paths(files: list[Path], folder: Path, device: str | None) -> dict[str, Callable[[], int]]:
    """Path -> a turn that returns how many images it delivered; the first is the notebook's."""
    single, half = PackedSet(folder / "float32"), PackedSet(folder / "float16")
    n = len(files)
    turns = {
        "notebook, DataLoader, 0 workers": from_files(files, True, 0),
        "notebook, DataLoader, 2 workers": from_files(files, True, 2),
        "npy per item, DataLoader, 0 workers": from_files(files, False, 0),
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


def measure(turns: dict[str, Callable[[], int]], rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds; ratios are taken within a round."""
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            images = turn()
            if i:  # the first round starts workers and warms caches up
                rates[name].append(images / (time.perf_counter() - start))
    notebook, npy = (rates[name] for name in list(rates)[0:3:2])

    def over(rate: list[float], rival: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(rate, rival, strict=True))

    return [
        {
            "path": name,
            "images_per_s": statistics.median(rate),
            "over_notebook": over(rate, notebook),
            "over_npy": over(rate, npy),
        }
        for name, rate in rates.items()
    ]


if __name__ == "__main__":
    main()
