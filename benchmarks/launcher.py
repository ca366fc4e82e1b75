"""What the launcher costs: plan, submit, a job's way to its first step, and its way back.

    python benchmarks/launcher.py --json launcher.json

The rivals are what one types without it: `sbatch` lines, and a batch script with an `srun` in it. All
run on a real SLURM of two nodes that is started in a folder (Debian's packages and root: `make
slurm-deps`); where there is none, only `plan` is measured, and the rest is said to be left out. The
nodes are this machine, so its cores are shared by SLURM, by all processes of a job and by whatever
else runs: the two ways take turns, and what counts is what lies between them.

`plan` is asked for every phase of `configs/chains/full.yaml` and its batch script. `submit` sends six
phases into a new folder of runs, so that it copies the code too; nothing starts meanwhile, for the
nodes are drained. A job's way is timed from the first line of its batch script to the first step in
`metrics.jsonl`, which is looked at every 20 ms; both ways run the same configuration, and a gate
asks for the same loss. The way back is timed from the launcher's word that a run, told to save and
leave, is queued again, to the first step after that; beside it a script that queues itself again,
from then until it runs: SLURM's own delay (here 5 s and more, at most centres a minute or two).

The first round is listed by itself: its job compiles the copied code. `later` is the median of the
other rounds; differences are taken within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the launcher and the tests' SLURM are not installed

from lensdist.config import load, save  # noqa: E402
from lensdist.config.schema import schema_of  # noqa: E402
from lensdist.sim.config import SimConfig  # noqa: E402
from lensdist.sim.write import write_packed  # noqa: E402
from slurm.ledger import Event, Ledger  # noqa: E402
from slurm.spec.chain import Chain  # noqa: E402
from tests.chains import SUBMIT, jobs_of, submit, write_chain, write_cluster  # noqa: E402
from tests.conftest import settings  # noqa: E402
from tests.slurm.minislurm import MiniSlurm, missing  # noqa: E402
from tests.slurm.watch import attempts_of, losses  # noqa: E402

Ways = Mapping[str, Callable[[], float]]  # seconds; the launcher's in front, then its rival
Part = dict[str, Any]
CONFIGS = ROOT / "configs"
PATIENCE = 240  # s, for a step on a busy machine
LOOK = 0.02  # s between two looks at a run
ENDLESS = 100_000  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of starting (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    args = parser.parse_args()
    # `make bench` puts the rivals of others there: not for jobs, which take over what is set here.
    os.environ.pop("PYTHONPATH", None)
    load_before, parts = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="lensdist-launcher-") as scratch:
        folder = Path(scratch)
        parts.append(show("plan of chains/full.yaml", plans(folder), 7, "plan", 1.0))
        lacking = missing()
        if not lacking and os.geteuid() == 0:
            parts += on_slurm(folder, args.rounds)
    loads = (load_before, os.getloadavg()[0])
    facts: dict[str, Any] = {"cores": os.cpu_count(), "load": loads}
    facts |= {"python": sys.version.split()[0]}
    facts |= {name: metadata.version(name) for name in ("torch", "submitit")}
    print(f"\non {facts['cores']} cores, load {loads[0]:.1f} before and {loads[1]:.1f} after, ", end="")
    print(f"Python {facts['python']}, torch {facts['torch']}, submitit {facts['submitit']}")
    if len(parts) == 1:
        why = f"no {', '.join(lacking)} here" if lacking else "only root can start a SLURM"
        print(f"all but plan is left out: {why}; `make slurm-deps` (Debian, root) installs one")
    if args.json:
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
            parts.append(show("submit of six phases", submits(cluster, folder), 5, "submit", 5.0))
            cluster.clear()
            for nodes, each in ((1, 1), (2, 2)):
                starts = Starts(cluster, folder / f"{nodes}x{each}", data, nodes, each)
                ways: dict[str, Callable[[], float]] = {
                    "from the launcher": starts.ours,
                    "srun in a bare script": starts.bare,
                }
                if nodes == 1:
                    ways["python -c 'import torch'"] = lambda: timed(python("import torch"))
                title = f"first step, {nodes} node(s) x {each} process(es)"
                parts.append(show(title, ways, rounds, "difference", 5.0))
            again = Again(cluster, folder / "again", data)
            ways = {"queued again -> step": again.ours, "bare script, to its start": again.bare}
            parts.append(show("first step after a requeue", ways, 3, "difference", 10.0))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return parts


def show(title: str, ways: Ways, rounds: int, what: str, target: float) -> Part:
    """Measure in turns, and print.

    Args:
        title: of the part.
        ways: what takes turns.
        rounds: after the first.
        what: the target is for: `difference` of the first two ways, or else the first way.
        target: seconds.
    """
    each: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name in reversed(ways) if i % 2 else ways:
            each[name].append(ways[name]())
    ours, rival, *_ = each.values()
    each = {**each, "difference": [a - b for a, b in zip(ours, rival, strict=True)]}
    print(f"\n{title:<42}{'first':>8}{'later':>8}{'lowest .. highest':>20}  seconds", flush=True)
    rows = []
    for name, (first, *later) in each.items():
        median, low, high = statistics.median(later), min(later), max(later)
        aimed = name == what or (what != "difference" and not rows)
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


def tiny(task: str, data: str, **changes: Any) -> list[str]:
    """Settings of a network so small that only what is around it shows."""
    words = settings(task, Path(data), Path("unused"), **changes)
    return [word for word in words if not word.startswith(("--config", "run.dir="))]


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


class Jobs:
    """Trainings of one configuration on the cluster, by the launcher and by hand.

    Args:
        cluster: the SLURM.
        folder: of all that is written; it must not exist.
        data: a packed set.
        where: of the cluster's file.
        changes: of the configuration.
    """

    def __init__(
        self, cluster: MiniSlurm, folder: Path, data: Path, where: dict[str, Any], **changes: Any
    ) -> None:
        folder.mkdir()
        self.slurm, self.folder, self.runs = cluster, folder, folder / "runs"
        self._data, self._count = data, 0
        self.config = folder / "tiny.yaml"
        words = [*tiny("mae", str(data), **changes, **{"train.log_every": 1}), "run.dir=unused"]
        save(load(CONFIGS / "mae" / "debug.yaml", words, schema=schema_of), self.config)
        stamp = f"date +%s.%N >> {folder}/$SLURM_JOB_ID.times"
        self.where = write_cluster(folder, executor="slurm", setup=[stamp], **where)
        self._head = f"#!/bin/bash\n#SBATCH --output={folder}/%j.log --chdir={ROOT}\n"
        self._stamp = f"{stamp}\n"

    def new(self) -> str:
        """A name."""
        self._count += 1
        return f"run-{self._count}"

    def send(self, name: str) -> str:
        """By the launcher; the job's id."""
        chain = write_chain(self.folder, self._data, phases={name: {"train": str(self.config)}})
        submit("submit", chain, self.where, env=self.slurm.environment)
        return jobs_of(self.runs)[name]

    def send_bare(self, head: str, body: str) -> str:
        """By hand; the job's id."""
        file = self.folder / "bare.sh"
        file.write_text(f"{self._head}{head}{self._stamp}{body}")
        return self.slurm.run("sbatch", "--parsable", str(file)).strip()

    def times(self, job: str) -> list[float]:
        """When its script came past the stamps."""
        return [float(line) for line in (self.folder / f"{job}.times").read_text().split()]

    def first_step(self, job: str, run: Path, after: int = 0) -> float:
        """Wait for a run's first step after one; when, in seconds since 1970."""
        return self.wait(lambda: max(losses(run), default=0) > after, job, f"a step of {run}")

    def wait(self, done: Callable[[], bool], job: str, what: str) -> float:
        """Wait for something of a job; when it was there, in seconds since 1970.

        Raises:
            SystemExit: it does not come; with the end of the job's log.
        """
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                log = Path(self.slurm.job(job)["StdOut"]).read_text(errors="replace")
                raise SystemExit(f"no {what} within {PATIENCE} s:\n{log[-2000:]}")
            time.sleep(LOOK)
        return time.time()


