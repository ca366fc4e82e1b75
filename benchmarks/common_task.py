"""Images a second that the common task's ensemble trains on: lensdist, and what else one would use.

    OMP_NUM_THREADS=1 python benchmarks/common_task.py --out common_task.json
    python benchmarks/common_task.py --size full           # the default where there is a GPU

All train the same two networks with the recipe's heads, from the same weights, with Adam. First a
gate, in float32, without mirroring and dropout: on the same batches every way must give lensdist's
losses, or it does not do the same work. Then they take turns, so that a busy machine slows all of
them. A turn begins anew; its first steps do not count, nor what is built before them or saved after
the last. A step includes fetching its batch. `lensdist bench speed --beside` does the same for any
run; here are the sizes of the results, and the notebook at its own resolution.

- lensdist: its own loop on a packed set; nothing that a run does at a step is switched off.
- the notebook: a `.npy` file an item, grey three times, enlarged 1.5 times, mirrored at random,
  float32, contiguous, a DataLoader without workers, `.item()` and accuracy at each step. Once more
  at lensdist's resolution, to tell its way from its pixels.
- timm: its own networks, which take torchvision's weights as they are, in the loop of its train.py:
  autocast, `loss.item()` at each step; with and without its flag `--channels-last`.
- Lightning: torchvision's networks in its Trainer; checkpoints, progress bar and logger are off.

timm and Lightning read the packed array an item at a time through an ordinary DataLoader, resized
and mirrored by torchvision. Its workers, on a GPU, are full when a turn's time begins, which
flatters them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.bench.rivals.ensembles import one_band
from lensdist.bench.speed.beside import Rivals, fill
from lensdist.bench.speed.ours import Ours
from lensdist.bench.speed.run import first_rows, parity_steps
from lensdist.bench.speed.turns import BATCHNORM, Way, compare, gate
from lensdist.config import load
from lensdist.config.schema import CommonRun, schema_of
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.models.ensemble import Ensemble
from lensdist.sim.config import SimConfig

CONFIG = Path(__file__).parents[1] / "configs/common/reference.yaml"
EPOCH = 30_000  # images to train on in the public set
GATE = ("precision=no", "model.head_dropout=0", "augment.flip=false", "train.global_batch=16")
GATE_RATE = "optim.lr=1e-5"  # BatchNorm and Adam make much of rounding at the recipe's


@dataclass(frozen=True)
class Size:
    """What is trained, and for how long."""

    members: tuple[str, ...]
    pixels: int
    enlarged: int
    """Pixels a side of the notebook's images."""
    precision: str
    batch: int
    notebook_batch: int
    per_class: int
    skip: int
    """Steps that do not count; during the second, lensdist makes room for its checkpoints."""
    steps: int
    workers: int


SIZES = {
    "small": Size(("densenet121", "resnet18"), 64, 96, "no", 8, 8, 60, 2, 4, 0),
    "full": Size(("densenet161", "resnet18"), 150, 224, "bf16", 256, 32, 5000, 10, 60, 8),
}


