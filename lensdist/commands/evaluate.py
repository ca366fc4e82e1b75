"""`lensdist evaluate`: score a trained model on a split of a packed set (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from lensdist.sim.config import FamilyName
from lensdist.utils.errors import EXIT_DONE, UserError, begun

EXAMPLES = """examples:
  lensdist evaluate runs/finetune --data packed              # runs/finetune/eval/test.json
  lensdist evaluate runs/finetune --data packed --split val
  lensdist evaluate runs/finetune --data packed --tta rot180
  lensdist evaluate runs/finetune --data other --split all --map-labels sub=sphere
  lensdist evaluate runs/finetune --data packed --hard       # and runs/finetune/eval/hard.json
  lensdist evaluate runs/finetune/export --data hard --out runs/finetune/hard

The model was selected on the validation split; use the test split only once.
"""


def _renamed(text: str) -> dict[str, str]:
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    if not all(a and b for a, b in pairs) or len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError("give SET=MODEL,… with each class of the set once")
    return dict(pairs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("model", metavar="RUN_OR_EXPORT", type=Path, help="a finished run")
    parser.add_argument("--data", type=Path, required=True, help="a packed set")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        default="test",
        help="the split to score (default: %(default)s)",
    )
    parser.add_argument(
        "--map-labels",
        metavar="A=B,...",
        type=_renamed,
        default={},
        help="score the set's class A as the model's class B (default: classes of one name)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the folder for eval/ and figures/ (default: the run, or the export)",
    )
    parser.add_argument(
        "--batch", type=int, default=256, help="the images at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--tta",
        choices=("rot180", "dihedral"),
        help="also average a classifier's probabilities over rotated images. rot180: 2 views, the "
        "only exact symmetry of these data; dihedral: all 8 rotations and mirror images, of which "
        "only 2 are symmetries of the data (default: none)",
    )
    hard = parser.add_argument_group("harder images")
    hard.add_argument(
        "--hard",
        metavar="N_PER_CLASS",
        type=int,
        nargs="?",
        const=300,
        help="also simulate and score variants of the same lenses: plain, with a PSF 30 %% wider "
        "and narrower, and for classifiers with a third and a tenth of the mass in substructure "
        "(default: 300 images per class and variant)",
    )
    hard.add_argument(
        "--family",
        choices=get_args(FamilyName),
        help="the simulator's family for a set that `lensdist simulate` did not pack",
    )


def run(args: argparse.Namespace) -> int:
    """Score, print the scores, and write `eval/<split>.json` and figures.

    Raises:
        UserError: see `open_subject`, `score_split` and `robustness.plan`.
    """
    if args.family and args.hard is None:
        raise UserError("--family needs --hard: it sets the simulator of the harder images")
    if args.batch < 1:
        raise UserError(f"--batch must be 1 or more, not {args.batch}")
    from lensdist.evaluate import robustness as hard
    from lensdist.evaluate.run import open_subject, score_split
    from lensdist.metrics.report import hard_table, lines
    from lensdist.metrics.scores import MANY_CLASSES
    from lensdist.utils.files import printable

    subject = open_subject(args.model, args.data, args.out, args.map_labels)
    planned = None if args.hard is None else hard.plan(subject, args.hard, args.family)
    subject.target(args.split)
    with begun(subject.out):
        scores, written = score_split(subject, args.split, args.batch, args.tta)
        print("\n".join(lines(scores)))
        for name, n in scores["left_out"].items():
            print(f"left out {n:,} images: {printable(name)}, which is not a class of the model")
        for name in scores["lacking"]:
            print(f"no images of {printable(name)}, which is a class of the model")
        for what in scores["not_computed"]:
            print(f"left out: {what}, because there are more than {MANY_CLASSES} classes")
        if planned is not None:
            variants, more = hard.score_hard(subject, planned)
            written += more
            print(f"\n{hard_table(variants)}\n")
    for path in written:
        print(f"wrote {path}")
    return EXIT_DONE
