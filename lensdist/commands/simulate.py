"""`lensdist simulate`: simulate strong lenses, as files or as a packed set (torch-free)."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from lensdist.sim.config import FamilyName, LensLight, SimConfig
from lensdist.utils.errors import EXIT_DONE, UserError, begun
from lensdist.utils.streams import counter

EXAMPLES = """examples:
  lensdist simulate --family model_ii --n-per-class 1000 data/model_ii
  lensdist simulate --family model_ii --n-per-class 30000 --noise euclid --source-mag 22 data/hard
  lensdist simulate --family common --n-per-class 500 --layout raw --params data/common
  lensdist simulate --family sr --n-per-class 1000 --seed 7 --truth data/pairs
"""

# Settings whose flags have another name, or a value of another form.
_OWN_FLAGS = ("family", "classes", "lens_light")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line, with a flag for each setting of `SimConfig`."""
    parser.add_argument(
        "dest", metavar="DEST", type=Path, help="the folder to make; it must not exist, or be empty"
    )
    parser.add_argument(
        "--family", required=True, choices=get_args(FamilyName), help="the family of images"
    )
    parser.add_argument(
        "--n-per-class",
        required=True,
        type=int,
        metavar="N",
        help="the number of images of each class",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the seed: the same seed gives the same images (default: %(default)s)",
    )
    parser.add_argument(
        "--layout",
        choices=("packed", "raw"),
        default="packed",
        help="the layout. packed: arrays to train on, with splits; raw: one .npy file per image, "
        "in the folders of the public sets (default: %(default)s)",
    )
    parser.add_argument(
        "--params",
        action="store_true",
        help="with --layout raw, also write the parameters of every lens into DEST.params.npz",
    )
    parser.add_argument(
        "--truth",
        action="store_true",
        help="with --family sr --layout packed, also keep each target without its noise, to score "
        "against",
    )
    parser.add_argument(
        "--device", default="cpu", help="the device: cpu or cuda (default: %(default)s)"
    )
    images = parser.add_argument_group("settings of the simulator")
    images.add_argument(
        "--classes",
        metavar="A,B",
        help="the classes to draw, separated by commas (default: all of the family's)",
    )
    for name, field in SimConfig.model_fields.items():
        if name in _OWN_FLAGS:
            continue
        text = (field.description or "").rstrip(".").replace("null: ", "Default: ")
        default = "" if field.default is None else f" (default: {field.default})"
        images.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            metavar=name.rsplit("_", 1)[-1].upper(),
            help=f"{text[0].lower()}{text[1:]}{default}".replace("%", "%%"),
        )
    images.add_argument(
        "--lens-light-mag",
        metavar="MAG",
        help="add light of the lensing galaxy with this total magnitude (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Simulate a set.

    Raises:
        UserError: a value is out of range, or the destination holds something.
    """
    cfg = _config(args)
    if not 1 <= args.n_per_class <= 10_000_000:
        raise UserError(f"--n-per-class must be 1 to 10,000,000, not {args.n_per_class}")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 - 1, not {args.seed}")
    if args.params and args.layout != "raw":
        raise UserError("--params needs --layout raw: a packed set holds images only")
    if args.truth and (args.family != "sr" or args.layout != "packed"):
        raise UserError("--truth needs --family sr --layout packed")
    _check_device(args.device)

    from lensdist.data.packing.simulated import write_packed, write_raw

    progress = partial(counter(), "simulated")
    common = (args.dest, cfg, args.n_per_class, args.seed, args.device, progress)
    with begun(args.dest):
        if args.layout == "raw":
            write_raw(*common, params=args.params)
        else:
            write_packed(*common, truth=args.truth)
    print(f"simulated {args.n_per_class * len(cfg.labels):,} images into {args.dest}")
    return EXIT_DONE


def _config(args: argparse.Namespace) -> SimConfig:
    values: dict[str, Any] = {"family": args.family}
    for name in SimConfig.model_fields:
        if name not in _OWN_FLAGS and getattr(args, name) is not None:
            values[name] = getattr(args, name)
    try:
        if args.classes is not None:
            values["classes"] = tuple(args.classes.split(","))
        if args.lens_light_mag is not None:
            values["lens_light"] = LensLight(magnitude=args.lens_light_mag)
        return SimConfig(**values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    """Return the first error as a sentence that names the flag."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = {"magnitude": "lens_light_mag"}.get(str(first["loc"][0]), str(first["loc"][0]))
    return f"--{name.replace('_', '-')} {first['input']}: {message[0].lower()}{message[1:]}"


def _check_device(device: str) -> None:
    import torch

    try:
        usable = torch.device(device).type == "cpu" or torch.cuda.is_available()
    except RuntimeError:
        raise UserError(f"--device {device} is not a device; use cpu or cuda") from None
    if not usable:
        raise UserError(f"--device {device}: this machine has no such device; use cpu")