class Bench:
    """Runs of one size, on one simulated set, from the same weights (kernels for three bands)."""

    def __init__(self, size: Size, scratch: Path, device: str) -> None:
        self.size, self.scratch = size, scratch
        write_packed(scratch / "packed", SimConfig(family="common"), size.per_class, 0, device)
        torch.manual_seed(0)
        self.weights: dict[str, Tensor] = Ensemble(
            self.load("model.grey=repeat").model, 3
        ).state_dict()

    def load(self, *more: str) -> CommonRun:
        """The recipe at this size."""
        size = self.size
        words = [f"run.dir={self.scratch / 'run'}", f"data.path={self.scratch / 'packed'}"]
        words += ["init=random", f"model.members=[{','.join(size.members)}]"]
        cfg = load(CONFIG, [*words, f"model.resize={size.pixels}", *more], schema=schema_of)
        assert isinstance(cfg, CommonRun)
        return cfg

    def ours(self, *more: str) -> Ours:
        """lensdist with some settings."""
        cfg = self.load(*more)
        folded = cfg.model.grey == "fold"
        network = Ensemble(cfg.model, 3)
        network.load_state_dict({k: one_band(w) if folded else w for k, w in self.weights.items()})
        return Ours(cfg, PackedSet(self.scratch / "packed"), network=network)

    def rivals(self, ours: Ours, *, shuffle: bool) -> dict[str, Way]:
        """Others from the same weights, on files or on the array."""
        files = self.scratch / "items"
        found = fill(Rivals(ours, files, first_rows(ours), shuffle, self.size.workers))
        for name, why in found.left_out.items():
            print(f"{name} is left out: {why}")
        return found.ways

    def gate(self, device: torch.device) -> dict[str, float]:
        """The largest relative difference of each way's losses from lensdist's.

        The notebook's networks take three bands, and are held against lensdist's with three.
        """
        torch.backends.cudnn.allow_tf32 = False
        found: dict[str, float] = {}
        for grey, mine in (("fold", False), ("repeat", True)):
            ours = self.ours(*GATE, GATE_RATE, f"model.grey={grey}")
            every = self.rivals(ours, shuffle=False).items()
            ways = {name: way for name, way in every if (name == "notebook") == mine}
            found |= gate(ways, ours.way, device, BATCHNORM, parity_steps(ours))
        torch.backends.cudnn.allow_tf32 = True
        return found

    def ways(self) -> dict[str, tuple[Way, int]]:
        """Name -> a way, and pixels a side."""
        size = self.size
        settings = (f"precision={size.precision}", f"train.global_batch={size.batch}")
        ours = self.ours(*settings, "model.grey=fold", "train.deterministic=false")
        found = {"lensdist": (ours.way, size.pixels)}
        if ours.world.device.type == "cuda":  # a CPU's kernels always are
            same = self.ours(*settings, "model.grey=fold")
            found["lensdist, deterministic (default)"] = (same.way, size.pixels)
        for name, pixels in (("notebook", size.enlarged), ("notebook, our pixels", size.pixels)):
            batch = f"train.global_batch={size.notebook_batch}"
            three = self.ours(batch, f"model.resize={pixels}", "model.grey=repeat")
            found[name] = (self.rivals(three, shuffle=True)["notebook"], pixels)
        for name, way in self.rivals(ours, shuffle=True).items():
            if name != "notebook":
                found[name] = (way, size.pixels)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "full" if torch.cuda.is_available() else "small"
    parser.add_argument("--size", choices=SIZES, default=default, help=f"(here: {default})")
    parser.add_argument("--steps", type=int, help="that count, of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = SIZES[args.size]
    steps, load_before = args.steps or size.steps, os.getloadavg()[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    with tempfile.TemporaryDirectory(prefix="lensdist-common-") as name:
        bench = Bench(size, Path(name), device.type)
        worst = bench.gate(device)
        print("same batches, same losses: " + ", ".join(f"{k} {v:.0e}" for k, v in worst.items()))
        ways = bench.ways()
        timed = {name: way for name, (way, _) in ways.items()}
        rows = compare(timed, device, skip=size.skip, steps=steps, rounds=args.rounds)

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} thread(s)"
    print(f"\n{' + '.join(size.members)}, precision {size.precision}, {where}")
    show(rows, {name: pixels for name, (_, pixels) in ways.items()}, full=args.size == "full")
    loads = (load_before, os.getloadavg()[0])
    print(f"medians of {args.rounds} rounds and their range; load {loads[0]:.1f} .. {loads[1]:.1f}")
    if args.out:
        facts = {"size": asdict(size), "steps": steps, "rounds": args.rounds, "device": where}
        facts |= {"torch": torch.__version__, "loss_differences": worst, "load": loads}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")


def show(rows: list[dict[str, Any]], pixels: dict[str, int], *, full: bool) -> None:
    """Print the table."""
    head = f"{'way':<36}{'pixels':>7}{'batch':>6}{'images/s':>10}{'spread':>16}{'lensdist':>10}"
    print(head + (f"{'s an epoch':>12}" if full else ""))
    for row in rows:
        low, high = row["images_per_s_spread"]
        epoch = f"{EPOCH / row['images_per_s']:>12.1f}" if full else ""
        print(
            f"{row['way']:<36}{pixels[row['way']]:>7}{row['batch']:>6}{row['images_per_s']:>10.4g}"
            f"{f'{low:.4g} .. {high:.4g}':>16}{row['first_over']:>9.2f}x{epoch}"
        )


if __name__ == "__main__":
    main()
