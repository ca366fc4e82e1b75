"""`lensdist import`: published PyTorch weights as one of our exports (torch-free at import)."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

from lensdist.utils.errors import EXIT_DONE

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  lensdist import ensemble_model.pth --out imported/ensemble
  lensdist import densenet_epoch_14.pth --out imported/densenet --labels no,sphere,vort
  lensdist import resnet50.pth --out imported/resnet --size 64 --resize none --preprocess imagenet
  lensdist import mae.pth --out imported/mae            # then: encoder=imported/mae
  lensdist evaluate imported/ensemble --data packed

Reads what torch.save wrote, a state_dict or a whole module, without executing or importing anything
that the file names. Known networks: torchvision's DenseNets and ResNets with a single linear layer
or the recipe's head, one or several in a file; the recipe's masked autoencoder and classifier.
A whole module must be as its library builds it, or it is refused. A state_dict holds weights only:
what is assumed in place of the rest is named, and kept under "assumed" in config.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", type=Path, help="a .pth or .pt file")
    parser.add_argument("--out", metavar="DEST", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--labels",
        type=_names,
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
        metavar="N|none",
        help="pixels a side that a torchvision network was trained on (default: 224)",
    )
    parser.add_argument(
        "--bands",
        type=int,
        help="of your images (default: 1, shown three times to a network for RGB; else its own)",
    )
    parser.add_argument(
        "--preprocess",
        choices=("none", "minmax", "imagenet"),
        help="what the network was trained to see: the numbers on disk, each image scaled to 0..1, "
        "or numbers from 0 to 1 less ImageNet's mean, over its deviation (default: the recipe's)",
    )
    for name, what in (("mean", "taken off then"), ("std", "divided by then")):
        parser.add_argument(
            f"--{name}",
            type=_positive if name == "std" else _numbers,
            metavar="X[,Y,Z]",
            help=f"{what}: one number, or one a band (default: none)",
        )


def run(args: argparse.Namespace) -> int:
    """Write the export, and say what was found and what was assumed."""
    from lensdist.export.from_published import convert
    from lensdist.weights.choices import Choices

    given = {name: getattr(args, name) for name in Choices.__dataclass_fields__}
    found, description = convert(args.file, args.out, Choices(**given))
    names = getattr(found.model, "members", None)
    print(f"{'network':>12}  {' + '.join(names) if names else found.task}")
    if found.classes:
        print(f"{'labels':>12}  {', '.join(description['labels'])}")
    print(f"{'wrote':>12}  {args.out}")
    for line in description["assumed"]:
        log.info("assumed: %s", line)
    if found.note:
        log.warning(found.note)
    return EXIT_DONE


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(f"{text!r} is not made of numbers with commas between")
    return found


def _positive(text: str) -> tuple[float, ...]:
    if min(found := _numbers(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds a deviation that is not above 0")
    return found


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 8 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 8 to 4096")
    return int(text)


def _resize(text: str) -> int:
    return 0 if text == "none" else _pixels(text)
