"""`lensdist bench`: benchmarks, a sub-command each (torch-free at import)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args

from lensdist.bench.settings import CommonTable, FewLabels, Size, SuperResolutionTable, Table
from lensdist.bench.speed.settings import SpeedBench
from lensdist.config.base import Strict
from lensdist.errors import EXIT_DONE, EXIT_REQUEUE, UserError, begun
from lensdist.staging import check_ours

FEW_LABELS_EXAMPLES = """examples:
  lensdist bench few-labels --out runs/few-labels --jobs 2        # small: about 30 minutes
  lensdist bench few-labels --out runs/full --size full           # one GPU
  lensdist bench few-labels --out runs/hard --noise euclid --labels 30,100 --seeds 5

An interrupted benchmark goes on where it was: give the same command again.
"""

COMMON_EXAMPLES = """examples:
  lensdist bench common --out runs/common --jobs 2                # small: about an hour
  lensdist bench common --out runs/common-full --size full        # one GPU
  lensdist bench common --out runs/try --images 300 --seeds 1

An interrupted benchmark goes on where it was: give the same command again.
"""

SUPER_RESOLUTION_EXAMPLES = """examples:
  lensdist bench super-resolution --out runs/sr --jobs 2          # small: about an hour
  lensdist bench super-resolution --out runs/sr-full --size full  # one GPU
  lensdist bench super-resolution --out runs/try --pairs 100,300 --steps 200 --seeds 1

An interrupted benchmark goes on where it was: give the same command again.
"""

SPEED_EXAMPLES = """examples:
  lensdist bench speed --config configs/mae/reference.yaml --out runs/speed
  lensdist bench speed --config configs/mae/reference.yaml --out runs/speed --beside --ladder
  lensdist bench speed --config configs/common/best.yaml --out runs/speed data.path=packed
  accelerate launch --config_file accelerate_config.yaml -m lensdist bench speed \\
    --config configs/mae/reference.yaml --out runs/eight --single runs/speed/speed.json
