"""Train one phase: on a laptop, one GPU, or every process that a launcher starts.

    python -m lensdist.train --config configs/mae/debug.yaml run.dir=runs/try
    accelerate launch --config_file accelerate_config.yaml -m lensdist.train --config …
    srun -n 4 python -m lensdist.train --config …

Exit codes: 0 done; 1 failure; 2 bad configuration or input, nothing was started; 75 the run
stopped on request and was saved: run the same command again.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take a second
    from lensdist.utils import signals

    signals.begin(trains=True)

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from lensdist.config.schema import BaseRun
from lensdist.distributed.micro_batches import check_shares
from lensdist.phases import completed
from lensdist.runs.accelerate_launch import agreed, from_environment
from lensdist.runs.asked import as_begun, is_as_asked
from lensdist.runs.fit import load_fitted
from lensdist.utils import signals
from lensdist.utils.arguments import Parser, add_configuration, parse
from lensdist.utils.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, UserError, set_rank
from lensdist.utils.launched import rank_of
from lensdist.utils.outcome import conclude
from lensdist.utils.started import adopt

if TYPE_CHECKING:
    from lensdist.distributed.context import DistributedContext

log = logging.getLogger("lensdist.train")  # `python -m` names this module `__main__`

EXAMPLES = """examples:
  lensdist train mae/debug
  lensdist train finetune/best data.path=packed encoder=runs/mae seed=1
  lensdist train --config mine.yaml
  accelerate launch --config_file accelerate_config.yaml -m lensdist.train --config …
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m lensdist.train` and return its exit code."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("lensdist train", epilog=EXAMPLES, formatter_class=form)
    add_arguments(parser)
    return conclude(lambda: launch(parse(parser, argv)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_configuration(parser)
    # DeepSpeed's launcher gives the number twice: here, and as LOCAL_RANK.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto (default): continue from the newest undamaged checkpoint, if any; never: refuse "
        "if there are any; PATH: start from that checkpoint, or from the newest of that run, if "
        "this run has none yet",
    )


def launch(args: argparse.Namespace) -> int:
    """Train one phase and return the exit code; with several processes, exit the process.

    Raises:
        UserError: bad configuration or input; nothing was started.
        RunError: training had begun and cannot continue.
        DeviceError: this node did not pass its check.
    """
    signals.begin(trains=True)
    launcher = adopt(os.environ)
    set_rank(rank_of(os.environ), int(os.environ.get("WORLD_SIZE") or 1))
    cfg = load_fitted(args.config, args.words)
    asked = from_environment(os.environ)
    cfg = as_begun(agreed(cfg, asked))
    done = _already_done(cfg, args.resume)
    if done:
        log.info(done)
        return EXIT_DONE
    if asked.unread:
        unread = ", ".join(asked.unread)
        log.info("%s: not used, without effect on results: %s", asked.whose, unread)
    check_shares(cfg.train, cfg.fewest, asked.processes or 1)
    from lensdist.runs.phase import context_of, run

    world = context_of(cfg)

    def work() -> int:
        if launcher:
            _check_commands(world, launcher, args)
        return run(cfg, args.resume, world, lambda: _already_done(cfg, args.resume))

    if world.size > 1:
        _leave_with_the_others(world, work)
    return work()


def _check_commands(world: DistributedContext, launcher: str, args: argparse.Namespace) -> None:
    """Check that all processes were given the same command.

    Raises:
        UserError: they were not; srun and mpirun also start commands that have nothing in common.
    """
    typed = (str(args.config), args.words, args.resume)
    if world.any(world.from_main(typed) != typed):
        raise UserError(
            f"{launcher} started {world.size} processes with different settings, and they would "
            "train one run; give all the same, or set WORLD_SIZE=1 to train a separate run in each"
        )


def _leave_with_the_others(world: DistributedContext, work: Callable[[], int]) -> NoReturn:
    """Write the exit report before destroying the process group; the launcher may kill us then."""
    together = False
    try:
        code = conclude(work)
        together = code in (EXIT_DONE, EXIT_REQUEUE)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else EXIT_FAILED
    except BaseException:
        # Python's exit with a live process group may abort, or wait for the other processes.
        traceback.print_exc()
        code = EXIT_FAILED
    world.close(code, together=together)


def _already_done(cfg: BaseRun, resume: str) -> str | None:
    record = completed(cfg.run.dir)
    if record is None:
        return None
    if resume != "auto":
        raise UserError(f"{cfg.run.dir} was completed already; give another run.dir")
    return is_as_asked(cfg, record)


class _Callable(ModuleType):
    """This module, which `lensdist.train(…)` calls: `lensdist.api.train`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("lensdist.api").train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
