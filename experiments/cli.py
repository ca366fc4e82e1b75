"""`lensdist bench few-labels`, `common`, `fit-robustness`, … (torch-free at import)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.harness.flags import parse
from experiments.settings import CommonTable, FewLabels, FitTable, SuperResolutionTable, Table
from lensdist.utils.errors import EXIT_DONE, EXIT_REQUEUE, begun

_GOES_ON = "\nTo continue an interrupted benchmark, give the same command again.\n"
FEW_LABELS = f"""Simulate, pretrain, fine-tune with few labels, and compare: from scratch, three
kinds of pretraining, and the residual from principal components.

examples:
  lensdist bench few-labels --out runs/few-labels --jobs 2        # small: about 30 minutes
  lensdist bench few-labels --out runs/full --size full           # one GPU
  lensdist bench few-labels --out runs/hard --noise euclid --labels 30,100 --seeds 5
{_GOES_ON}"""
COMMON = f"""Simulate, train both presets on the same images, and compare them on the same test
images.

examples:
  lensdist bench common --out runs/common --jobs 2                # small: about an hour
  lensdist bench common --out runs/common-full --size full        # one GPU
  lensdist bench common --out runs/try --images 300 --seeds 1
{_GOES_ON}"""
FIT = f"""Train the common task's classifier on residuals of lens fits, and try it on images outside
of its family: what it calls them, and which it flags as unlike the training images.

examples:
  lensdist bench fit-robustness --out runs/fit --images 300       # small: about half an hour
  lensdist bench fit-robustness --out runs/fit --images 300,3000
  lensdist bench fit-robustness --out runs/try --images 300 --lenses 20
{_GOES_ON}"""
SUPER_RESOLUTION = f"""Simulate pairs, pretrain, train with few and many pairs from the MAE and from
a random encoder, and compare them and everything else on the same test pairs.

examples:
  lensdist bench super-resolution --out runs/sr --jobs 2          # small: about an hour
  lensdist bench super-resolution --out runs/sr-full --size full  # one GPU
  lensdist bench super-resolution --out runs/try --pairs 100,300 --steps 200 --seeds 1
{_GOES_ON}"""
TABLES: dict[str, tuple[str, type[Table], str]] = {
    "few-labels": ("experiments.few_labels", FewLabels, FEW_LABELS),
    "common": ("experiments.common_task", CommonTable, COMMON),
    "fit-robustness": ("experiments.fit_robustness", FitTable, FIT),
    "super-resolution": ("experiments.super_resolution", SuperResolutionTable, SUPER_RESOLUTION),
}
"""Command -> the module whose `make` writes the table, its settings, its help."""


def main(argv: Sequence[str]) -> int:
    """Write the table that `argv[0]` names, and print it.

    Raises:
        UserError: the settings are wrong, or the folder holds other results.
        RunError: a run failed.
    """
    name, *words = argv
    module, schema, about = TABLES[name]
    cfg = parse(schema, words, f"lensdist bench {name}", about)

    from experiments.runs import StoppedError
    from lensdist.metrics.report import check_results

    make: Callable[[Table], Path] = import_module(module).make
    check_results(cfg.out)
    try:
        with begun(cfg.out):
            path = make(cfg)
    except StoppedError:
        return EXIT_REQUEUE
    print(f"{path.read_text()}\nwrote {path}")
    return EXIT_DONE