"""

T = TypeVar("T", bound=Strict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line: a sub-command for each benchmark."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    few = benchmarks.add_parser(
        "few-labels",
        help="what pretraining is worth when labels are few",
        description="Simulate, pretrain, fine-tune with few labels, and compare: from scratch, "
        "three kinds of pretraining, and the residual from principal components.",
        epilog=FEW_LABELS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    few.set_defaults(benchmark_run=_few_labels)
    d = FewLabels.model_fields
    _add_shared(few, "5,000, full 30,000", "fine-tuning seeds, each with its own labelled images")
    few.add_argument(
        "--labels",
        type=_numbers,
        default=d["labels"].default,
        metavar="N,N,…",
        help="labelled images per class (default: 30,100,300,1000)",
    )
    few.add_argument(
        "--steps", type=int, help="of each fine-tuning (default: small 200, full 2,000)"
    )
    few.add_argument(
        "--pretrain-steps", type=int, help="of each pretraining (default: small 2,500, full 30,000)"
    )
    few.add_argument(
        "--noise",
        type=_words,
        default=d["noise"].default,
        metavar="none,euclid",
        help="detectors to simulate (default: none,euclid)",
    )
    _add_common(benchmarks)
    _add_super_resolution(benchmarks)
    _add_speed(benchmarks)


def _add_common(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    common = benchmarks.add_parser(
        "common",
        help="the common task: `best` beside `reference`",
        description="Simulate, train both presets on the same images, and compare them on the "
        "same test images.",
        epilog=COMMON_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.set_defaults(benchmark_run=_common)
    _add_shared(common, "2,000, full 12,500", "of training images, order and initial weights")
    common.add_argument(
        "--images",
        type=_numbers,
        metavar="N,N,…",
        help="training images of all classes (default: small 300,3000; full 300,3000,30000)",
    )


def _add_super_resolution(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    resolve = benchmarks.add_parser(
        "super-resolution",
        help="super-resolution: what the MAE adds, beside interpolation, a linear filter and EDSR",
        description="Simulate pairs, pretrain, train with few and many pairs from the MAE and from "
        "a random encoder, and compare them and everything else on the same test pairs.",
        epilog=SUPER_RESOLUTION_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    resolve.set_defaults(benchmark_run=_super_resolution)
    _add_shared(
        resolve,
        "4,200, full 4,200",
        "of pairs, order and initial weights, half as many for the most pairs",
        SuperResolutionTable,
    )
    resolve.add_argument(
        "--pairs",
        type=_numbers,
        metavar="N,N,…",
        help="training pairs (default: 100,1000,10000)",
    )
    resolve.add_argument(
        "--steps",
        type=int,
        help="of runs with the most pairs; with a tenth of them half as many, and so on (default: "
        "small 2,000, full 40,000)",
    )


def _add_speed(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    speed = benchmarks.add_parser(
        "speed",
        help="how fast a run trains here, and beside what else one would use",
        description="Train a run for a while through lensdist's own loop: images a second, the "
        "shares of what the machine could do, memory, waiting. Without data.path on a small "
        "simulated set. Under accelerate launch, all processes take part.",
        epilog=SPEED_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    speed.set_defaults(benchmark_run=_speed)
    speed.add_argument("--config", type=Path, required=True, help="configs/<task>/<preset>.yaml")
    speed.add_argument("--out", type=Path, required=True, help="folder for everything")
    for name, field in SpeedBench.model_fields.items():
        flag, about = f"--{name.replace('_', '-')}", field.description
        if field.annotation is bool:
            speed.add_argument(flag, action="store_true", help=about)
    for flag, kind in (("--windows", int), ("--window-steps", int), ("--to", float)):
        about = SpeedBench.model_fields[flag[2:].replace("-", "_")].description
        speed.add_argument(flag, type=kind, metavar="N" if kind is int else "SCORE", help=about)
    about = SpeedBench.model_fields["single"].description
    speed.add_argument("--single", type=Path, metavar="FILE", help=about)
    speed.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the run")


def _add_shared(
    parser: argparse.ArgumentParser, simulated: str, seeds: str, table: type[Table] = Table
) -> None:
    """What every benchmark may be told: the settings of `Table`."""
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument(
        "--seeds",
        type=int,
        default=table.model_fields["seeds"].default,
        help=f"{seeds} (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        choices=get_args(Size),
        default="small",
        help="presets: small, for CPUs; full, one GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--n-per-class", type=int, help=f"simulated images (default: small {simulated})"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument(
        "--configs", type=Path, help="folder of presets (default: the checkout's configs/)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all runs")


def run(args: argparse.Namespace) -> int:
    """Run a benchmark."""
    chosen: Callable[[argparse.Namespace], int] = args.benchmark_run
    return chosen(args)


def _few_labels(args: argparse.Namespace) -> int:
    cfg = _settings(FewLabels, args)

    from lensdist.bench.few_labels import few_labels

    return _table(cfg.out, lambda: few_labels(cfg))


def _common(args: argparse.Namespace) -> int:
    cfg = _settings(CommonTable, args)

    from lensdist.bench.common import common_table

    return _table(cfg.out, lambda: common_table(cfg))


def _super_resolution(args: argparse.Namespace) -> int:
    cfg = _settings(SuperResolutionTable, args)

    from lensdist.bench.super_resolution import super_resolution_table

    return _table(cfg.out, lambda: super_resolution_table(cfg))


def _speed(args: argparse.Namespace) -> int:
    cfg = _settings(SpeedBench, args)

    from lensdist.bench.speed.run import measure

    check_ours(cfg.out / "speed.json", "config", "figures", beside=(cfg.out / "speed.md",))
    with begun(cfg.out):
        page, world = measure(cfg)
    if world.main:
        print(f"{page.read_text()}\nwrote {page} and {page.with_suffix('.json')}", flush=True)
    if world.size > 1:
        world.close(EXIT_DONE, together=True)
    return EXIT_DONE


def _settings(schema: type[T], args: argparse.Namespace) -> T:
    from pydantic import ValidationError

    names = set(schema.model_fields)
    try:
        return schema(**{k: v for k, v in vars(args).items() if k in names and v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        flag = f"--{first['loc'][0]}: ".replace("_", "-") if first["loc"] else ""
        raise UserError(flag + first["msg"].removeprefix("Value error, ")) from error


def _table(out: Path, benchmark: Callable[[], Path]) -> int:
    from lensdist.bench.runs import StoppedError
    from lensdist.evaluate.report import check_results

    check_results(out)
    try:
        with begun(out):
            path = benchmark()
    except StoppedError:
        return EXIT_REQUEUE
    print(path.read_text())
    print(f"wrote {path}")
    return EXIT_DONE


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
