"""`lensdist export`: a trained model in another format or place (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE, UserError

EXAMPLES = """examples:
  lensdist export runs/finetune --format onnx --out finetune-onnx    # the model validation chose
  lensdist export runs/finetune --step 400 --out at-400              # a checkpoint's, of any run
  lensdist export runs/finetune --step all --out steps               # steps/step-00000400/, ...
  lensdist export imported --format pt2 --out imported-pt2           # an export again
  lensdist export runs/densenet runs/resnet --out ensemble           # one model of several

safetensors is lensdist's own format, for lensdist.load. onnx and pt2 hold the preprocessing too:
they take images in the units found on disk, any number a batch. Each is compared with the original
on random images before DEST appears. torch.export.load unpickles what a .pt2 file may bring: load
only those that you trust. onnx needs: pip install 'lensdist[export]'.
"""


def _step(text: str) -> int | str:
    if text == "all":
        return text
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("a number of optimizer steps, or all")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "run_dirs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="a run, or an export; several of task common become one ensemble",
    )
    parser.add_argument("--out", metavar="DEST", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--format",
        choices=("safetensors", "onnx", "pt2"),
        default="safetensors",
        help="default: safetensors",
    )
    parser.add_argument(
        "--step", type=_step, metavar="N|all", help="a checkpoint's weights, or those of all kept"
    )
    parser.add_argument(
        "--combine",
        choices=("logits", "probabilities"),
        help="of which the ensemble of several RUNs is the mean (default: logits)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and say how far the outputs are from the original's."""
    from lensdist.export.publish import export_ensemble, export_run

    several = len(args.run_dirs) > 1
    if several and args.step is not None:
        raise UserError("--step takes one RUN; an ensemble is made of what each run exports")
    if args.combine is not None and not several:
        raise UserError("--combine takes several RUNs; give those to combine, or leave it out")
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
