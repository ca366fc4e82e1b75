"""Images a second that the common task's ensemble trains on: lensdist and its rivals.

    OMP_NUM_THREADS=1 python -m benchmarks.common_task --out common_task.json
    python -m benchmarks.common_task --size full           # the default where there is a GPU

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

from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness.report import compared, options, reporting
from benchmarks.harness.turns import Way
from benchmarks.speed.session import Session
from benchmarks.speed.settings import SpeedBench

CONFIG = Path(__file__).parents[1] / "configs/common/reference.yaml"
EPOCH = 30_000  # images to train on in the public set
ONE, THREE = "model.grey=fold", "model.grey=repeat"


@dataclass(frozen=True)
class Size:
    """A size: the networks, the images and the steps."""

    members: tuple[str, ...]
    pixels: int
    enlarged: int
    """Pixels a side of the notebook's images."""
    precision: str
    batch: int
    notebook_batch: int
    per_class: int
    steps: int
    """Steps of a turn that count."""


SIZES = {
    "small": Size(("densenet121", "resnet18"), 64, 96, "no", 8, 8, 60, 4),
    "full": Size(("densenet161", "resnet18"), 150, 224, "bf16", 256, 32, 5000, 60),
}


def main() -> None:
    parser = options(__doc__, rounds=5, sizes=tuple(SIZES))
    parser.add_argument("--steps", type=int, help="that count, of a turn")
    args = parser.parse_args()
    size = SIZES[args.size]
    title = f"Training {' + '.join(size.members)}, precision {size.precision}"
    with reporting(args, title, size=asdict(size)) as (report, scratch):
        words = ["init=random", f"model.members=[{','.join(size.members)}]"]
        words += [f"model.resize={size.pixels}", f"data.n_per_class={size.per_class}"]
        words += [f"precision={size.precision}", f"train.global_batch={size.batch}"]
        session = Session(
            SpeedBench(
                config=CONFIG, out=scratch, overrides=tuple(words),
                window_steps=args.steps or size.steps,
            )
        )  # fmt: skip
        # The notebook's networks take three bands, and are held against lensdist's with three.
        small = "train.global_batch=16"
        worst, left_out = session.gate("augment.flip=false", small, ONE)
        worst |= {"notebook": session.gate("augment.flip=false", small, THREE)[0]["notebook"]}
        report.gated(worst)
        report.reasons(left_out)
        every = ways(session, size)
        rows = session.compare({name: way for name, (way, _) in every.items()}, args.rounds)
        for row in rows:
            row |= {"pixels": every[row["way"]][1], "epoch_s": EPOCH / row["images_per_s"]}
        report.table(
            [
                {**compared(row), "pixels": row["pixels"], "batch": row["batch"]}
                | ({"s an epoch": row["epoch_s"]} if args.size == "full" else {})
                for row in rows
            ]
        )


def ways(session: Session, size: Size) -> dict[str, tuple[Way, int]]:
    """Return what takes turns, by name, with the pixels a side."""
    ours = session.ours(ONE, "train.deterministic=false")
    found = {"lensdist": (ours.way, size.pixels)}
    for name, pixels in (("notebook", size.enlarged), ("notebook, our pixels", size.pixels)):
        batch = f"train.global_batch={size.notebook_batch}"
        three = session.ours(THREE, batch, f"model.resize={pixels}", "precision=no")
        found[name] = (session.rivals(three, shuffle=True).ways["notebook"], pixels)
    for name, way in session.rivals(ours, shuffle=True).ways.items():
        if name != "notebook":
            found[name] = (way, size.pixels)
    return found


if __name__ == "__main__":
    main()
