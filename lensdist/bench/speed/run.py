"""`lensdist bench speed`: everything that was asked for, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lensdist.bench.speed import figures, ladder, report
from lensdist.bench.speed.beside import Rivals, fill
from lensdist.bench.speed.ours import Ours
from lensdist.bench.speed.session import BARE, UNTURNED, Session
from lensdist.bench.speed.settings import SpeedBench, single_rate
from lensdist.bench.speed.turns import PARITY_STEPS, Way, compare, gate
from lensdist.engine.world import DistributedContext
from lensdist.errors import UserError

_MOST_FILES = 4096


def measure(bench: SpeedBench) -> tuple[Path, DistributedContext]:
    """Measure, and write the results.

    Returns:
        The page for people, which the main process has written, and the processes.

    Raises:
        UserError: the configuration, the data or an earlier result is not what it should be.
        RunError: what is compared does not give the same losses.
    """
    if bench.single is not None:
        single_rate(bench.single)
    session = Session(bench)
    try:
        results: dict[str, Any] = {"config": str(bench.config), "overrides": bench.overrides}
        results["figures"] = figures.measure(session)
        if bench.to is not None:
            results["to"] = figures.time_to(session, bench.to)
        if bench.ladder:
            rows, left_out = ladder.climb(session)
            results["ladder"] = {"rows": rows, "left_out": left_out}
        if bench.beside:
            rows, left_out = beside(session)
            results["beside"] = {"rows": rows, "left_out": left_out}
    finally:
        session.clean()
    page = bench.out / "speed.md"
    if session.world.main:
        page = report.write(bench.out, results)
    return page, session.world


def beside(session: Session) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The run and its rivals: losses first, then speeds in turns."""
    if session.world.size > 1:
        return [], {"others": "they are compared with one process"}
    files = session.scratch / "items"
    still = session.still(*BARE, *UNTURNED)
    gated = fill(Rivals(still, files, first_rows(still), shuffle=False))
    if not gated.ways:
        return [], gated.left_out
    torch.backends.cudnn.allow_tf32 = False
    worst = gate(gated.ways, still.way, session.device, session.rounding, parity_steps(still))
    torch.backends.cudnn.allow_tf32 = True
    ours = session.ours()
    rivals = fill(Rivals(ours, files, first_rows(ours), shuffle=True, workers=_workers(session)))
    ways: dict[str, Way] = {"lensdist": ours.way, **rivals.ways}
    rows = compare(
        ways, session.device,
        skip=session.skip, steps=session.steps, rounds=session.bench.windows,
    )  # fmt: skip
    for row in rows:
        if row["way"] in worst:
            row["loss_difference"] = worst[row["way"]]
    return rows, rivals.left_out


def parity_steps(ours: Ours) -> int:
    """Steps to compare losses over: of the first epoch, for the next one's order is another.

    Raises:
        UserError: it has fewer than two.
    """
    steps = ours.plan.steps_per_epoch
    if steps < 2:
        raise UserError(
            f"the {ours.source.size} training images make one step of train.global_batch "
            f"{ours.cfg.train.global_batch}, too few to compare losses; lower it"
        )
    return min(PARITY_STEPS, steps)


def first_rows(ours: Ours) -> list[int]:
    """Rows of the packed set in the order in which the first epoch trains on them."""
    least = PARITY_STEPS * ours.cfg.train.global_batch
    n = min(ours.source.size, max(_MOST_FILES, least))
    places = ours.source.places(0, 0, n) if hasattr(ours.source, "places") else []
    return [int(row) for row in ours.rows[places]]


def _workers(session: Session) -> int:
    """Of timm's and Lightning's loaders: a GPU is fed by several processes."""
    return 8 if session.device.type == "cuda" else 0
