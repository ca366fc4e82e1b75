"""`lensdist predict`: apply a trained model to image files (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.utils.arguments import add_image_choice, add_sizes, positive
from lensdist.utils.errors import EXIT_DONE, EXIT_FAILED, UserError

EXAMPLES = """examples:
  lensdist predict runs/finetune cutouts --out classes.csv           # a folder with subfolders
  lensdist predict runs/finetune a.npy 'tiles/**/lens*.fits' --out classes.parquet
  lensdist predict runs/sr cutouts --out sharper                     # sharper/<same names>
  lensdist predict runs/mae cutouts --out drawn --format fits --overwrite
  lensdist predict runs/find survey --bands VIS --out classes.csv   # one image of each file
  lensdist predict runs/find tile.fits --at 150.12,2.21 --out lens.csv   # a place on the sky
  lensdist predict runs/find tile.fits --at candidates.csv --out classes.csv
  lensdist predict runs/finetune set.h5 --hdu images --out classes.csv   # rows set.h5/images/0, ...

A classifier writes a table with one row per image: file, label, prob_<class>, logit_<class>. Where
the preprocessing measures the images (scale: lens_fit, residual), columns with these numbers
follow; then unlike, how far the image is from the training images (1: as 99 % of the validation
images are); flag, 1 for an image that is unlike them; flagged_by, the columns that differ; and
changes. The label of a flagged image is ?, and it has no probabilities: they hold only for images
like those of training. The columns are empty where an older export cannot tell.

For a table, an image of another pixel scale or size is resampled to the scale of the training
images and cut to their size, which `changes` says. An image that cannot be is skipped; where no
scale is known, --crop, --pad and --resample say what to do, as in `lensdist pack`.

Models that make images write a file for each, with its name below its INPUT: .npy of (C, H, W)
or (H, W), or FITS with the input's header and its coordinates on the new pixels.

Files that cannot be used are skipped. They are printed with a reason, and listed in
DEST.skipped.csv or DEST/skipped.csv; the exit code is then 1. So are files that a pattern matches
and that are not images; those in a folder are counted by kind. CSV holds file names and labels
unchanged: a spreadsheet may take one that begins with =, +, - or @ for a formula.
.parquet needs: pip install 'lensdist[parquet]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("model", metavar="EXPORT", type=Path, help="a finished run, or an export")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="an image file (.npy, .npz, FITS, .png, .jpg, .tif), a file of many images (stacks in "
        ".npy or .npz, .h5, .zip), a folder of them, or a quoted pattern",
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
        help="the format of images. auto: FITS if the input is FITS, else .npy (default: auto)",
    )
    add_image_choice(parser)
    parser.add_argument(
        "--at",
        metavar="RA,DEC|FILE.csv",
        help="cut out a place on the sky, degrees (--at=-RA,Dec for a negative number), or each "
        "row's place of a .csv file with the columns ra, dec and, for several images, file",
    )
    add_sizes(parser, catalogue=False)
    parser.add_argument(
        "--pixel-scale",
        metavar="ARCSEC",
        type=positive,
        help="the pixel scale of files whose header says none",
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="the images at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="the device (default: cuda if there is one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> int:
    """Predict, and print how many files were predicted and skipped.

    Raises:
        UserError: see `find` and `predict_files`; nothing was written.
        RunError: writing failed, or memory ran out.
    """
    if args.batch < 1:
        raise UserError(f"--batch must be 1 or more, not {args.batch}")
    from lensdist.data.reading.folders import Passed
    from lensdist.data.reading.readers import Choice, check_choice
    from lensdist.data.reading.resize import asked
    from lensdist.inference.comparable import placed
    from lensdist.inference.inputs import find, together

    cut = asked(args.crop, args.pad, args.resample, args.centre, args.pixel_scale)
    if cut is not None and args.at is not None:
        raise UserError("--at cuts to the model's size: leave out --crop, --pad and --resample")
    passed = Passed()
    # Before torch, which takes seconds to import.
    inputs = find(args.inputs, args.out, passed, args.axes, args.hdu)
    inputs, by_name = together(inputs, args.bands, passed)
    check_choice(args.hdu, (one.path.name for one in inputs))
    if args.at is not None:
        inputs = placed(inputs, args.at)

    from lensdist.api import load
    from lensdist.inference.predict import predict_files, wanted_by

    model = load(args.model, _device(args.device))
    if args.at is not None and model.does.draws:
        raise UserError("--at cuts images for a table; this model writes images")
    if cut is not None and model.does.draws:
        raise UserError(f"{cut}: cut images for this model with `lensdist pack`; it writes images")
    notes: list[str] = []
    axes = None if args.axes is None else args.axes[-3:]
    choice = Choice(args.hdu, () if by_name else args.bands, args.nan, cut, axes)
    skipped = predict_files(
        model, inputs, args.out, args.batch, args.format, args.overwrite, choice,
        wanted_by(model, args.pixel_scale), notes,
    )  # fmt: skip
    done, inside = len(inputs) - len(skipped), any(one.container for one in inputs)
    what = "places" if args.at is not None else "images" if inside else "files"
    print(f"predicted {done:,} of {len(inputs):,} {what}, {len(skipped):,} skipped: {args.out}")
    print("".join(f"{line}\n" for line in (*notes, *passed.lines())), end="")
    return EXIT_FAILED if skipped else EXIT_DONE


def _device(wanted: str | None) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no such device here; use cpu")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")
