"""`lensdist import`: convert published PyTorch weights to an export (torch-free at import)."""

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

The command reads files of torch.save, with a state_dict or a whole module, and safetensors files
(also timm's), and executes nothing in them. It supports torchvision's DenseNets and ResNets with a
single linear layer or the recipe's head, one or several in a file, and the recipe's masked
autoencoder and classifier. A whole module must be as its library builds it. A state_dict holds
weights only: the command prints what it assumes for the rest, and keeps it under "assumed" in
config.json.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="a .pth, .pt, .bin or .safetensors file"
    )
    parser.add_argument("--out", metavar="DEST", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--labels",
        type=_names,
        metavar="A,B,…",
        help="the classes in the order of the network's outputs (default: the recipe's, "
        "no,sphere,vort or axion,no_sub,cdm)",
    )
    parser.add_argument(
        "--size", type=_pixels, help="the pixels a side of your images (default: the recipe's, 150)"
    )
    parser.add_argument(
        "--resize",
        type=_resize,
        metavar="N|none",
        help="the pixels a side that a torchvision network was trained on; none: as on disk "
        "(default: 224)",
    )
    parser.add_argument(
        "--bands",
        type=int,
        help="the bands of your images (default: 1, repeated three times, for a network for RGB; "
        "else the network's)",
    )
    parser.add_argument(
        "--preprocess",
        choices=("none", "minmax", "imagenet"),
        help="the preprocessing that the network was trained with. none: the numbers on disk; "
        "minmax: each image scaled to 0..1; imagenet: numbers from 0 to 1, normalised with "
        "ImageNet's mean and standard deviation (default: the recipe's)",
    )
    for name, what in (("mean", "subtract this afterwards"), ("std", "divide by this afterwards")):
        parser.add_argument(
            f"--{name}",
            type=_positive if name == "std" else _numbers,
            metavar="X[,Y,Z]",
            help=f"{what}: one number, or one per band (default: none)",
        )


def run(args: argparse.Namespace) -> int:
    """Write the export, and print what was found and what was assumed."""
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers with commas")
    return found


def _positive(text: str) -> tuple[float, ...]:
    if min(found := _numbers(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} holds a number that is not above 0")
    return found


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 8 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 8 to 4096")
    return int(text)


def _resize(text: str) -> int:
    return 0 if text == "none" else _pixels(text)
