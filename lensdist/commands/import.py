"""`lensdist import`: published PyTorch weights as one of our exports (torch-free at import)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lensdist.errors import EXIT_DONE

EXAMPLES = """examples:
  lensdist import ensemble_model.pth --out imported/ensemble
  lensdist import densenet_epoch_14.pth --out imported/densenet --labels no,sphere,vort
  lensdist import resnet50.pth --out imported/resnet --size 64 --resize none
  lensdist import mae.pth --out imported/mae            # then: encoder=imported/mae
  lensdist evaluate imported/ensemble --data packed

Reads what torch.save wrote, a state_dict or a whole module, without executing or importing anything
that the file names. Known networks: torchvision's DenseNets and ResNets with a single linear layer
or the recipe's head, one or several in a file; the recipe's masked autoencoder and classifier.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", type=Path, help="a .pth or .pt file")
    parser.add_argument("--out", metavar="DEST", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--labels",
        metavar="A,B,…",
        help="classes in the order of the network's outputs (default: the recipe's, "
        "no,sphere,vort or axion,no_sub,cdm)",
    )
    parser.add_argument(
        "--size", type=_pixels, help="pixels a side of your images (default: the recipe's, 150)"
    )
    parser.add_argument(
        "--resize",
        type=_resize,
        default=224,
        metavar="N|none",
        help="pixels a side that a torchvision network was trained on (default: 224)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the export, and say what was found."""
    from lensdist.weights.convert import convert

    labels = None if args.labels is None else tuple(s.strip() for s in args.labels.split(","))
    found = convert(args.file, args.out, labels, args.size, args.resize)
    names = getattr(found.model, "members", None)
    print(f"{'network':>12}  {' + '.join(names) if names else found.task}")
    if found.classes:
        print(f"{'labels':>12}  {', '.join(labels or found.labels)}")
    print(f"{'wrote':>12}  {args.out}")
    if found.note:
        print(f"warning: {found.note}", file=sys.stderr)
    return EXIT_DONE


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 8 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 8 to 4096")
    return int(text)


def _resize(text: str) -> int | None:
    return None if text == "none" else _pixels(text)
