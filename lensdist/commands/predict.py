"""`lensdist predict`: apply a trained model to image files (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE, EXIT_FAILED, UserError

EXAMPLES = """examples:
  lensdist predict runs/finetune cutouts --out classes.csv           # a folder, and those in it
  lensdist predict runs/finetune a.npy 'tiles/**/lens*.fits' --out classes.parquet
  lensdist predict runs/sr cutouts --out sharper                     # sharper/<same names>
  lensdist predict runs/mae cutouts --out drawn --format fits --overwrite
  lensdist predict runs/find survey --hdu VIS_FLUX --out classes.csv   # of several images in a file

A classifier writes a table, a row a file: file, label, prob_<class>, logit_<class>. Models that
make images write one for each file, named as it is below its INPUT: .npy of (C, H, W) or (H, W), or
FITS with the input's header, and its coordinates on the new pixels.

Files that cannot be used are named with a reason, skipped, and listed in DEST.skipped.csv or
DEST/skipped.csv; the exit code is 1 then. So are files that a pattern matches and that are not
images; those in a folder are counted by kind. CSV holds file names and labels as they are: a
spreadsheet may take one that begins with =, +, - or @ for a formula.
.parquet needs: pip install 'lensdist[parquet]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="EXPORT", type=Path, help="a finished run, or an export")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="an image file (.npy, .npz, .fits, .fit, .fts; also .gz, .bz2, .fits.fz), a folder of "
        "them, or a quoted pattern",
    )
    parser.add_argument(
        "--out",
        metavar="DEST",
        type=Path,
        required=True,
        help="classifiers: a .csv or .parquet file; other models: a folder",
    )
    parser.add_argument(
        "--format",
        choices=("auto", "npy", "fits"),
        help="of images; auto: FITS for FITS, else .npy (default: auto)",
    )
    parser.add_argument(
        "--hdu",
        metavar="NAME|N",
        help="which image of a FITS file with several, or array of a .npz (default: the only one)",
    )
    parser.add_argument("--batch", type=int, default=64, help="images at a time (default: 64)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run(args: argparse.Namespace) -> int:
    """Predict, and say how many files were and were not.

    Raises:
        UserError: see `find` and `predict_files`; nothing was written then.
        RunError: the destination cannot be written any more, or memory ran out.
    """
    if args.batch < 1:
        raise UserError(f"--batch must be 1 or more, not {args.batch}")
    from lensdist.data.reading.folders import Passed
    from lensdist.data.reading.readers import check_choice
    from lensdist.inference.inputs import find

    passed = Passed()
    inputs = find(args.inputs, args.out, passed)  # before torch, which takes seconds to import
    check_choice(args.hdu, (one.path.name for one in inputs))

    from lensdist.export.model import load
    from lensdist.inference.predict import predict_files

    model = load(args.model, _device(args.device))
    skipped = predict_files(
        model, inputs, args.out, args.batch, args.format, args.overwrite, args.hdu
    )
    done = len(inputs) - len(skipped)
    print(f"predicted {done:,} of {len(inputs):,} files, {len(skipped):,} skipped: {args.out}")
    print("".join(f"{line}\n" for line in passed.lines()), end="")
    return EXIT_FAILED if skipped else EXIT_DONE


def _device(wanted: str | None) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no such device here; use cpu")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")