class Starts(Jobs):
    """From the first line of a batch script to the first step."""

    def __init__(
        self, cluster: MiniSlurm, folder: Path, data: Path, nodes: int, each: int
    ) -> None:
        where = {"nodes": nodes, "processes_per_node": each, "cpus_per_task": each}
        super().__init__(cluster, folder, data, where, **{"train.max_steps": 2})
        self._nodes, self._each = nodes, each
        self._loss: float | None = None

    def ours(self) -> float:
        """As a phase of a chain."""
        name = self.new()
        return self._seconds(self.send(name), self.runs / name)

    def bare(self) -> float:
        """As one would write it."""
        run = self.folder / self.new()
        words = f"-m lensdist.train --config {self.config} run.dir={run}"
        line = f"{sys.executable} {words}"
        prepare = "export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1\n"
        if self._nodes * self._each > 1:
            prepare += 'export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
            prepare += "export PORT=$((10000 + SLURM_JOB_ID % 20000))\n"
            line = (
                f"bash -c '{sys.executable} -m accelerate.commands.launch --multi_gpu "
                f"--config_file accelerate_config.yaml --num_machines {self._nodes} "
                f"--num_processes {self._nodes * self._each} --machine_rank $SLURM_NODEID "
                f"--main_process_ip $HEAD --main_process_port $PORT {words}'"
            )
        size = f"--ntasks-per-node=1 --cpus-per-task={self._each}"
        body = f"{prepare}srun --cpus-per-task={self._each} {line}\n"
        return self._seconds(
            self.send_bare(f"#SBATCH --nodes={self._nodes} {size}\n", body), run
        )

    def _seconds(self, job: str, run: Path) -> float:
        """Until the first step; returns when the job has ended, and leaves the cores to others."""
        seen = self.first_step(job, run)
        state = self.slurm.finished(job, PATIENCE)
        loss = losses(run)[1]
        if self._loss is None:
            self._loss = loss
        if state != "COMPLETED" or not math.isclose(loss, self._loss, rel_tol=1e-6):
            raise SystemExit(f"{run}: {state}, loss {loss}, not {self._loss}: not the same work")
        return seen - self.times(job)[0]


