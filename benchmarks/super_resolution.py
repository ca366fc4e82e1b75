"""Pairs a second that super-resolution trains on: lensdist, and plain PyTorch beside it.

    OMP_NUM_THREADS=1 python benchmarks/super_resolution.py --out super_resolution.json
    python benchmarks/super_resolution.py --size full      # the default where there is a GPU
    python benchmarks/super_resolution.py --to-bicubic     # seconds until it beats bicubic

All enlarge the same simulated pairs, 75 -> 150 px. First a gate, in float32, without augmentation
and dropout: on the same batches both plain loops with lensdist's network must give lensdist's
losses, or they do not do the same work. Then all take turns, so that a busy machine slows all of
them. A turn begins anew; its first steps do not count, nor what is built before them or saved after
the last. A step includes fetching its batch.

- lensdist: its own loop on a packed set, from random weights; it clips gradients and averages
  weights where the preset says so, and nothing that a run does at a step is switched off.
- plain loop, files: the same network and loss; a DataLoader without workers reads a `.npy` file of
  LR and one of HR an item, as the reference notebook does.
- plain loop, memory: the same network and loss; all pairs are tensors on the device.
- Lightning: the same files in its Trainer; checkpoints, progress bar and logger are off.
- EDSR, memory: the network, loss and Adam of Lim et al. 2017 (arXiv:1707.02921); `small` with about
  as many parameters as lensdist's, `full` as its baseline of 64 channels and 16 blocks.

`--to-bicubic` trains whole presets without an encoder, on as many simulated pairs as they ask for,
until an evaluation on the validation split first has a lower MSE than bicubic interpolation:
seconds of training, evaluations and saves not counted. A residual decoder begins at bicubic with
each block's mean put right, which is better already.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lensdist.bench.baselines import Edsr
from lensdist.bench.rivals import loops, resolvers
from lensdist.bench.speed.beside import Rivals, fill
from lensdist.bench.speed.ours import Ours
from lensdist.bench.speed.run import first_rows, parity_steps
from lensdist.bench.speed.session import BARE, STILL, UNTURNED
from lensdist.bench.speed.turns import Tolerance, Way, compare, gate
from lensdist.config import load
from lensdist.config.schema import SuperResolutionRun, schema_of
from lensdist.data.dataset import PackedSet
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig

Facts = dict[str, Any]
CONFIGS = Path(__file__).parents[1] / "configs/sr"
FAMILY = SimConfig(family="sr")
GATE = (*BARE, *STILL, *UNTURNED, "model.encoder.dropout=0", "optim.lr=1e-3")
# Rounding makes 2e-7; a rate that is 1 % off 1.6e-4 or more.
TOLERANCE = Tolerance(1e-4, 1e-4)
EDSR_RATE = 1e-4  # the paper's


@dataclass(frozen=True)
class Size:
    """What is trained, and for how long."""

    presets: tuple[str, ...]
    edsr: tuple[int, int]
    """Its channels and residual blocks."""
    per_class: int
    skip: int
    """Steps that do not count; during the second, lensdist makes room for its checkpoints."""
    steps: int
    to_bicubic: dict[str, float]
    """Presets, and epochs between evaluations."""


SIZES = {
    "small": Size(("small",), (32, 8), 30, 2, 12, {"debug": 0.05}),
    "full": Size(("reference", "best"), (64, 16), 1000, 10, 100, {"debug": 0.05, "reference": 0.5}),
}


class Bench:
    """Runs of a preset on one simulated set."""

    def __init__(self, preset: str, size: Size, scratch: Path) -> None:
        self.preset, self.size, self.scratch = preset, size, scratch

    def ours(self, *more: str) -> Ours:
        """lensdist with some settings, from random weights."""
        data = self.scratch / "packed"
        return Ours(configuration(self.preset, self.scratch, data, *more), PackedSet(data))

    def rivals(self, ours: Ours, *, shuffle: bool) -> Rivals:
        """Plain loops over the same pairs."""
        rivals = fill(Rivals(ours, self.scratch / "items", first_rows(ours), shuffle))
        for name, why in rivals.left_out.items():
            print(f"{name} is left out: {why}")
        return rivals

    def gate(self, device: torch.device) -> dict[str, float]:
        """The largest relative difference of each plain loop's losses from lensdist's."""
        torch.backends.cudnn.allow_tf32 = False
        ours = self.ours(*GATE)
        found = gate(
            self.rivals(ours, shuffle=False).ways, ours.way, device, TOLERANCE, parity_steps(ours)
        )
        torch.backends.cudnn.allow_tf32 = True
        return found

    def ways(self) -> dict[str, Way]:
        """lensdist first."""
        ours = self.ours("train.deterministic=false")
        found = {"lensdist": ours.way}
        if ours.world.device.type == "cuda":  # a CPU's kernels always are
            found["lensdist, deterministic (default)"] = self.ours().way
        rivals = self.rivals(ours, shuffle=True)
        edsr, cfg = partial(Edsr, 1, 2, *self.size.edsr), ours.cfg
        for name, net in (("lensdist", ours.network), ("EDSR", edsr())):
            print(f"{name} has {sum(p.numel() for p in net.parameters()):,} parameters")
        loss = resolvers.turned_batch(resolvers.edsr_loss, cfg.augment)
        plain, memory = loops.plain(cfg.precision), rivals.memory("image", "target")
        how: Facts = {"benchmark": True, "tf32": cfg.precision != "no", "adam": paper_adam}
        rivals.add("EDSR, memory", plain, edsr, memory, loss, **how)
        return found | rivals.ways


def paper_adam(net: torch.nn.Module) -> torch.optim.Optimizer:
    """EDSR's."""
    return torch.optim.Adam(net.parameters(), lr=EDSR_RATE)


