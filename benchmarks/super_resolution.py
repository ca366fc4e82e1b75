"""Time super-resolution in training, pairs per second: lensdist, and plain PyTorch.

    OMP_NUM_THREADS=1 python -m benchmarks.super_resolution --out super_resolution.json
    python -m benchmarks.super_resolution --size full      # the default on a GPU

All enlarge the same simulated pairs, 75 -> 150 px. A gate comes first, in float32, without
augmentation and dropout: on the same batches both plain loops with lensdist's network must give
lensdist's losses, or they do not do the same work. A turn starts again; its first steps do not
count, nor does the work before its first step or after its last. A step includes fetching its
batch.

- lensdist: its own loop on a packed set, from random weights; it clips gradients and averages
  weights if the preset sets it, with all that a run does at a step.
- plain loop, files: the same network and loss; a DataLoader without workers reads one `.npy` file
  of LR and one of HR per item, as the reference notebook does.
- plain loop, memory: the same network and loss; all pairs are tensors on the device.
- Lightning: the same files in its Trainer; checkpoints, progress bar and logger are off.
- EDSR, memory: the network, loss and Adam of Lim et al. 2017 (arXiv:1707.02921); `small` with about
  as many parameters as lensdist's, `full` as its baseline of 64 channels and 16 blocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.report import Report, compared, options, reporting
from benchmarks.harness.turns import Way
from benchmarks.rivals import loops, resolvers
from benchmarks.rivals.edsr import Edsr
from benchmarks.speed.session import Session
from benchmarks.speed.settings import SpeedBench

CONFIGS = Path(__file__).parents[1] / "configs/sr"
EDSR_RATE = 1e-4  # the paper's


@dataclass(frozen=True)
class Size:
    """A size: the presets, the images and the steps."""

    presets: tuple[str, ...]
    edsr: tuple[int, int]
    """Its channels and residual blocks."""
    per_class: int
    steps: int
    """Timed steps of a turn."""


SIZES = {
    "small": Size(("small",), (32, 8), 30, 12),
    "full": Size(("reference", "best"), (64, 16), 1000, 100),
}


def main() -> None:
    parser = options(__doc__, rounds=5, sizes=tuple(SIZES))
    parser.add_argument("--steps", type=int, help="timed steps of a turn")
    args = parser.parse_args()
    size = SIZES[args.size]
    with reporting(args, "Training super-resolution", size=asdict(size)) as (report, scratch):
        for preset in size.presets:
            words = ("encoder=null", f"data.n_per_class={size.per_class}")
            steps = args.steps or size.steps
            session = Session(
                SpeedBench(
                    config=CONFIGS / f"{preset}.yaml", out=scratch / preset, overrides=words,
                    window_steps=steps,
                )
            )  # fmt: skip
            report.say(f"## {preset}")
            worst, left_out = session.gate("optim.lr=1e-3")
            report.gated(worst)
            report.reasons(left_out)
            rows = session.compare(ways(session, size, report), args.rounds)
            report.table([compared(row) | {"batch": row["batch"]} for row in rows], preset)


def ways(session: Session, size: Size, report: Report) -> dict[str, Way]:
    """Return the ways, lensdist first."""
    ours = session.ours("train.deterministic=false")
    found = {"lensdist": ours.way}
    rivals = session.rivals(ours, shuffle=True)
    edsr, cfg = partial(Edsr, 1, 2, *size.edsr), ours.cfg
    for name, net in (("lensdist", ours.network), ("EDSR", edsr())):
        report.say(f"{name} has {sum(p.numel() for p in net.parameters()):,} parameters.")
    loss = resolvers.turned_batch(resolvers.edsr_loss, cfg.augment)
    plain, memory = loops.by_hand(cfg.precision), rivals.memory("image", "target")
    how: dict[str, Any] = {"benchmark": True, "tf32": cfg.precision != "no", "adam": paper_adam}
    rivals.add("EDSR, memory", plain, edsr, memory, loss, **how)
    return found | rivals.ways


def paper_adam(net: torch.nn.Module) -> torch.optim.Optimizer:
    """Return EDSR's optimizer."""
    return torch.optim.Adam(net.parameters(), lr=EDSR_RATE)


if __name__ == "__main__":
    main()
