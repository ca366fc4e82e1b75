"""`lensdist export`: a trained model in another format or place (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE, UserError

EXAMPLES = """examples:
  lensdist export runs/finetune --format onnx --out finetune-onnx    # the selected model
  lensdist export runs/finetune --step 400 --out at-400              # a checkpoint of any run
  lensdist export runs/finetune --step all --out steps               # steps/step-00000400/, ...
  lensdist export imported --format pt2 --out imported-pt2           # an export in another format
  lensdist export runs/densenet runs/resnet --out ensemble           # an ensemble of several runs

safetensors is lensdist's own format, for lensdist.load. onnx and pt2 include the preprocessing:
they take batches of any size, of images in the units found on disk. Each is compared with the
original on random images before DEST is made. torch.export.load unpickles parts of a .pt2 file:
load only those that you trust. onnx needs: pip install 'lensdist[export]'.
"""


def _step(text: str) -> int | str:
    if text == "all":
        return text
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be a number of optimizer steps, or all")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "run_dirs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="a run, or an export; several of task common become one ensemble",
    )
    parser.add_argument(
        "--out", metavar="DEST", type=Path, required=True, help="the folder to make"
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "onnx", "pt2"),
        default="safetensors",
        help="the format (default: %(default)s)",
    )
    parser.add_argument(
        "--step",
        type=_step,
        metavar="N|all",
        help="export the weights of this checkpoint, or of all that are kept",
    )
    parser.add_argument(
        "--combine",
        choices=("logits", "probabilities"),
        help="the outputs that an ensemble of several RUNs averages (default: logits)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and print the largest difference from the original's outputs."""
    from lensdist.export.publish import export_ensemble, export_run

    several = len(args.run_dirs) > 1
    if several and args.step is not None:
        raise UserError("--step takes one RUN; an ensemble uses the export of each run")
    if args.combine is not None and not several:
        raise UserError("--combine takes several RUNs; give them all, or leave it out")
    if several:
        written = export_ensemble(args.run_dirs, args.out, args.format, args.combine or "logits")
    else:
        written = export_run(args.run_dirs[0], args.out, args.format, args.step)
    for one in written:
        print(
            f"{one.path}: {args.format}, largest difference from the original "
            f"{one.difference:.2g} of {one.scale:.3g}"
        )
    return EXIT_DONE