def configuration(preset: str, scratch: Path, data: Path, *more: str) -> SuperResolutionRun:
    """A preset without an encoder."""
    words = [f"run.dir={scratch / 'run'}", f"data.path={data}", "encoder=null", *more]
    cfg = load(CONFIGS / f"{preset}.yaml", words, schema=schema_of)
    assert isinstance(cfg, SuperResolutionRun)
    return cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = "full" if torch.cuda.is_available() else "small"
    parser.add_argument("--size", choices=SIZES, default=default, help=f"(here: {default})")
    parser.add_argument("--steps", type=int, help="that count, of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--to-bicubic", action="store_true", help="seconds until it beats bicubic")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, load_before = SIZES[args.size], os.getloadavg()[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} thread(s)"
    facts: Facts = {"size": asdict(size), "device": where, "torch": torch.__version__}
    with tempfile.TemporaryDirectory(prefix="lensdist-sr-") as name:
        if args.to_bicubic:
            facts |= {"rows": to_bicubic(size, Path(name), device.type)}
        else:
            facts |= {"steps": args.steps or size.steps, "rounds": args.rounds}
            facts |= speeds(size, Path(name), device, facts["steps"], args.rounds)
            print(f"medians of {args.rounds} rounds and their range")
    facts["load"] = loads = (load_before, os.getloadavg()[0])
    print(f"{where}, load {loads[0]:.1f} .. {loads[1]:.1f}")
    if args.out:
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


def speeds(size: Size, scratch: Path, device: torch.device, steps: int, rounds: int) -> Facts:
    """Print the table of each preset; its rows, and what the gate found."""
    write_packed(scratch / "packed", FAMILY, size.per_class, 0, device.type)
    facts: Facts = {"loss_differences": {}, "rows": []}
    for preset in size.presets:
        bench = Bench(preset, size, scratch)
        facts["loss_differences"][preset] = worst = bench.gate(device)
        said = ", ".join(f"{name} {x:.0e}" for name, x in worst.items())
        print(f"\n{preset}: same batches, same losses: {said}")
        rows = compare(bench.ways(), device, skip=size.skip, steps=steps, rounds=rounds)
        print(f"{'way':<36}{'batch':>6}{'pairs/s':>9}{'spread':>16}{'lensdist':>10}{'spread':>14}")
        for row in rows:
            facts["rows"].append(row | {"preset": preset})
            (low, high), (least, most) = row["images_per_s_spread"], row["first_over_spread"]
            print(
                f"{row['way']:<36}{row['batch']:>6}{row['images_per_s']:>9.4g}"
                f"{f'{low:.4g} .. {high:.4g}':>16}{row['first_over']:>9.2f}x"
                f"{f'{least:.2f} .. {most:.2f}':>14}"
            )
    return facts


def to_bicubic(size: Size, scratch: Path, device: str) -> list[Facts]:
    """Train presets until their validation MSE is below bicubic's; print when that was."""
    found = []
    print(f"{'preset':<11}{'reached':<9}{'step':>7}{'seconds':>9}{'MSE/bicubic':>13}{'gap':>8}")
    for preset, every in size.to_bicubic.items():
        data = scratch / f"{preset}-data"
        cfg = configuration(preset, scratch, data, f"train.eval_every_epochs={every}")
        write_packed(data, FAMILY, cfg.data.n_per_class, 0, device, truth=True)
        *_, last = Ours(cfg, PackedSet(data)).learn(lambda s: s["mse"] < s["mse_bicubic"])
        mse, bicubic = last.scores["mse"], last.scores["mse_bicubic"]
        facts = {"preset": preset, "reached": mse < bicubic, "step": last.step}
        facts |= {"seconds": last.seconds, "mse_ratio": mse / bicubic, "gap": last.scores["gap"]}
        found.append(facts)
        print(
            f"{preset:<11}{'yes' if facts['reached'] else 'no':<9}{last.step:>7}"
            f"{last.seconds:>9.1f}{facts['mse_ratio']:>13.4f}{facts['gap']:>8.3f}"
        )
    return found


if __name__ == "__main__":
    main()