class Again(Jobs):
    """From a job's end to its first step after it."""

    def __init__(self, cluster: MiniSlurm, folder: Path, data: Path) -> None:
        changes = {"train.max_steps": ENDLESS, "train.epochs": ENDLESS}
        changes |= {"train.eval_every_epochs": ENDLESS, "checkpoint.every_epochs": ENDLESS}
        super().__init__(cluster, folder, data, {"cpus_per_task": 1}, **changes)

    def ours(self) -> float:
        """Told to leave after its first steps, as SLURM does before a time limit."""
        name = self.new()
        job, run = self.send(name), self.runs / name
        self.first_step(job, run)
        self.slurm.run("scancel", "--signal=USR2", job)
        self.wait(lambda: self._ended(name) is not None, job, f"end of {name}")
        ended = self._ended(name)
        assert ended is not None
        if ended.verdict != "requeue":
            raise SystemExit(f"{name} was not queued again: {ended.reason}")
        seen = self.first_step(job, run, ended.step)
        self.slurm.run("scancel", job)
        self.slurm.finished(job, PATIENCE)
        return seen - ended.time

    def bare(self) -> float:
        """SLURM's own delay."""
        again = "scontrol requeue $SLURM_JOB_ID"
        body = f'[ -n "$SLURM_RESTART_COUNT" ] || {{ {self._stamp.strip()}; {again}; }}\n'
        job = self.send_bare("#SBATCH --requeue\n", body)
        path = self.folder / f"{job}.times"
        self.wait(lambda: path.exists() and len(self.times(job)) == 3, job, f"restart of {job}")
        self.slurm.finished(job, PATIENCE)
        _, queued, running = self.times(job)
        return running - queued

    def _ended(self, name: str) -> Event | None:
        found = attempts_of(self.runs, name)
        return found[0].ended if found else None


if __name__ == "__main__":
    main()
