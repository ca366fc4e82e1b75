"""What the launcher costs: plan, submit, a job's way to its first step, and its way back.

    python benchmarks/launcher.py --json launcher.json

The rivals are what one types without it: `sbatch` lines, and a batch script with an `srun` in it.
All run on a real SLURM of two nodes that is started in a folder (Debian's packages and root: `make
slurm-deps`); where there is none, only `plan` is measured, and the rest is said to be left out. The
nodes are this machine, so its cores are shared by SLURM, by all processes of a job and by whatever
else runs: the ways take turns, and what counts is what lies between them.

`plan` is asked for all phases of `configs/chains/full.yaml` and their batch scripts. `submit` sends
six phases into a new folder of runs, so that it copies the code too; nothing starts meanwhile, for
the nodes are drained. A job's way is timed from the first line of its batch script to the first
step in `metrics.jsonl`, which is looked at every 20 ms; all run the same configuration, and a gate
asks for the same loss. The way back is timed from the launcher's word that a run, told to save and
leave, is queued again, to the first step after that; beside it a script that queues itself again
after a step of `srun`, from then until it runs: SLURM's own delay (some seconds here, two minutes
by its defaults).

The first round is listed by itself: its job compiles the copied code. `later` is the median of the
other rounds; differences are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the launcher and the tests' SLURM are not installed

from rivals.sbatch import CONFIGS, Again, Starts, tiny  # noqa: E402

from lensdist.data.packing.simulated import write_packed  # noqa: E402
from lensdist.sim.config import SimConfig  # noqa: E402
from slurm.config.chain import Chain  # noqa: E402
from tests.chains import SUBMIT, jobs_of, submit, write_chain, write_cluster  # noqa: E402
from tests.slurm.minislurm import MiniSlurm, missing  # noqa: E402

Ways = dict[str, Callable[[], float]]  # seconds; the launcher's in front, then its rival
Part = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of starting (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    args = parser.parse_args()
    # What `make bench` sets for other files is not for jobs, which take over what is set here.
    os.environ.pop("PYTHONPATH", None)
    lacking = f"no {', '.join(missing())} here" if missing() else ""
    lacking = lacking or ("only root can start a SLURM" if os.geteuid() else "")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lensdist-launcher-") as scratch:
        parts = [show("plan of chains/full.yaml", plans(Path(scratch)), 7, 1.0, "ours")]
        if not lacking:
            parts += on_slurm(Path(scratch), args.rounds)
    loads = (load_before, os.getloadavg()[0])
    versions = {name: metadata.version(name) for name in ("torch", "submitit")}
    print(
        f"\non {os.cpu_count()} cores, load {loads[0]:.1f} before and {loads[1]:.1f} after, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    if lacking:
        print(f"all but plan left out: {lacking}; `make slurm-deps` (Debian, root) installs one")
    if args.json:
        facts: dict[str, Any] = {"cores": os.cpu_count(), "load": loads, **versions}
        args.json.write_text(json.dumps(facts | {"parts": parts}, indent=2) + "\n")


def on_slurm(folder: Path, rounds: int) -> list[Part]:
    """All that needs a SLURM."""
    base = Path(tempfile.mkdtemp(prefix="minislurm-"))  # munged wants one that others can enter
    data, parts = folder / "packed", []
    write_packed(data, SimConfig(family="model_ii"), 40, 0)
    try:
        with MiniSlurm(base, nodes=2, cpus=4) as cluster:
            version = cluster.run("sbatch", "--version").strip()
            print(f"\n{version}, {len(cluster.names)} nodes of 4 cores, all of them this machine")
            for name in cluster.names:
                cluster.drain(name)
            parts.append(show("submit of six phases", submits(cluster, folder), 5, 5.0, "ours"))
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
                parts.append(show(title, ways, rounds, 5.0, "difference"))
            again = Again(cluster, folder / "again", data)
            ways = {"queued again -> step": again.ours, "bare script, to its start": again.bare}
            parts.append(show("first step after a requeue", ways, 3, 10.0, "difference"))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return parts


def show(
    title: str, ways: Ways, rounds: int, target: float, what: Literal["ours", "difference"]
) -> Part:
    """Measure in turns, and print.

    Args:
        title: of the part.
        ways: what takes turns.
        rounds: after the first.
        target: seconds.
        what: it is for: the first way, or the difference of the first two.
    """
    each: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name in reversed([*ways]) if i % 2 else ways:
            each[name].append(ways[name]())
    ours, rival, *_ = each.values()
    each = {**each, "difference": [a - b for a, b in zip(ours, rival, strict=True)]}
    print(f"\n{title:<42}{'first':>8}{'later':>8}{'lowest .. highest':>20}  seconds", flush=True)
    rows: list[dict[str, Any]] = []
    for name, (first, *later) in each.items():
        median, low, high = statistics.median(later), min(later), max(later)
        aimed = name == "difference" if what == "difference" else not rows
        verdict = f"target {target:g}: {'met' if median <= target else 'MISSED'}" if aimed else ""
        span = f"{low:.2f} .. {high:.2f}"
        print(f"  {name:<40}{first:>8.2f}{median:>8.2f}{span:>20}  {verdict}".rstrip(), flush=True)
        row = {"way": name, "first_s": first, "later_s": median, "range_s": (low, high)}
        rows.append(row | ({"target_s": target} if aimed else {}))
    return {"part": title, "rounds": rounds, "rows": rows}


def python(code: str) -> list[str]:
    """A command."""
    return [sys.executable, "-c", code]


def timed(words: list[str]) -> float:
    """Seconds that a command takes.

    Raises:
        SystemExit: it failed: nothing was measured.
    """
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - start


def plans(folder: Path) -> Ways:
    """A plan for a cluster with batch scripts to show, beside what no launcher can do without."""
    chain, cluster = CONFIGS / "chains" / "full.yaml", CONFIGS / "clusters" / "slurm-gpu.yaml"
    words = ["plan", "--chain", str(chain), "--cluster", str(cluster), f"runs={folder / 'none'}"]
    return {
        "submit.py plan": lambda: timed([*SUBMIT, *words]),
        "python -c 'import submitit'": lambda: timed(python("import submitit")),
        "python -c pass": lambda: timed(python("pass")),
    }


def submits(cluster: MiniSlurm, folder: Path) -> Ways:
    """Six phases of all kinds, and as many sbatch lines that wait for each other alike."""
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
