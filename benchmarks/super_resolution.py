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
- files: the same network and loss in a plain loop; a DataLoader without workers reads a `.npy` file
  of LR/ and one of HR/ an item, as the reference notebook does.
- memory: the same network and loss in a plain loop; all pairs are tensors on the device.
- EDSR, memory: the network, loss and Adam of Lim et al. 2017 (arXiv:1707.02921); `small` with about
  as many parameters as lensdist's, `full` as its baseline of 64 channels and 16 blocks.

`--to-bicubic` trains whole presets without an encoder, on as many simulated pairs as they ask for:
how long they had trained when an evaluation on the validation split first had a lower MSE than
bicubic interpolation, says metrics.jsonl. Evaluations and saves do not count. A residual decoder
begins at bicubic with each block's mean put right, which is better already.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from common_task import Way, measure
from rivals.edsr import turns
from rivals.ensembles import Turn, Watch
from torch import Tensor, nn

from lensdist.bench.baselines import Edsr
from lensdist.config import load
from lensdist.config.schema import SuperResolutionRun, schema_of
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
from lensdist.models.super_resolution import SuperResolver
from lensdist.sim.config import SimConfig
from lensdist.sim.write import write_packed, write_raw
from lensdist.tasks.super_resolution import SuperResolutionTask
from lensdist.track.log import read

Facts = dict[str, Any]
CONFIGS = Path(__file__).parents[1] / "configs/sr"
FAMILY = SimConfig(family="sr")
GATE_STEPS, GATE_RATE = 4, 1e-3  # steps of the first epoch, for the next one's order is another
TOLERANCE = 1e-4  # of any loss; rounding makes 2e-7, a rate that is 1 % off 1.6e-4 or more
WINDOW = 20  # steps that the journal's images a second are measured over, where all are logged


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


class Timed(SuperResolutionTask):
    """Super-resolution, with a watch, from a given network."""

    watch: Watch
    network: nn.Module

    def build(self) -> nn.Module:
        return deepcopy(self.network)

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

    def __init__(self, preset: str, scratch: Path, *more: str) -> None:
        words = [f"run.dir={scratch / 'run'}", f"data.path={scratch / 'packed'}", "encoder=null"]
        words += ["train.eval_every_epochs=1e9", "checkpoint.every_epochs=1e9", *more]
        cfg = load(CONFIGS / f"{preset}.yaml", words, schema=schema_of)
        assert isinstance(cfg, SuperResolutionRun)
        AcceleratorState._reset_state(True)  # it keeps the first precision that it was told
        self.cfg, self.world = cfg, World(cfg)
        packed, device = PackedSet(scratch / "packed"), self.world.device
        train_view = View(packed, "train", cfg.data, 0, device)
        self.source, self.rows = PackedSource(train_view, 0), train_view.rows
        self.validation = View(packed, "val", cfg.data, 0, device)
        torch.manual_seed(0)
        self.network = SuperResolver(cfg.model)

    def turn(self, watch: Watch) -> None:
        """A whole run, its evaluation and its save at the end included."""
        task = Timed(self.cfg, (), Preprocess(self.cfg.preprocess, [0.0], [1.0]), None)
        task.watch, task.network = watch, self.network
        limited = self.cfg.train.model_copy(update={"max_steps": watch.last})
        cfg = self.cfg.model_copy(update={"train": limited})
        plan = plan_steps(limited.global_batch, limited.micro, self.source.size, 0, 1)
        torch.use_deterministic_algorithms(False)  # what another way has set is not undone by it
        settle(cfg, self.world.device)
        with contextlib.redirect_stderr(io.StringIO()):
            journal = Journal(cfg, self.world, 0)
            saver = Saver(cfg.run.dir / "checkpoints", 1, True, lambda step, sentence: None)
            phase = Phase(cfg, task, self.source, self.validation, plan, {})
            train(phase, self.world, journal, saver, Stopper(cfg.run.dir, self.world), None)
            journal.close()

    def rivals(self, size: Size, scratch: Path, order: list[int] | None = None) -> dict[str, Turn]:
        """Plain loops over the same pairs, in this order or at random."""
        build, edsr = partial(deepcopy, self.network), partial(Edsr, 1, 2, *size.edsr)
        rows, device = order or self.rows.tolist(), self.world.device
        return turns(self.cfg, build, edsr, scratch, device, rows, order is None)


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
            facts |= {"rows": to_bicubic(size, Path(name), device.type, args.threads)}
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
    write_raw(scratch / "raw", FAMILY, size.per_class, 0, device=device.type)
    pack(scratch / "raw", scratch / "packed")
    facts: Facts = {"loss_differences": {}, "rows": []}
    for preset in size.presets:
        facts["loss_differences"][preset] = worst = gate(preset, size, scratch)
        said = ", ".join(f"{name} {x:.0e}" for name, x in worst.items())
        print(f"\n{preset}: same batches, same losses: {said}")
        turns_ = ways(preset, size, scratch)
        rows = measure(turns_, size, device, steps, rounds)  # type: ignore[arg-type]  # its skip
        print(f"{'way':<36}{'batch':>6}{'pairs/s':>9}{'spread':>16}{'lensdist':>10}{'spread':>14}")
        for row in rows:
            each = zip(rows[0]["images_per_s_each"], row["images_per_s_each"], strict=True)
            over = [ours / theirs for ours, theirs in each]
            facts["rows"].append(row | {"preset": preset, "lensdist_over_each": over})
            low, high = row["spread"]
            print(
                f"{row['way']:<36}{row['batch']:>6}{row['images_per_s']:>9.4g}"
                f"{f'{low:.4g} .. {high:.4g}':>16}{row['lensdist_over']:>9.2f}x"
                f"{f'{min(over):.2f} .. {max(over):.2f}':>14}"
            )
    return facts


