"""`lensdist estimate`: estimate memory and time of a run on a cluster (torch-free)."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensdist.config import load, raw
from lensdist.data.epoch_size import images_per_epoch
from lensdist.runs.fit import load_fitted
from lensdist.utils.arguments import add_configuration
from lensdist.utils.errors import EXIT_DONE, UserError
from lensdist.utils.files import to_json, write_atomic
from lensdist.utils.staging import check_ours

if TYPE_CHECKING:
    from lensdist.estimate.hardware import Shape

EXAMPLES = """examples:
  lensdist estimate --config configs/mae/reference.yaml                    # parameters, memory
  lensdist estimate --config configs/mae/best.yaml cluster.hardware.gpu=H100 cluster.gpus_per_node=8
  lensdist estimate --config configs/mae/best.yaml --cluster configs/clusters/slurm-8gpu.yaml \\
      --gpus 1,8,64 --json estimate.json train.global_batch=4096 engine=fsdp

The network is traced once on torch's meta device, and the result is cached; nothing trains.
The cluster's `hardware:` describes the GPUs and the links between them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_configuration(parser, "; cluster.key=value changes the cluster's")
    parser.add_argument(
        "--cluster", type=Path, help="a cluster's file, such as those of configs/clusters/"
    )
    parser.add_argument(
        "--gpus", help="the numbers of GPUs, such as 1,8,64 (default: powers of two up to 1024)"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="also write the estimate to a JSON file"
    )


def run(args: argparse.Namespace) -> int:
    """Print the estimate.

    Raises:
        UserError: the configuration, the cluster or a number of GPUs is wrong, or the network
            cannot be traced.
    """
    from lensdist.estimate.report import as_json, estimate, shown
    from lensdist.estimate.scaling import usual_counts

    of_cluster = [word for word in args.words if word.startswith("cluster.")]
    words = [word for word in args.words if word not in of_cluster]
    cfg = load_fitted(args.config, words)
    if args.json is not None:
        check_ours(args.json, "network", "rows", flag="--json")
    cluster = _cluster(args.cluster, [word.removeprefix("cluster.") for word in of_cluster])
    counts = _counts(args.gpus) or usual_counts(cluster.per_node)
    gpus = cluster.per_node * cluster.fewest
    hardware = cluster.hardware
    found = estimate(
        cfg, hardware, counts, gpus, cluster.per_node, images_per_epoch(cfg.data, cfg.run.dir)
    )
    print(shown(found, cfg, hardware))
    if args.json is not None:
        print(f"\nwrote {write_atomic(args.json, to_json(as_json(found, cfg, hardware)))}")
    return EXIT_DONE


def _counts(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = text.split(",")
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise UserError(f"--gpus {text}: {wrong[0]!r} is not a number of GPUs; give 1 or more each")
    return [int(part) for part in parts]


def _cluster(file: Path | None, words: list[str]) -> Shape:
    """Read the parts of a cluster's file that an estimate needs; the launcher reads the others."""
    from pydantic import create_model

    from lensdist.estimate.hardware import Shape

    own = Shape.model_fields
    others = [] if file is None else [key for key in raw(file)[0] if key not in own]
    # `load` reports a misspelt key of ours.
    fields: dict[str, Any] = {
        key: (Any, None) for key in others if not get_close_matches(key, own, cutoff=0.8)
    }
    return load(file, words, schema=create_model("Cluster", __base__=Shape, **fields))
