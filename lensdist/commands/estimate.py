"""`lensdist estimate`: a run on a cluster, on paper (torch-free)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.data.epoch_size import images_per_epoch
from lensdist.errors import EXIT_DONE, UserError
from lensdist.files import to_json, write_atomic
from lensdist.staging import check_ours

if TYPE_CHECKING:
    from slurm.config.cluster import Cluster

EXAMPLES = """examples:
  lensdist estimate --config configs/mae/reference.yaml                    # parameters, memory
  lensdist estimate --config configs/mae/best.yaml cluster.hardware.gpu=H100 cluster.gpus_per_node=8
  lensdist estimate --config configs/mae/best.yaml --cluster configs/clusters/slurm-8gpu.yaml \\
      --gpus 1,8,64 --json estimate.json train.global_batch=4096 engine=fsdp

Nothing is run. What a GPU and a network can do is the cluster's `hardware:`.
"""
_ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, required=True, help="of the run")
    parser.add_argument("--cluster", type=Path, help="as configs/clusters/*.yaml")
    parser.add_argument(
        "--gpus", help="numbers of GPUs, such as 1,8,64 (default: powers of two up to 1024)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write all of it")
    parser.add_argument(
        "words", metavar="key=value", nargs="*", help="settings; cluster.key=value: the cluster's"
    )


def run(args: argparse.Namespace) -> int:
    """Print the estimate.

    Raises:
        UserError: the configuration, the cluster or a number of GPUs is wrong, or the network is
            not known.
    """
    from lensdist.estimate.report import as_json, estimate, shown
    from lensdist.estimate.scaling import usual_counts

    of_cluster = [word for word in args.words if word.startswith("cluster.")]
    words = [word for word in args.words if word not in of_cluster]
    cfg = load(args.config, words, schema=schema_of)
    if args.json is not None:
        check_ours(args.json, "network", "rows", flag="--json")
    cluster = _cluster(args.cluster, of_cluster)
    per_node = 1 if cluster is None else cluster.per_node
    hardware = None if cluster is None else cluster.hardware
    counts = _counts(args.gpus) or usual_counts(per_node)
    gpus = per_node * (1 if cluster is None else cluster.fewest)
    samples = images_per_epoch(cfg.data, cfg.run.dir)
    found = estimate(cfg, hardware, counts, gpus, per_node, samples)
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
        raise UserError(f"--gpus {text}: {wrong[0]!r} is no number of GPUs; give 1 or more each")
    return [int(part) for part in parts]


def _cluster(file: Path | None, words: list[str]) -> Cluster | None:
    """None where nothing was said of one."""
    if file is None and not words:
        return None
    if not _has_launcher():
        raise UserError(
            "--cluster: files of clusters are read by the launcher in slurm/, which is not "
            "installed; use lensdist from a clone of its repository"
        )
    from slurm.config.cluster import Cluster

    given = [word.removeprefix("cluster.") for word in words]
    return load(file, given, schema=Cluster)


def _has_launcher() -> bool:
    """Whether `slurm` is there, which is used from a clone: it is found beside this package."""
    if not (_ROOT / "slurm" / "submit.py").is_file():
        return False
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))
    return True