def gate(preset: str, size: Size, scratch: Path) -> dict[str, float]:
    """The largest relative difference of each plain loop's losses from lensdist's.

    Raises:
        SystemExit: they differ by more than rounding: they do not do the same work.
    """
    torch.backends.cudnn.allow_tf32 = False
    settings = ["precision=no", "model.encoder.dropout=0", "optim.weight_decay=0"]
    settings += ["optim.schedule.kind=constant", "optim.schedule.warmup_steps=0"]
    settings += ["optim.clip_norm=null", f"optim.lr={GATE_RATE}"]
    settings += [f"augment.{way}=false" for way in ("rot180", "rot90", "flip")]
    ours = Lensdist(preset, scratch, *settings)
    pairs = ours.cfg.train.global_batch * GATE_STEPS
    order = ours.rows[ours.source.places(0, 0, pairs)].tolist()
    rivals = ours.rivals(size, scratch, order)
    losses, found = {}, {}
    for name in ("lensdist", "files", "memory"):
        watch = Watch(0, GATE_STEPS, ours.world.device)
        (rivals | {"lensdist": ours.turn})[name](watch)
        losses[name] = torch.stack(watch.losses).float().cpu()
        found[name] = float((losses[name] / losses["lensdist"] - 1).abs().max())
        if not found[name] <= TOLERANCE:
            raise SystemExit(f"{name}: losses {losses}: the loops do not do the same work")
    torch.backends.cudnn.allow_tf32 = True
    del found["lensdist"]
    return found


def ways(preset: str, size: Size, scratch: Path) -> dict[str, Way]:
    """Name -> a turn, pixels a side of LR, pairs a step."""
    ours = Lensdist(preset, scratch, "train.deterministic=false")
    found = {"lensdist": ours.turn}
    if ours.world.device.type == "cuda":  # a CPU's kernels always are
        found["lensdist, deterministic (default)"] = Lensdist(preset, scratch).turn
    found |= ours.rivals(size, scratch)
    for name, net in (("lensdist", ours.network), ("EDSR", Edsr(1, 2, *size.edsr))):
        print(f"{name} has {sum(p.numel() for p in net.parameters()):,} parameters")
    pixels, batch = ours.cfg.model.image_size, ours.cfg.train.global_batch
    return {name: (turn, pixels, batch) for name, turn in found.items()}


def to_bicubic(size: Size, scratch: Path, device: str, threads: int) -> list[Facts]:
    """Train whole presets; print when each's validation MSE was first below bicubic's."""
    found = []
    print(f"{'preset':<11}{'evaluation':<13}{'step':>7}{'seconds':>9}{'MSE/bicubic':>13}{'gap':>8}")
    for preset, every in size.to_bicubic.items():
        config, run, data = CONFIGS / f"{preset}.yaml", scratch / preset, scratch / f"{preset}-data"
        words = [f"run.dir={run}", f"data.path={data}", "encoder=null", "train.log_every=1"]
        words += [f"train.eval_every_epochs={every}"]
        cfg = load(config, words, schema=schema_of)
        write_packed(data, FAMILY, cfg.data.n_per_class, 0, device, truth=True)
        done = subprocess.run(
            [sys.executable, "-m", "lensdist.train", "--config", str(config), *words],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{preset} failed: {done.stderr}")
        rows = read(run / "metrics.jsonl")
        seconds = training_seconds(rows, cfg.train.global_batch)
        scores = [row for row in rows if row["kind"] == "val"]
        below = [row for row in scores if row["mse"] < row["mse_bicubic"]]
        marks = [("first below", below[0])] if below else []
        for when, row in (*marks, ("last", scores[-1])):
            facts = {"preset": preset, "when": when, "step": row["step"], "gap": row["gap"]}
            facts |= {"seconds": seconds[row["step"]], "every_steps": scores[0]["step"]}
            found.append(facts | {"mse_ratio": row["mse"] / row["mse_bicubic"]})
            print(
                f"{preset:<11}{when:<13}{row['step']:>7}{facts['seconds']:>9.1f}"
                f"{found[-1]['mse_ratio']:>13.4f}{row['gap']:>8.3f}"
            )
    return found


def training_seconds(rows: list[Facts], batch: int) -> dict[int, float]:
    """Step -> seconds of training until then, from the journal's images a second of each window."""
    seconds, steps = [0.0], [0]
    for row in rows:
        if row["kind"] == "train":
            back = max(0, len(steps) - WINDOW)
            images = (row["step"] - steps[back]) * batch
            steps.append(row["step"])
            seconds.append(seconds[back] + images / row["images_per_s"])
    return dict(zip(steps, seconds, strict=True))


if __name__ == "__main__":
    main()
