"""Run `lensdist bench speed`: all requested measurements in turn (torch-free at import)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness.flags import parse
from benchmarks.speed.settings import RESULTS, SpeedBench, single_rate
from lensdist.utils.errors import EXIT_DONE, begun
from lensdist.utils.staging import check_ours

if TYPE_CHECKING:
    from benchmarks.speed.session import Session

ABOUT = """Train a run for a while through lensdist's own loop, and report images per second,
shares of the machine's peaks, memory and waiting. Without data.path it uses a small simulated set.
Under accelerate launch, all processes take part.

examples:
  lensdist bench speed --config configs/mae/reference.yaml --out runs/speed
  lensdist bench speed --config configs/mae/reference.yaml --out runs/speed --beside --ladder
  lensdist bench speed --config configs/common/best.yaml --out runs/speed data.path=packed
  accelerate launch --config_file accelerate_config.yaml -m lensdist bench speed \\
    --config configs/mae/reference.yaml --out runs/eight --single runs/speed/speed.json
"""


def main(argv: Sequence[str]) -> int:
    """Measure, write and print the results; `argv` begins with the command's name.

    Raises:
        UserError: the configuration, the data or an earlier result cannot be used.
        RunError: compared ways do not give the same losses.
    """
    bench = parse(SpeedBench, argv[1:], f"lensdist bench {argv[0]}", ABOUT)

    from benchmarks.speed import report
    from benchmarks.speed.session import Session

    check_ours(bench.out / RESULTS, "config", "figures", beside=(bench.out / "speed.md",))
    with begun(bench.out):
        if bench.single is not None:
            single_rate(bench.single)
        session = Session(bench)
        try:
            results = measure(session)
        finally:
            session.clean()
        if session.world.main:
            page = report.write(bench.out, results)
            print(f"wrote {page} and {bench.out / RESULTS}", flush=True)
    if session.world.size > 1:
        session.world.close(EXIT_DONE, together=True)
    return EXIT_DONE


def measure(session: Session) -> dict[str, Any]:
    """Return all results of a session."""
    from benchmarks.speed import figures, ladder

    bench = session.bench
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
    return results


def beside(session: Session) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Compare the run with its rivals: losses first, then speeds in turns."""
    if session.world.size > 1:
        return [], {"others": "they are compared only with one process"}
    worst, left_out = session.gate()
    if not worst:
        return [], left_out
    ours = session.ours()
    ways = {"lensdist": ours.way, **session.rivals(ours, shuffle=True).ways}
    rows = session.compare(ways, session.bench.windows)
    for row in rows:
        if row["way"] in worst:
            row["loss_difference"] = worst[row["way"]]
    return rows, left_out
