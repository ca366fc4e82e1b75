"""`lensdist pack`: convert a folder of image files to a packed set (torch-free)."""

from __future__ import annotations

import argparse
import time

from lensdist.utils.arguments import add_image_choice, add_sizes, positive

EXAMPLES = """examples:
  lensdist pack dataset/ packed/common                  # {train,val}/{no,sphere,vort}/*.npy
  lensdist pack Dataset/ packed/vi_a --pixel-scale 0.101 --psf-fwhm 0.16 --zero-point 24
  lensdist pack Dataset/ packed/vi_b                    # {HR,LR}/sample<N>.npy
  lensdist pack stamps/ packed/survey --layout images   # FITS stamps without labels
  lensdist pack euclid/ packed/vis --bands VIS          # one of several images in each file
  lensdist pack sled/ packed/sled --bands g,r,i --group-by folder   # CLASS/SYSTEM/*_{g,r,i}.fits
  lensdist pack stamps/ packed/stamps --labels labels.csv --columns name=objid,label=kind
  lensdist pack set.h5 packed/set --hdu images          # one file of many images
  lensdist pack jwst/ packed/jwst --resample 0.1 --crop 64 --pad 64 --centre brightest
  lensdist pack mine/ packed/mine --dry-run             # only print what would be packed

DEST/report.json lists every file that was left out, with the reason; DEST.report.json does so if
no set could be made.
"""


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "src",
        help="the folder of .npy, .npz, FITS, HDF5, .png, .jpg or .tif files, or one .npy, .npz, "
        ".h5 or .zip file with many images",
    )
    parser.add_argument("dest", help="the folder to make; it must not exist, or be empty")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the splits (default: 0)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="the type of pixels; float16 halves the set, but only for images scaled to 0..1 "
        "(default: float32)",
    )
    parser.add_argument(
        "--max-bad",
        type=_fraction,
        default=0.01,
        help="the fraction of bad files that is tolerated (default: 0.01)",
    )
    parser.add_argument(
        "--layout",
        choices=("auto", "classes", "pairs", "images"),
        default="auto",
        help="the layout to take SRC for: class folders, HR/LR pairs, or images without labels "
        "(default: auto, which finds out)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="read all files, print what would be packed, and write no set",
    )
    parser.add_argument(
        "--splits",
        metavar="none|NAME=SPLIT,...",
        help="the folders that are the train, val and test split, or none, to draw all splits "
        "(default: what names of folders or files say)",
    )
    parser.add_argument(
        "--group-by",
        metavar="folder|column[:NAME]|REGEX|sky[:ARCSEC]",
        help="what images of one system share, so that they come into one split: a folder below "
        "the class, a column of the table that --labels names, a part of their path (the "
        "expression's first group), or the place on the sky",
    )
    add_image_choice(parser)
    parser.add_argument(
        "--labels",
        metavar="A,B,...|FILE.csv",
        action="append",
        default=[],
        help="the classes in label order (default: the order of known sets, or sorted), or a table "
        "of what is known of the images: label, split, group, RA and Dec (degrees), redshift; may "
        "be given twice, once for each",
    )
    parser.add_argument(
        "--columns",
        metavar="MEANING=NAME,...",
        help="the columns of the table: name (of the image), label, split, group, ra, dec, "
        "redshift (default: found by what they are called)",
    )
    add_sizes(parser, catalogue=True)
    parser.add_argument(
        "--pixel-scale",
        type=positive,
        help="the pixel scale, arcsec (default: what FITS headers say)",
    )
    parser.add_argument(
        "--psf-fwhm", type=positive, help="the full width at half maximum of the PSF, arcsec"
    )
    parser.add_argument(
        "--zero-point",
        type=float,
        help="the magnitude of one image unit (default: what FITS headers say)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="the number of processes that read (default: one per core, up to 4)",
    )


def run(args: argparse.Namespace) -> int:
    """Pack a folder, and print a summary.

    Raises:
        UserError, RunError: see `lensdist.data.packing.pack.pack`.
    """
    import os
    from pathlib import Path

    from lensdist.data.manifest import REPORT
    from lensdist.data.packing.pack import PackOptions, pack, survey
    from lensdist.data.packing.report import counts_table
    from lensdist.data.packing.split_names import parse
    from lensdist.data.packing.table import parse_columns
    from lensdist.data.packing.writer import Instrument
    from lensdist.data.reading.readers import Choice
    from lensdist.data.reading.resize import asked
    from lensdist.utils.errors import EXIT_DONE, UserError
    from lensdist.utils.streams import counter

    started = time.monotonic()
    tables = [word for word in args.labels if word.lower().endswith((".csv", ".tsv", ".txt"))]
    names = [word for word in args.labels if word not in tables]
    if len(tables) > 1 or len(names) > 1:
        raise UserError("give --labels once for the classes, and once for a table, at most")
    cut = asked(args.crop, args.pad, args.resample, args.centre, args.pixel_scale)
    axes = args.axes
    options = PackOptions(
        seed=args.seed,
        dtype=args.dtype,
        max_bad=args.max_bad,
        layout=args.layout,
        labels=names[0].split(",") if names else None,
        table=Path(tables[0]) if tables else None,
        columns=parse_columns(args.columns),
        axes=axes,
        splits=parse(args.splits),
        group_by=args.group_by,
        choice=Choice(args.hdu, args.bands, args.nan, cut, None if axes is None else axes[-3:]),
        instrument=Instrument(args.resample or args.pixel_scale, args.psf_fwhm, args.zero_point),
    )
    jobs = args.jobs or min(4, os.cpu_count() or 1)
    progress = counter()
    if args.dry_run:
        from lensdist.data.packing.preview import preview

        found = survey(args.src, args.dest, options, jobs=jobs, progress=progress)
        print("\n".join(preview(found, options.seed)))
        return EXIT_DONE
    manifest, report = pack(args.src, args.dest, options, jobs=jobs, progress=progress)
    shape = "x".join(map(str, manifest.image_shape))
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    print(f"{args.dest}: {manifest.count} images of {shape} {manifest.dtype}, {size:,.1f} MB")
    print("\n".join((*counts_table(manifest.counts), *report.lines(Path(args.dest) / REPORT))))
    seconds = time.monotonic() - started
    print(f"{seconds:.1f} s, {manifest.count / seconds:,.0f} images/s")
    return EXIT_DONE
