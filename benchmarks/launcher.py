"""Time the launcher: plan, submit, from a job's start to its first step, and after a requeue.

    python -m benchmarks.launcher --out launcher.json

The rivals are what a user types without it: `sbatch` lines, and a batch script with an `srun` in
it. All run on a real SLURM of two nodes that is started in a folder (Debian's packages and root:
`make slurm-deps`); without one, only `plan` is measured, and the report names what is left out. The
nodes are this machine, so SLURM, all processes of a job and other programs share its cores: the
ways take turns, and only their differences count.

`plan` is run for all phases of `configs/chains/full.yaml` and their batch scripts. `submit` sends
six phases into a new folder of runs, so that it copies the code too; no job starts meanwhile,
because the nodes are drained. A job is timed from the first line of its batch script to the first
step in `metrics.jsonl`, which is checked every 20 ms; all run the same configuration, and a gate
requires the same loss. A requeue is timed from the launcher's record that a run, told to save and
exit, is queued again, to the first step after that. It is compared with a script that requeues
itself after a step of `srun`, timed until it runs: SLURM's own delay (some seconds here, two
minutes by its defaults).

The first round is listed separately: its job compiles the copied code. `later` is the median of the
other rounds; differences are taken within a round.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.harness.report import Report, options, reporting
from benchmarks.harness.turns import spread, take_turns
from benchmarks.rivals.sbatch import CONFIGS, Again, Starts, tiny
from lensdist.data.packing.simulated import write_packed
from lensdist.sim.config import SimConfig
from slurm.config.chain import Chain
from tests.chains import SUBMIT, jobs_of, submit, write_chain, write_cluster
from tests.slurm.minislurm import MiniSlurm, missing

Ways = dict[str, Callable[[], float]]  # seconds; first the launcher, then its rival


def main() -> None:
    args = options(__doc__, rounds=5).parse_args()
    # Jobs inherit the environment, but not the path that `make bench` sets.
    os.environ.pop("PYTHONPATH", None)
    lacking = f"no {', '.join(missing())} here" if missing() else ""
    lacking = lacking or ("only root can start a SLURM" if os.geteuid() else "")
    submitit = metadata.version("submitit")
    with reporting(args, "Launcher", torch.device("cpu"), submitit=submitit) as (report, scratch):
        show(report, "plan of chains/full.yaml", plans(scratch), 7, 1.0, "ours")
        if lacking:
            about = f"{lacking}; `make slurm-deps` (Debian, root) installs one"
            report.reasons({"all but plan": about})
        else:
            on_slurm(report, scratch, args.rounds)


def on_slurm(report: Report, folder: Path, rounds: int) -> None:
    """Measure all that needs a SLURM."""
    base = Path(tempfile.mkdtemp(prefix="minislurm-"))  # munged needs one that others can enter
    data = folder / "packed"
    write_packed(data, SimConfig(family="model_ii"), 40, 0)
    try:
        with MiniSlurm(base, nodes=2, cpus=4) as cluster:
            version = cluster.run("sbatch", "--version").strip()
            report.say(f"{version}, {len(cluster.names)} nodes of 4 cores: all are this machine.")
            for name in cluster.names:
                cluster.drain(name)
            show(report, "submit of six phases", submits(cluster, folder), 5, 5.0, "ours")
            cluster.clear()
            for nodes, each in ((1, 1), (2, 2)):
                starts = Starts(cluster, folder / f"{nodes}x{each}", data, nodes, each)
                ways: Ways = {
                    "from the launcher": starts.ours,
                    "srun in a bare script": starts.bare,
                }
                if nodes == 1:
                    ways["python -c 'import torch'"] = lambda: timed(python("import torch"))
                title = f"first step, {nodes} node(s) x {each} process(es)"
                show(report, title, ways, rounds, 5.0, "difference")
            again = Again(cluster, folder / "again", data)
            ways = {"queued again -> step": again.ours, "bare script, to its start": again.bare}
            show(report, "first step after a requeue", ways, 3, 10.0, "difference")
    finally:
        shutil.rmtree(base, ignore_errors=True)


def show(
    report: Report, title: str, ways: Ways, rounds: int, target: float,
    what: Literal["ours", "difference"],
) -> None:  # fmt: skip
    """Measure in turns, and report seconds.

    Args:
        report: to add to.
        title: of the part.
        ways: the ways by name.
        rounds: after the first.
        target: seconds.
        what: the target's subject: the first way, or the difference of the first two.
    """
    each = take_turns(ways, rounds + 1)
    ours, rival, *_ = each.values()
    each["difference"] = [a - b for a, b in zip(ours, rival, strict=True)]
    aimed = "difference" if what == "difference" else next(iter(each))
    rows: list[dict[str, Any]] = []
    for name, (first, *later) in each.items():
        row = {"way": name, "first_s": first, **spread("later_s", later)}
        if name == aimed:
            met = row["later_s"] <= target
            row |= {"target_s": target, "verdict": "met" if met else "MISSED"}
        rows.append(row)
    report.say(f"## {title}")
    report.table(rows, title)


def python(code: str) -> list[str]:
    """Return the command that runs some Python."""
    return [sys.executable, "-c", code]


def timed(words: list[str]) -> float:
    """Return the seconds that a command takes.

    Raises:
        SystemExit: it failed: nothing was measured.
    """
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - start


def plans(folder: Path) -> Ways:
    """Return a plan with batch scripts, and the parts of it that any launcher needs."""
    chain, cluster = CONFIGS / "chains" / "full.yaml", CONFIGS / "clusters" / "slurm-gpu.yaml"
    words = ["plan", "--chain", str(chain), "--cluster", str(cluster), f"runs={folder / 'none'}"]
    return {
        "submit.py plan": lambda: timed([*SUBMIT, *words]),
        "python -c 'import submitit'": lambda: timed(python("import submitit")),
        "python -c pass": lambda: timed(python("pass")),
    }


def submits(cluster: MiniSlurm, folder: Path) -> Ways:
    """Return a submission of six phases, and six sbatch lines with the same dependencies."""
    debug = {task: str(CONFIGS / task / "debug.yaml") for task in ("mae", "finetune")}
    fine = tiny("finetune", "{images}")
    phases: dict[str, Any] = {
        "images": {"simulate": {"family": "model_ii", "n_per_class": 20}},
        "pretrain": {"train": debug["mae"], "after": ["images"], "set": tiny("mae", "{images}")},
        "finetune": {
            "train": debug["finetune"],
            "after": ["images", "pretrain"],
            "set": [*fine, "encoder={pretrain}"],
        },
        "scratch": {"train": debug["finetune"], "after": ["images"], "set": fine},
        "evaluate": {"evaluate": "finetune"},
        "table": {"report": ["finetune", "scratch"]},
    }
    needs = Chain.model_validate({"name": "six", "runs": "runs", "phases": phases}).needs
    numbers = itertools.count()

    def ours() -> float:
        new = folder / f"six-{next(numbers)}"
        new.mkdir()
        chain, where = write_chain(new, new, phases=phases), write_cluster(new, executor="slurm")
        start = time.perf_counter()
        submit("submit", chain, where, env=cluster.environment)
        seconds = time.perf_counter() - start
        jobs = jobs_of(new / "runs")
        assert list(jobs) == list(phases)
        cluster.run("scancel", *jobs.values())
        return seconds

    def bare() -> float:
        jobs: dict[str, str] = {}
        start = time.perf_counter()
        for phase in phases:
            words = ["sbatch", "--parsable", "--output=/dev/null", "--wrap=hostname"]
            if needs(phase):
                words.append(f"--dependency=afterok:{':'.join(jobs[one] for one in needs(phase))}")
            jobs[phase] = cluster.run(*words).strip()
        seconds = time.perf_counter() - start
        cluster.run("scancel", *jobs.values())
        return seconds

    return {"submit.py submit": ours, "six times sbatch": bare}


if __name__ == "__main__":
    main()
