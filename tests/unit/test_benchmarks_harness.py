"""The harness of all benchmarks: stopwatch, turns, command lines and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.harness import watch as module
from benchmarks.harness.flags import parse
from benchmarks.harness.report import options, reporting
from benchmarks.harness.turns import Tolerance, Way, compare, over, spread, take_turns
from benchmarks.harness.watch import Watch
from benchmarks.speed.settings import SpeedBench
from experiments.settings import FewLabels
from lensdist.cli import main
from lensdist.commands import bench
from lensdist.utils.errors import RunError, UserError

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2  # somebody else has half of the core


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(watch: Watch, clock: Clock, calls: int = 1) -> int:
    """A loop whose n-th step takes n seconds, a quarter of each for its batches; steps begun."""
    steps = 0
    while steps <= watch.last:
        steps += 1
        for _ in range(calls):
            with watch.waiting():
                clock.now += 0.25 * steps / calls
            watch.begin()
            watch.losses.append(torch.tensor(float(steps)))
            clock.now += 0.75 * steps / calls
    return steps


def test_windows_hold_as_many_batches_as_steps(clock: Clock) -> None:
    watch = Watch(skip=2, steps=3, device=CPU, windows=2)
    assert run(watch, clock) == 9
    # From the third batch's being there: 3/4 of step 3, steps 4 and 5, the batch of step 6.
    assert watch.seconds_each == pytest.approx([0.75 * 3 + 4 + 5 + 0.25 * 6, 0.75 * 6 + 15 + 2.25])
    assert watch.waited_each == pytest.approx([0.25 * (4 + 5 + 6), 0.25 * (7 + 8 + 9)])
    assert watch.seconds == pytest.approx(sum(watch.seconds_each))
    assert sum(watch.cpu_each) == pytest.approx(watch.seconds / 2)


def test_micro_batches_make_a_step(clock: Clock) -> None:
    watch = Watch(skip=1, steps=2, device=CPU, windows=1, calls=4)
    run(watch, clock, calls=4)
    batch = 0.25 * 0.25  # of a step's time: the first of four has been fetched when it begins
    assert watch.seconds == pytest.approx((1 - batch) * 2 + 3 + batch * 4)
    assert watch.step_losses().tolist() == [1, 2, 3, 4]


def test_a_loader_is_gone_through_again_until_there_was_enough(clock: Clock) -> None:
    watch = Watch(skip=1, steps=3, device=CPU)
    assert list(watch.over("ab")) == list("abab")
    assert len(watch.seconds_each) == 1


def test_turns_alternate_in_their_order() -> None:
    order: list[str] = []
    found = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("ba") + list("ab") + list("ba")
    assert {name: len(each) for name, each in found.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_within_a_round(clock: Clock) -> None:
    busy = iter([1, 1, 10, 10, 2, 2])  # how slow the machine is, turn by turn

    def way(seconds: float) -> Way:
        def turn(watch: Watch) -> None:
            slow = next(busy)
            for _ in watch.over([0]):
                clock.now += seconds * slow

        return Way(turn, batch=8)

    ways = {"ours": way(1.0), "theirs": way(3.0)}
    ours, theirs = compare(ways, CPU, skip=1, steps=2, rounds=3)
    assert ours["images_per_s_each"] == pytest.approx([8, 0.8, 4])
    assert ours["images_per_s"] == pytest.approx(4)
    assert theirs["first_over_each"] == pytest.approx([3, 3, 3])
    assert ours["first_over_spread"] == (1, 1)
    assert theirs["cpu_first_over"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("losses", "passes"),
    [
        ([1.0, 1.0005], True),
        ([1.0, 1.002], False),
        ([1.0002, 1.0], False),
        ([1, float("nan")], False),
    ],
)
def test_losses_may_differ_by_rounding_alone(losses: list[float], passes: bool) -> None:
    tolerance, base = Tolerance(1e-4, 1e-3), torch.ones(2)
    if passes:
        assert tolerance.refuse("x", torch.tensor(losses), base) == pytest.approx(5e-4, rel=1e-2)
    else:
        with pytest.raises(RunError, match="x: its first losses"):
            tolerance.refuse("x", torch.tensor(losses), base)


def test_a_report_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    args = options("What.", rounds=3).parse_args([f"--out={out}"])
    with reporting(args, "Title", CPU, extra=1) as (report, scratch):
        assert scratch.is_dir()
        report.table([{"way": "x", **spread("s", [1.0, 3.0, 2.0]), **over("r", [4.0], [2.0])}])
        report.gated({"x": 1e-6})
        report.reasons({"y": "it is not there"})
    assert not scratch.exists()
    facts = json.loads(out.read_text())
    assert (facts["rounds"], facts["extra"], len(facts["load"])) == (3, 1, 2)
    assert facts["rows"][0]["s_each"] == [1, 3, 2]
    assert facts["loss_differences"] == {"x": 1e-6}
    page = out.with_suffix(".md").read_text()
    for said in ("# Title", "2.0 [1.0, 3.0]", "y was left out: it is not there", facts["device"]):
        assert said in page
    assert capsys.readouterr().out.split() == page.split()


def test_settings_become_flags(capsys: pytest.CaptureFixture[str]) -> None:
    few = parse(FewLabels, ["--out=x", "--labels", "5,10", "--seeds=2", "a.b=1", "c=2"], "p", "")
    assert (few.out, few.labels, few.seeds, few.noise) == (
        Path("x"), (5, 10), 2, FewLabels.model_fields["noise"].default,
    )  # fmt: skip
    assert few.overrides == ("a.b=1", "c=2")
    speed = parse(SpeedBench, ["--out=x", "--config=y", "--beside", "--to", "0"], "p", "")
    assert (speed.to, speed.beside, speed.ladder) == (0.0, True, False)
    with pytest.raises(UserError, match="--window-steps"):
        parse(SpeedBench, ["--out=x", "--config=y", "--window-steps=0"], "p", "")
    with pytest.raises(SystemExit):
        parse(FewLabels, ["--help"], "p", "")
    told = capsys.readouterr().out
    flags = {f"--{name.replace('_', '-')}" for name in FewLabels.model_fields}
    assert {flag for flag in flags if flag not in told} == {"--overrides"}
    assert "30,100,300,1000" in told


@pytest.mark.parametrize("name", list(bench.BENCHMARKS))
def test_without_the_repository_bench_says_where_benchmarks_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert main(["bench", name, "--out", "x", "a=1"]) == 2
    assert "repository" in capsys.readouterr().err
