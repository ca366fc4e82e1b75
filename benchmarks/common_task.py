"""Time the common task's ensemble in training, images per second: lensdist and its rivals.

    OMP_NUM_THREADS=1 python -m benchmarks.common_task --out common_task.json
    python -m benchmarks.common_task --size full           # the default on a GPU

All train the same two networks with the recipe's heads, from the same weights, with Adam. A gate
comes first, in float32, without mirroring and dropout: on the same batches every way must give
lensdist's losses, or it does not do the same work. Then they take turns, so that a busy machine
slows all of them. A turn starts again; its first steps do not count, nor does the work before its
first step or after its last. A step includes fetching its batch. `lensdist bench speed --beside`
does the same for any run; this one uses the sizes of the results, and the notebook's own
resolution.

- lensdist: its own loop on a packed set, with all that a run does at a step.
- the notebook: one `.npy` file per item, three equal bands, enlarged 1.5 times, mirrored at random,
  float32, contiguous, a DataLoader without workers, `.item()` and accuracy at each step. It runs
  again at lensdist's resolution, to separate its method from its image size.
- timm: its own networks, which take torchvision's weights as they are, in the loop of its train.py:
  autocast, `loss.item()` at each step; with and without its flag `--channels-last`.
- Lightning: torchvision's networks in its Trainer; checkpoints, progress bar and logger are off.

timm and Lightning read the packed array an item at a time through an ordinary DataLoader, resized
and mirrored by torchvision. On a GPU its workers' queues are full when a turn's time begins, which
is to their advantage.
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
    """Height and width of the notebook's images, in pixels."""
    precision: str
    batch: int
    notebook_batch: int
    per_class: int
    steps: int
    """Timed steps of a turn."""


SIZES = {
    "small": Size(("densenet121", "resnet18"), 64, 96, "no", 8, 8, 60, 4),
    "full": Size(("densenet161", "resnet18"), 150, 224, "bf16", 256, 32, 5000, 60),
}


def main() -> None:
    parser = options(__doc__, rounds=5, sizes=tuple(SIZES))
    parser.add_argument("--steps", type=int, help="timed steps of a turn")
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
        # The notebook's networks take three bands, so they are compared with lensdist's with three.
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
    """Return the ways by name, each with its image size in pixels."""
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
