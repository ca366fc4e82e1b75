"""Images a second that the common task's ensemble trains on: lensdist, and what else one would use.

    OMP_NUM_THREADS=1 python benchmarks/common_task.py --out common_task.json
    python benchmarks/common_task.py --size full           # the default where there is a GPU

All train the same two networks with the recipe's heads, from the same weights, with Adam. First a
gate, in float32, without mirroring and dropout: on the same batches every way must give lensdist's
losses, or it does not do the same work. Then they take turns, so that a busy machine slows all of
them. A turn begins anew; its first steps do not count, nor what is built before them or saved after
the last. A step includes fetching its batch.

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
import contextlib
import io
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from rivals import ensembles as rivals
from rivals.ensembles import Images, Loop, Turn, Watch, one_band, turn_of
from torch import Tensor, nn
from torch.utils.data import SubsetRandomSampler

from lensdist.config import load
from lensdist.config.schema import CommonRun, schema_of
from lensdist.data.pack import pack
from lensdist.data.packed import PackedSet
from lensdist.data.preprocess import Preprocess
from lensdist.data.source import PackedSource, View
from lensdist.engine.batches import plan_steps
from lensdist.engine.journal import Journal
from lensdist.engine.loop import train
from lensdist.engine.saver import Saver
from lensdist.engine.stages import Phase
from lensdist.engine.stopping import Stopper
from lensdist.engine.torch_settings import settle
from lensdist.engine.world import World
from lensdist.models.ensemble import Ensemble
from lensdist.sim.config import SimConfig
from lensdist.sim.write import write_raw
from lensdist.tasks.common import CommonTask

Way = tuple[Turn, int, int]
CONFIG = Path(__file__).parents[1] / "configs/common/reference.yaml"
EPOCH = 30_000  # images to train on in the public set
GATE_STEPS, GATE_BATCH, GATE_RATE = 3, 16, 1e-5
# Of the first loss, and of all. Adam makes much of gradients near zero: another layout's rounding
# moves the losses by up to 5e-4, but one and a half times the rate by 2.5e-3, none by 1e-2.
TOLERANCE = 1e-4, 2e-3


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


class Timed(CommonTask):
    """The common task, with a watch."""

    watch: Watch

    def loss(self, model: nn.Module, batch: dict[str, Tensor], key: int) -> Tensor:
        self.watch.begin()
        loss = super().loss(model, batch, key)
        self.watch.losses.append(loss.detach())
        return loss

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.watch.begin()  # the evaluation after the last step
        return super().outputs(model, batch)


class Lensdist:
    """A run of `lensdist.engine.loop.train`, again and again from the start."""

    def __init__(self, size: Size, scratch: Path, weights: dict[str, Tensor], *more: str) -> None:
        words = [f"run.dir={scratch / 'run'}", f"data.path={scratch / 'packed'}", "init=random"]
        words += [f"model.members=[{','.join(size.members)}]", f"model.resize={size.pixels}"]
        words += ["train.eval_every_epochs=1e9", "checkpoint.every_epochs=1e9"]
        cfg = load(CONFIG, [*words, *more], schema=schema_of)
        assert isinstance(cfg, CommonRun)
        AcceleratorState._reset_state(True)  # it keeps the first precision that it was told
        self.cfg, self.world = cfg, World(cfg)
        packed, device = PackedSet(scratch / "packed"), self.world.device
        train_view = View(packed, "train", cfg.data, 0, device)
        self.source, self.rows = PackedSource(train_view, 0), train_view.rows
        self.validation = View(packed, "val", cfg.data, 0, device)
        one = cfg.model.grey == "fold"
        self.weights = {k: one_band(w) if one else w for k, w in weights.items()}

    def turn(self, watch: Watch) -> None:
        """A whole run, its evaluation and its save at the end included."""
        preprocess = Preprocess(self.cfg.preprocess, [0.0], [1.0])
        task = Timed(self.cfg, tuple(self.validation.labels), preprocess, self.weights)
        task.watch = watch
        limited = self.cfg.train.model_copy(update={"max_steps": watch.last})
        cfg = self.cfg.model_copy(update={"train": limited})
        plan = plan_steps(limited.global_batch, limited.micro, self.source.size, 0, 1)
        settle(cfg, self.world.device)
        with contextlib.redirect_stderr(io.StringIO()):
            journal = Journal(cfg, self.world, 0)
            saver = Saver(cfg.run.dir / "checkpoints", 1, True, lambda step, sentence: None)
            phase = Phase(cfg, task, self.source, self.validation, plan, {})
            train(phase, self.world, journal, saver, Stopper(cfg.run.dir, self.world), None)
            journal.close()

    def rival(self, loop: Loop, maker: str, images: Images, order: Any, **how: Any) -> Turn:
        """Another way to train the same networks, on the images that `order` draws."""
        return turn_of(loop, maker, self.cfg, self.weights, images, order, **how)


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

    with tempfile.TemporaryDirectory(prefix="lensdist-common-") as name:
        scratch = Path(name)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        family = SimConfig(family="common")
        write_raw(scratch / "raw", family, size.per_class, 0, device=device.type)
        pack(scratch / "raw", scratch / "packed")
        weights = initial(size)
        worst = gate(size, scratch, weights)
        print("same batches, same losses: " + ", ".join(f"{k} {v:.0e}" for k, v in worst.items()))
        rows = measure(ways(size, scratch, weights), size, device, steps, args.rounds)

    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{args.threads} thread(s)"
    print(f"\n{' + '.join(size.members)}, precision {size.precision}, {where}")
    head = f"{'way':<36}{'pixels':>7}{'batch':>6}{'images/s':>10}{'spread':>16}{'lensdist':>10}"
    print(head + (f"{'s an epoch':>12}" if args.size == "full" else ""))
    for row in rows:
        low, high = row["spread"]
        epoch = f"{EPOCH / row['images_per_s']:>12.1f}" if args.size == "full" else ""
        print(
            f"{row['way']:<36}{row['pixels']:>7}{row['batch']:>6}{row['images_per_s']:>10.4g}"
            f"{f'{low:.4g} .. {high:.4g}':>16}{row['lensdist_over']:>9.2f}x{epoch}"
        )
    loads = (load_before, os.getloadavg()[0])
    print(f"medians of {args.rounds} rounds and their range; load {loads[0]:.1f} .. {loads[1]:.1f}")
    if args.out:
        facts = {"size": asdict(size), "steps": steps, "rounds": args.rounds, "device": where}
        facts |= {"torch": torch.__version__, "loss_differences": worst, "load": loads}
        args.out.write_text(json.dumps(facts | {"rows": rows}, indent=2) + "\n")


def initial(size: Size) -> dict[str, Tensor]:
    """Weights that all start from, with kernels for three bands."""
    torch.manual_seed(0)
    words = [f"model.members=[{','.join(size.members)}]", "run.dir=x", "init=random"]
    cfg = load(CONFIG, words, schema=schema_of)
    assert isinstance(cfg, CommonRun)
    return Ensemble(cfg.model, 3).state_dict()


def gate(size: Size, scratch: Path, weights: dict[str, Tensor]) -> dict[str, float]:
    """The largest relative difference of each way's losses from lensdist's.

    The notebook's networks take three bands, and are held against lensdist's with three.

    Raises:
        SystemExit: they differ by more than rounding: they do not do the same work.
    """
    torch.backends.cudnn.allow_tf32 = False
    settings = ["precision=no", "model.head_dropout=0", "augment.flip=false"]
    settings += [f"train.global_batch={GATE_BATCH}", f"optim.lr={GATE_RATE}"]
    found = {}
    for bands, grey in ((1, "fold"), (3, "repeat")):
        ours = Lensdist(size, scratch, weights, *settings, f"model.grey={grey}")
        order = ours.rows[ours.source.places(0, 0, GATE_BATCH * GATE_STEPS)].tolist()
        files = scratch / "raw" if bands == 3 else None
        images = Images(scratch / "packed", files, size.pixels, mirror=False)
        make = partial(ours.rival, images=images, order=order, batch=GATE_BATCH)
        ways: dict[str, Turn] = {"lensdist": ours.turn}
        if bands == 3:
            ways["notebook"] = make(rivals.notebook, "torchvision")
        else:
            for name, last in (("timm", False), ("timm --channels-last", True)):
                ways[name] = make(rivals.timm_loop, "timm", precision="no", channels_last=last)
            ways["Lightning"] = make(rivals.lightning_loop, "torchvision", precision="no")
        losses = {}
        for name, turn in ways.items():
            watch = Watch(0, GATE_STEPS, ours.world.device)
            turn(watch)
            losses[name] = torch.stack(watch.losses).float().cpu()
            apart = (losses[name] / losses["lensdist"] - 1).abs()
            if not (apart[0] <= TOLERANCE[0] and apart.max() <= TOLERANCE[1]):
                raise SystemExit(f"{name}: losses {losses}: the ways do not do the same work")
            found[name] = float(apart.max())
    torch.backends.cudnn.allow_tf32 = True
    del found["lensdist"]
    return found


def ways(size: Size, scratch: Path, weights: dict[str, Tensor]) -> dict[str, Way]:
    """Name -> a turn, pixels a side, images a step."""
    settings = (f"precision={size.precision}", f"train.global_batch={size.batch}")
    fast = "train.deterministic=false"
    ours = Lensdist(size, scratch, weights, *settings, "model.grey=fold", fast)
    found: dict[str, Way] = {"lensdist": (ours.turn, size.pixels, size.batch)}
    if ours.world.device.type == "cuda":  # a CPU's kernels always are
        same = Lensdist(size, scratch, weights, *settings, "model.grey=fold")
        found["lensdist, deterministic (default)"] = (same.turn, size.pixels, size.batch)
    order = SubsetRandomSampler(ours.rows.tolist())
    three = Lensdist(size, scratch, weights, *settings, "model.grey=repeat")
    for name, pixels in (("notebook", size.enlarged), ("notebook, our pixels", size.pixels)):
        files = Images(scratch / "packed", scratch / "raw", pixels, mirror=True)
        turn = three.rival(rivals.notebook, "torchvision", files, order, batch=size.notebook_batch)
        found[name] = (turn, pixels, size.notebook_batch)
    array = Images(scratch / "packed", None, size.pixels, mirror=True)
    make = partial(
        ours.rival, images=array, order=order, precision=size.precision, batch=size.batch,
        workers=size.workers,
    )  # fmt: skip
    for name, last in (("timm", False), ("timm --channels-last", True)):
        found[name] = (make(rivals.timm_loop, "timm", channels_last=last), size.pixels, size.batch)
    found["Lightning"] = (make(rivals.lightning_loop, "torchvision"), size.pixels, size.batch)
    return found


def measure(
    ways: dict[str, Way], size: Size, device: torch.device, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Medians over rounds; ratios are taken within a round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways) if i % 2 else reversed(ways):
            turn, _, batch = ways[name]
            watch = Watch(size.skip, steps, device)
            turn(watch)
            rates[name].append(steps * batch / watch.seconds)
    rows = []
    for name, (_, pixels, batch) in ways.items():
        over = [a / b for a, b in zip(rates["lensdist"], rates[name], strict=True)]
        facts = {"way": name, "pixels": pixels, "batch": batch}
        facts |= {"images_per_s": statistics.median(rates[name]), "images_per_s_each": rates[name]}
        facts |= {"spread": (min(rates[name]), max(rates[name]))}
        rows.append(facts | {"lensdist_over": statistics.median(over)})
    return rows


if __name__ == "__main__":
    main()
