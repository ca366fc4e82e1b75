"""`lensdist evaluate`: score a trained model on a split of a packed set (torch-free at import)."""

from __future__ import annotations

import argparse
from pathlib import Path

from lensdist.errors import EXIT_DONE

EXAMPLES = """examples:
  lensdist evaluate runs/finetune --data packed              # runs/finetune/eval/test.json
  lensdist evaluate runs/finetune --data packed --split val
  lensdist evaluate runs/finetune/export --data hard --out runs/finetune/hard

Validation chose the model; look at the test split once.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="RUN_OR_EXPORT", type=Path, help="a finished run")
    parser.add_argument("--data", type=Path, required=True, help="a packed set")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument(
        "--out", type=Path, help="folder for eval/ and figures/ (default: the run, or the export)"
    )
    parser.add_argument("--batch", type=int, default=256, help="images at a time")


def run(args: argparse.Namespace) -> int:
    """Score, print the scores, and write `eval/<split>.json` and figures."""
    from lensdist.assess import evaluate_model

    scores, written = evaluate_model(args.model, args.data, args.split, args.batch, args.out)
    for name, value in scores.items():
        if isinstance(value, int | float):
            print(
                f"{name:>12}  {value:.6g}" if isinstance(value, float) else f"{name:>12}  {value}"
            )
    for path in written:
        print(f"{'wrote':>12}  {path}")
    return EXIT_DONE
